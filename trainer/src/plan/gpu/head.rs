//! Head and loss on a card: `gpu::head` and `kernels::cross_entropy::gpu`.

use brightrun_kernels::cross_entropy::GPU_CHUNK_ROWS;

use super::card::Card;
use super::linear::Linear;
use super::room::Piece;
use super::walk::Walk;

/// Sides of tiles: words and, in small ones, rows. Large ones have twice the rows.
const TILE: u64 = 128;
/// Words that share an exponent.
const GROUP: u64 = 64;
/// Parts that the sum over the words is cut into at most, and by how much one more has to fill a card better.
const PARTS: u64 = 8;
const BETTER: f64 = 0.02;
/// Shared memory of a block in KiB, with its own share: of small and of large tiles.
const SHARED: [u64; 2] = [65, 97];

/// The output projection.
pub(super) struct Head {
    pub(super) linear: Linear,
}

// === impl Head ===

impl Head {
    /// The gradient of the last layer's output.
    pub(super) fn loss(&self, walk: &Walk<'_>) -> Piece {
        let (targets, row) = (walk.batch.targets, || walk.rows(walk.hidden()));
        let Linear { inputs: width, outputs: words, quantised, .. } = self.linear;
        let _decoded = quantised.then(|| walk.halves(words * width));
        let _targets = [walk.floats(targets), walk.floats(targets)];
        let (_normed, _each, _d_normed) = (row(), walk.floats(targets), row());
        if targets > 0 {
            drop(self.chunk(walk));
        }
        row()
    }

    /// Everything that exists while a chunk of rows is worked on.
    fn chunk(&self, walk: &Walk<'_>) -> Vec<Piece> {
        let Linear { inputs: width, outputs: words, rank, .. } = self.linear;
        let chunks = walk.batch.targets.div_ceil(GPU_CHUNK_ROWS as u64);
        let count = walk.batch.targets.div_ceil(chunks.max(1));
        let large = count.next_multiple_of(2 * TILE) * 7 <= count.next_multiple_of(TILE) * 8;
        let tile = if large { 2 * TILE } else { TILE };
        let (rows, columns) = (count.next_multiple_of(tile), words.next_multiple_of(TILE));
        let groups = columns / GROUP;
        let beside = width.div_ceil(TILE) + rank.map_or(0, |rank| rank.div_ceil(TILE));
        let parts = groups.div_ceil(groups.div_ceil(parts(&walk.card, large, rows / tile * beside)));
        let mut pieces = vec![
            walk.halves(rows * columns),
            walk.halves(groups * rows),
            walk.floats(rows),
            walk.floats(rows),
            walk.floats(2 * groups * rows),
            walk.floats(rows),
            walk.floats(parts * rows * width),
        ];
        if let Some(rank) = rank {
            let stride = rank.next_multiple_of(8);
            pieces.extend((stride != rank).then(|| walk.halves(words * stride)));
            pieces.extend([walk.halves(rows * stride), walk.halves(rows * stride), walk.floats(parts * rows * rank)]);
        }
        pieces
    }
}

/// Into how many parts the sum over the words is cut so that tiles fill all multiprocessors.
fn parts(card: &Card, large: bool, tiles: u64) -> u64 {
    let fit = card.shared / SHARED[usize::from(large)];
    let at_once = card.multiprocessors * if large { 1 } else { fit.clamp(1, 2) };
    let busy = |parts: u64| (parts * tiles) as f64 / (parts * tiles).next_multiple_of(at_once) as f64;
    (1..=PARTS).fold(1, |best, parts| if busy(parts) > busy(best) + BETTER { parts } else { best })
}
