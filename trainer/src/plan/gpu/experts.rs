//! Routing and routed experts on a card: `kernels::moe::gpu`.

use brightrun_kernels::nf4::{BLOCK, NESTED_BLOCK};

use super::layer::Place;
use super::room::Piece;
use super::walk::Walk;

/// Tokens that are sorted together, rows of a tile of products, and the mean rows of an expert up to which tiles are small.
const SORTED: u64 = 64;
const TILE_ROWS: u64 = 128;
const SMALL_TILE_ROWS: u64 = 64;
const FEW_ROWS: u64 = 96;
/// Mean rows of an expert from which on weights are decoded before products, but for the generation whose products always decode
/// them, and experts whose weights are decoded at once.
const DECODED_ROWS: u64 = 1024;
const ALWAYS_INSIDE: u32 = 9;
const AT_ONCE: u64 = 32;
/// Columns of a row over which one share of a routing weight's gradient is summed.
const SHARE: u64 = 64;
/// Ranks are padded to multiples of this.
pub(super) const RANKS: u64 = 16;

/// Who gets which rows: choices, weights, slots and rows of each; where experts and tiles begin.
pub(super) struct Routing {
    _lists: [Piece; 7],
}

/// The experts of a layer.
pub(super) struct Experts {
    count: u64,
    per_token: u64,
    hidden: u64,
    width: u64,
    /// Padded ranks of gate and up together, and of down.
    ranks: [u64; 2],
    quantised: bool,
}

/// Which matrices of an expert.
#[derive(Clone, Copy)]
enum Matrices {
    GateUp,
    Down,
}

// === impl Routing ===

impl Routing {
    pub(super) fn of(walk: &Walk<'_>) -> Self {
        let (experts, tokens) = (walk.config.moe.experts as u64, walk.tokens());
        let slots = tokens * walk.config.moe.per_token as u64;
        let rows = if slots / experts.max(1) <= FEW_ROWS { SMALL_TILE_ROWS } else { TILE_ROWS };
        let tiles = slots / rows + experts.min(slots);
        let lists = [slots, slots, experts + 1, slots, slots, 2 * tiles, experts + 1].map(|count| walk.floats(count));
        // The counts of each part of the sort, and of all.
        drop([walk.floats(tokens.div_ceil(SORTED) * experts), walk.floats(experts)]);
        Self { _lists: lists }
    }
}

// === impl Experts ===

impl Experts {
    pub(super) fn of(walk: &Walk<'_>, place: &Place<'_>) -> Self {
        let moe = &walk.config.moe;
        let path = format!("model.layers.{}.mlp.experts.0.gate_proj", place.layer);
        let [gate, up, down] = place.lora.most_expert_ranks().map(|rank| rank.next_multiple_of(RANKS));
        Self {
            count: moe.experts as u64,
            per_token: moe.per_token as u64,
            hidden: walk.hidden(),
            width: moe.intermediate_size as u64,
            ranks: [gate + up, down],
            quantised: walk.precision.quantises(&path).is_some(),
        }
    }

    /// A token's choices, for all tokens.
    pub(super) fn rows(&self, walk: &Walk<'_>) -> u64 {
        walk.tokens() * self.per_token
    }

    /// What the backward pass keeps.
    pub(super) fn forward(&self, walk: &Walk<'_>) -> [Piece; 4] {
        let (kept, _low_down) = self.kept(walk);
        let _values = walk.halves(self.rows(walk) * self.hidden);
        drop(self.decoded(walk, Matrices::Down));
        kept
    }

    /// The same without the sums.
    pub(super) fn forward_again(&self, walk: &Walk<'_>) -> [Piece; 4] {
        self.kept(walk).0
    }

    /// With what the product with down takes besides.
    fn kept(&self, walk: &Walk<'_>) -> ([Piece; 4], Piece) {
        let (rows, [gate_up, down]) = (self.rows(walk), self.ranks);
        let kept = [2 * self.width, self.width, gate_up, down].map(|width| walk.halves(rows * width));
        drop(self.decoded(walk, Matrices::GateUp));
        (kept, walk.halves(rows * down))
    }

    pub(super) fn backward(&self, walk: &Walk<'_>) {
        let (rows, [gate_up, down]) = (self.rows(walk), self.ranks);
        let _d_low_down = [walk.halves(rows * down), walk.halves(rows * down)];
        let _d_gate_up = walk.halves(rows * 2 * self.width);
        {
            let _shares = walk.floats(rows * self.width.div_ceil(SHARE));
            drop(self.decoded(walk, Matrices::Down));
        }
        let _d_low_gate_up = walk.halves(rows * gate_up);
        let _d_rows = walk.halves(rows * self.hidden);
        drop(self.decoded(walk, Matrices::GateUp));
    }

    /// The weights of some experts in bf16, where products do not decode them, and of those behind them.
    fn decoded(&self, walk: &Walk<'_>, which: Matrices) -> [Option<Piece>; 2] {
        let values = self.hidden * self.width;
        let (block, nested) = (BLOCK as u64, (BLOCK * NESTED_BLOCK) as u64);
        let whole =
            self.hidden.is_multiple_of(block) && self.width.is_multiple_of(block) && values.is_multiple_of(nested);
        let few = self.rows(walk) / self.count.max(1) < DECODED_ROWS;
        let inside = whole && (few || walk.card.generation == ALWAYS_INSIDE);
        let matrices = match which {
            Matrices::GateUp => 2,
            Matrices::Down => 1,
        };
        let workspace = || walk.halves(AT_ONCE.min(self.count) * matrices * values);
        let needed = self.quantised && !inside;
        [needed.then(workspace), (needed && self.count > AT_ONCE).then(workspace)]
    }
}
