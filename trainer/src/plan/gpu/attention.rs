//! Softmax attention on a card: `gpu::attention` and `kernels::attention::gpu`.

use super::card::Card;
use super::layer::Place;
use super::linear::Linear;
use super::room::Piece;
use super::walk::Walk;

/// Rows of a head whose deltas are kept together, rows of a block of keys with heads up to 128 wide, and with wider ones where
/// shared memory is short (`attention::gpu`).
const DELTA_ROWS: u64 = 128;
const KEY_ROWS: u64 = 64;
const FEW_KEY_ROWS: u64 = 32;
/// Shared memory in KiB that tells the two.
const ENOUGH_SHARED: u64 = 147;
/// Blocks of keys that each multiprocessor should have.
const BLOCKS: u64 = 4;

/// The projections of a layer's attention.
pub(super) struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    heads: u64,
    key_heads: u64,
    width: u64,
    output_gate: bool,
}

/// What a forward pass keeps.
pub(super) struct Tape {
    _raw_q: Piece,
    _raw_k: Piece,
    _q: Piece,
    _k: Piece,
    _v: Piece,
    _out: Piece,
    _log_sums: Piece,
    _gated: Option<Piece>,
    _kept: [Option<Piece>; 4],
}

// === impl Attention ===

impl Attention {
    pub(super) fn of(walk: &Walk<'_>, place: &Place<'_>) -> Self {
        let config = &walk.config.attention;
        let (heads, key_heads, width) = (config.heads as u64, config.key_value_heads as u64, config.head_dim as u64);
        let linear = |name: &str, inputs, outputs| {
            walk.linear(place.lora, place.layer, &format!("self_attn.{name}"), inputs, outputs)
        };
        let (hidden, stride) = (walk.hidden(), if config.output_gate { 2 * width } else { width });
        Self {
            q: linear("q_proj", hidden, heads * stride),
            k: linear("k_proj", hidden, key_heads * width),
            v: linear("v_proj", hidden, key_heads * width),
            o: linear("o_proj", heads * width, hidden),
            heads,
            key_heads,
            width,
            output_gate: config.output_gate,
        }
    }

    pub(super) fn forward(&self, walk: &Walk<'_>) -> (Piece, Tape) {
        let (queries, keys) = (self.heads * self.width, self.key_heads * self.width);
        let (raw_q, kept_q) = self.q.forward(walk, false);
        let (raw_k, kept_k) = self.k.forward(walk, false);
        let (v, kept_v) = self.v.forward(walk, false);
        let (q, k) = (walk.rows(queries), walk.rows(keys));
        let (out, log_sums) = (walk.rows(queries), walk.floats(self.heads * walk.tokens()));
        let gated = self.output_gate.then(|| walk.rows(queries));
        let (mixed, kept_o) = self.o.forward(walk, false);
        let tape = Tape {
            _raw_q: raw_q,
            _raw_k: raw_k,
            _q: q,
            _k: k,
            _v: v,
            _out: out,
            _log_sums: log_sums,
            _gated: gated,
            _kept: [kept_q, kept_k, kept_v, kept_o],
        };
        (mixed, tape)
    }

    /// The gradient of the argument.
    pub(super) fn backward(&self, walk: &Walk<'_>, _tape: Tape) -> Piece {
        let (queries, keys) = (self.heads * self.width, self.key_heads * self.width);
        let mut d_out = walk.rows(queries);
        self.o.backward(walk);
        let _d_raw_q = walk.rows(self.q.outputs);
        if self.output_gate {
            d_out = walk.rows(queries);
        }
        let (d_q, d_k, _d_v) = (walk.rows(queries), walk.rows(keys), walk.rows(keys));
        self.attend_backward(walk);
        drop(d_out);
        let _d_raw_k = walk.rows(keys);
        drop((d_q, d_k));
        let d_x = walk.rows(walk.hidden());
        [self.q, self.k, self.v].iter().for_each(|linear| linear.backward(walk));
        d_x
    }

    /// A delta for each row and head; and, where query heads that share a key head are shared out, the gradients of keys and
    /// values once for each part of them.
    fn attend_backward(&self, walk: &Walk<'_>) {
        let _deltas = walk.floats(self.heads * walk.tokens().next_multiple_of(DELTA_ROWS));
        let parts = self.parts(walk.tokens(), &walk.card);
        let values = walk.tokens() * self.key_heads * self.width;
        let _parts = (parts > 1).then(|| walk.floats(2 * parts * values));
    }

    fn parts(&self, tokens: u64, card: &Card) -> u64 {
        let many = self.width <= 128 || card.shared >= ENOUGH_SHARED;
        let blocks = tokens.div_ceil(if many { KEY_ROWS } else { FEW_KEY_ROWS });
        let each = self.heads / self.key_heads.max(1);
        let enough = |parts: &u64| blocks * self.key_heads * parts >= BLOCKS * card.multiprocessors;
        (1..each).filter(|parts| each.is_multiple_of(*parts)).find(enough).unwrap_or(each)
    }
}
