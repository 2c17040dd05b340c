//! How work on rows of bf16 is shared out: what `cuda/rows.h` and `cuda/values.h` expect of a launch.

use super::{Buffer, Element, Kernel, Shape};
use crate::{Error, Result};

/// Values that kernels move at once, where everything begins at multiples of so many and of 16 bytes.
pub(crate) const WIDE: usize = 8;

/// The kernels of an op on rows: for short rows, for long ones, and for rows that begin anywhere.
pub(crate) type RowKernels = [Kernel; 3];

/// Longest rows of each of them.
const LONGEST: [usize; 3] = [2048, 8192, 4096];
/// Threads of their blocks, and rows of a block.
const BLOCKS: [(u32, u32); 3] = [(128, 2), (256, 1), (1024, 1)];

/// Rows that stay in registers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    /// Number of rows.
    pub(crate) rows: i32,
    /// Values of a row.
    pub(crate) width: i32,
    kind: usize,
}

/// Where something begins, for [`Rows::of`] and the like; 0 if it is left out.
pub(crate) fn address<'a, T: Element>(buffer: impl Into<Option<&'a Buffer<T>>>) -> u64 {
    buffer.into().map_or(0, Buffer::address)
}

/// Whether all sizes are multiples of 8 values and all addresses of 16 bytes.
pub(crate) fn wide(sizes: &[usize], addresses: &[u64]) -> bool {
    sizes.iter().all(|size| size.is_multiple_of(WIDE)) && addresses.iter().all(|address| address.is_multiple_of(16))
}

/// Largest size: a last block that is not full counts on behind it without an overflow.
const LARGEST: usize = 1 << 30;

/// A size as kernels take it.
pub(crate) fn count(op: &'static str, what: &'static str, count: usize) -> Result<i32> {
    let fits = i32::try_from(count).ok().filter(|_| count <= LARGEST);
    fits.ok_or_else(|| Error::shape(op, what, format!("at most {LARGEST}"), count))
}

// === impl Rows ===

impl Rows {
    /// `count` values in rows of `width`, in buffers at these addresses.
    pub(crate) fn of(op: &'static str, values: usize, width: usize, addresses: &[u64]) -> Result<Self> {
        if width == 0 || !values.is_multiple_of(width) {
            return Err(Error::shape(op, "values", format!("rows of {width}"), values));
        }
        let kind = match wide(&[width], addresses) {
            true => usize::from(width > LONGEST[0]),
            false => 2,
        };
        if width > LONGEST[kind] {
            return Err(Error::shape(op, "values of a row", format!("at most {}", LONGEST[kind]), width));
        }
        Ok(Self { rows: count(op, "rows", values / width)?, width: width as i32, kind })
    }

    /// The right one.
    pub(crate) fn kernel<'a>(&self, kernels: &'a RowKernels) -> &'a Kernel {
        &kernels[self.kind]
    }

    /// Blocks and threads.
    pub(crate) fn shape(&self) -> Shape {
        let (threads, rows) = BLOCKS[self.kind];
        Shape::of(self.rows.unsigned_abs().div_ceil(rows), threads)
    }
}
