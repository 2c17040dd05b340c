//! Products that the vendor's library computes.

use std::ops::Range;

/// `out [m, n] = [out +] scale · A B` of matrices of bf16 that begin at multiples of 16 bytes, as the vendor's library may
/// compute it.
#[derive(Debug, Clone, Copy)]
pub struct LibraryProduct {
    /// Whether `A` is `[k, m]` and not `[m, k]`; whether `B` is `[k, n]` and not `[n, k]`.
    pub columns: [bool; 2],
    /// m, n and k.
    pub sizes: [usize; 3],
    /// Where `A` begins.
    pub a: u64,
    /// Where `B` begins.
    pub b: u64,
    /// Where the result begins.
    pub out: u64,
    /// Values from one row of `A` and `B` to the next.
    pub strides: [usize; 2],
    /// Whether the result is `f32` and not bf16.
    pub wide: bool,
    /// A factor of the product.
    pub scale: f32,
    /// Whether what is there stays in the sum.
    pub add: bool,
}

// === impl LibraryProduct ===

impl LibraryProduct {
    /// What it reads and what it writes.
    pub(super) fn memory(&self) -> [(Range<u64>, bool); 3] {
        let [m, n, k] = self.sizes;
        let side = |at: u64, columns: bool, side: usize, stride: usize| {
            let (rows, width) = if columns { (k, side) } else { (side, k) };
            at..at + 2 * ((rows.max(1) - 1) * stride + width) as u64
        };
        let out = (m * n * if self.wide { 4 } else { 2 }) as u64;
        [
            (side(self.a, self.columns[0], m, self.strides[0]), false),
            (side(self.b, self.columns[1], n, self.strides[1]), false),
            (self.out..self.out + out, true),
        ]
    }
}
