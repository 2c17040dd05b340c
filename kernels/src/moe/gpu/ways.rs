//! Which of several ways the products of routed experts are computed, by what a GPU can do and by how many rows experts have.
//!
//! All ways compute the same. Where each begins is a prediction until it is measured; `gpu-check` measures them side by side.

use crate::gpu::Gpu;
use crate::nf4::Reading;

/// Which instruction multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    /// `mma.sync`, which every card has.
    Warp,
    /// `wgmma`, which Hopper has (9.0) and nobody else.
    Warpgroup,
}

/// Where one way ends and the next begins, in mean rows of an expert.
struct Turns {
    cores: Cores,
    /// Up to so many, tiles have [`SMALL_TILE_ROWS`]: with 96 rows, tiles of 128 are half empty, while those of 64 decode each
    /// weight twice.
    small: usize,
    /// From so many on, weights in NF4 are decoded once into a workspace, and no more in each tile of rows.
    copied: usize,
}

/// Rows of a tile of the grouped products: where experts have many, and where they have few.
pub(super) const TILE_ROWS: usize = 128;
pub(super) const SMALL_TILE_ROWS: usize = 64;

/// Decoding a matrix again for each 128 rows takes some 40 % of the ALU's time while a tile is computed, all hidden; a
/// workspace moves 4.5 bytes a value, which 1024 rows make up for.
const PORTABLE: Turns = Turns { cores: Cores::Warp, small: 96, copied: 1024 };
/// Tensor cores are faster, and L2 is not: a tile of 128 x 128 asks it for 40 bytes a clock if weights come in as NF4, and for
/// 64 if they come in as bf16, of some 25 that it gives. So a copy is never made up for.
const HOPPER: Turns = Turns { cores: Cores::Warpgroup, small: 96, copied: usize::MAX };

// === impl Cores ===

impl Cores {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Warp, Self::Warpgroup];

    /// Whether this GPU has the instruction.
    pub fn are_on(self, gpu: &Gpu) -> bool {
        self == Self::Warp || turns(gpu).cores == self
    }
}

fn turns(gpu: &Gpu) -> &'static Turns {
    if gpu.facts().capability == (9, 0) { &HOPPER } else { &PORTABLE }
}

/// The instruction that multiplies fastest.
pub(super) fn cores(gpu: &Gpu) -> Cores {
    turns(gpu).cores
}

/// Rows of a tile.
pub(super) fn tile_rows(gpu: &Gpu, mean_rows: usize) -> usize {
    if mean_rows <= turns(gpu).small { SMALL_TILE_ROWS } else { TILE_ROWS }
}

/// How weights in NF4 are read.
pub(super) fn reading(gpu: &Gpu, mean_rows: usize) -> Reading {
    if mean_rows < turns(gpu).copied { Reading::Fused } else { Reading::Copied }
}
