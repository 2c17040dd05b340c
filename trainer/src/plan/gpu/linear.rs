//! A linear layer on a card: [`Linear`](crate::gpu) and `kernels::lora_linear::gpu` as far as they take memory.

use brightrun_kernels::nf4::BLOCK;

use super::room::Piece;
use super::walk::Walk;

/// Most rows for which a weight in NF4 is decoded inside of the product, from a generation on (`lora_linear::gpu::FUSED_ROWS`).
const FUSED_ROWS: [(u32, u64); 2] = [(9, 640), (0, 1750)];
/// Rows begin at multiples of so many values; others are copied.
const CHUNK: u64 = 8;
/// Rows whose LoRA gradients are one sum, and sums at most (`lora_linear::gpu::lora`).
const SHARE_ROWS: u64 = 256;
const SHARES: u64 = 32;

/// A linear of a layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Linear {
    pub(super) inputs: u64,
    pub(super) outputs: u64,
    /// Of its adapter.
    pub(super) rank: Option<u64>,
    pub(super) quantised: bool,
}

fn is_aligned(columns: u64) -> bool {
    columns.is_multiple_of(CHUNK)
}

// === impl Linear ===

impl Linear {
    /// The output, and what the backward pass keeps of the adapter. `wide`: the output is `f32`.
    pub(super) fn forward(self, walk: &Walk<'_>, wide: bool) -> (Piece, Option<Piece>) {
        let tokens = walk.tokens();
        let y = if wide { walk.floats(tokens * self.outputs) } else { walk.rows(self.outputs) };
        let kept = self.rank.map(|rank| {
            // `x` and `A`.
            let _copies = [self.copy(walk, tokens, self.inputs), self.copy(walk, rank, self.inputs)];
            walk.rows(rank.next_multiple_of(CHUNK))
        });
        let _weight = self.decoded(walk, wide);
        let _copies = [
            self.copy(walk, tokens, self.inputs),
            self.copy(walk, self.outputs, self.inputs),
            self.rank.and_then(|rank| self.copy(walk, self.outputs, rank)),
        ];
        (y, kept)
    }

    /// The gradients of the argument, which is there, and of the adapter.
    pub(super) fn backward(self, walk: &Walk<'_>) {
        let tokens = walk.tokens();
        let _up = self.rank.map(|rank| {
            let up = {
                // `dy` and `B`.
                let _copies = [self.copy(walk, tokens, self.outputs), self.copy(walk, self.outputs, rank)];
                walk.rows(rank.next_multiple_of(CHUNK))
            };
            let _copies = [self.copy(walk, tokens, self.inputs), self.copy(walk, tokens, self.outputs)];
            let share = tokens.div_ceil(SHARES).next_multiple_of(64).max(SHARE_ROWS);
            let sums = tokens.div_ceil(share) * rank;
            let _sums = [walk.floats(sums * self.inputs), walk.floats(sums * self.outputs)];
            up
        });
        let _weight = self.decoded(walk, false);
        let _copies = [
            self.copy(walk, tokens, self.outputs),
            self.copy(walk, self.outputs, self.inputs),
            self.rank.and_then(|rank| self.copy(walk, rank, self.inputs)),
        ];
    }

    /// A copy with rows that begin where products want them, if they do not yet.
    fn copy(self, walk: &Walk<'_>, rows: u64, columns: u64) -> Option<Piece> {
        (!is_aligned(columns)).then(|| walk.halves(rows * columns.next_multiple_of(CHUNK)))
    }

    /// The weight in bf16, where it is not decoded inside of the product.
    fn decoded(self, walk: &Walk<'_>, wide: bool) -> Option<Piece> {
        let most = FUSED_ROWS.iter().find(|(from, _)| walk.card.generation >= *from).map_or(0, |(_, rows)| *rows);
        let inside = !wide && self.inputs.is_multiple_of(BLOCK as u64) && walk.tokens() <= most;
        (self.quantised && !inside).then(|| walk.halves(self.outputs * self.inputs))
    }
}
