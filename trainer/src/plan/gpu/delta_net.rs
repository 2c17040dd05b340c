//! Gated DeltaNet on a card: `gpu::delta_net` and `kernels::delta_rule::gpu`.

use super::layer::Place;
use super::linear::Linear;
use super::room::Piece;
use super::walk::Walk;
use crate::plan::layers::BLOCK;

/// Numbers of each token and head that chunks need before a state is known (`delta_rule::gpu`: two sets of four).
const FACTORS: u64 = 8;

/// The projections of a layer's linear attention, and its widths.
pub(super) struct DeltaNet {
    qkvz: Linear,
    ba: Linear,
    out: Linear,
    heads: u64,
    convolved: u64,
    values: u64,
    /// Values of the states between chunks.
    states: u64,
}

/// What a forward pass keeps.
pub(super) struct Tape {
    _clean: Option<Piece>,
    _qkvz: Piece,
    _ba: Piece,
    _qkv: Piece,
    _out: Piece,
    _gated: Piece,
    _within: [Piece; 3],
    _states: Piece,
    _written: Piece,
    _kept: [Option<Piece>; 3],
}

// === impl DeltaNet ===

impl DeltaNet {
    /// Nothing where the configuration describes none.
    pub(super) fn of(walk: &Walk<'_>, place: &Place<'_>) -> Option<Self> {
        let config = walk.config.delta_net.as_ref()?;
        let (heads, key_dim) = (config.value_heads as u64, config.key_dim as u64);
        let (keys, values) = (config.key_heads as u64 * key_dim, heads * config.value_dim as u64);
        let linear = |name: &str, inputs, outputs| {
            walk.linear(place.lora, place.layer, &format!("linear_attn.{name}"), inputs, outputs)
        };
        let hidden = walk.hidden();
        Some(Self {
            qkvz: linear("in_proj_qkvz", hidden, 2 * keys + 2 * values),
            ba: linear("in_proj_ba", hidden, 2 * heads),
            out: linear("out_proj", values, hidden),
            heads,
            convolved: 2 * keys + values,
            values,
            // None behind the last chunk of a document.
            states: walk.batch.chunks.saturating_sub(walk.batch.documents) * values * key_dim,
        })
    }

    pub(super) fn forward(&self, walk: &Walk<'_>) -> (Piece, Tape) {
        let clean = walk.batch.padded.then(|| walk.rows(walk.hidden()));
        let (qkvz, kept_qkvz) = self.qkvz.forward(walk, false);
        let (ba, kept_ba) = self.ba.forward(walk, false);
        let (qkv, out) = (walk.rows(self.convolved), walk.rows(self.values));
        let within = [
            walk.floats(walk.tokens() * self.heads * FACTORS),
            walk.rows(self.heads * BLOCK),
            walk.rows(self.heads * BLOCK),
        ];
        let (states, written) = (walk.halves(self.states), walk.rows(self.values));
        let gated = walk.rows(self.values);
        let (mixed, kept_out) = self.out.forward(walk, false);
        let tape = Tape {
            _clean: clean,
            _qkvz: qkvz,
            _ba: ba,
            _qkv: qkv,
            _out: out,
            _gated: gated,
            _within: within,
            _states: states,
            _written: written,
            _kept: [kept_qkvz, kept_ba, kept_out],
        };
        (mixed, tape)
    }

    /// The gradient of the argument.
    pub(super) fn backward(&self, walk: &Walk<'_>, _tape: Tape) -> Piece {
        let d_gated = walk.rows(self.values);
        self.out.backward(walk);
        let (d_out, _d_qkvz) = (walk.rows(self.values), walk.rows(self.qkvz.outputs));
        drop(d_gated);
        let (d_qkv, _d_ba) = (walk.rows(self.convolved), walk.rows(self.ba.outputs));
        drop(walk.halves(self.states));
        drop(d_out);
        drop(d_qkv);
        let d_x = walk.rows(walk.hidden());
        self.qkvz.backward(walk);
        self.ba.backward(walk);
        d_x
    }
}
