//! How work on heads of bf16 is shared out: what `cuda/heads.h` expects of a launch.

use super::rows::{WIDE, count, wide};
use super::{Argument, Kernel, Shape};
use crate::{Error, Result};

/// The kernels of an op on heads: for those that begin at multiples of 16 bytes, and for others.
pub(crate) type HeadKernels = [Kernel; 2];

/// Threads of a block.
const THREADS: u32 = 128;
/// Heads that a group of lanes has at once.
const HEADS: [u32; 2] = [2, 1];
/// Values of the longest heads.
const LONGEST: [usize; 2] = [256, 128];

/// Heads that stay in registers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// Number of heads, those of all rows.
    heads: i32,
    head_dim: i32,
    /// Lanes that share a head.
    lanes: u32,
    kind: usize,
}

// === impl Heads ===

impl Heads {
    /// `values` in heads of `head_dim`, in buffers at these addresses and with these distances.
    pub(crate) fn of(
        op: &'static str,
        values: usize,
        head_dim: usize,
        distances: &[usize],
        addresses: &[u64],
    ) -> Result<Self> {
        if head_dim == 0 || !values.is_multiple_of(head_dim) {
            return Err(Error::shape(op, "values", format!("heads of {head_dim}"), values));
        }
        let kind = usize::from(!(wide(&[head_dim], &[]) && wide(distances, addresses)));
        if head_dim > LONGEST[kind] {
            return Err(Error::shape(op, "values of a head", format!("at most {}", LONGEST[kind]), head_dim));
        }
        let lanes = if kind == 0 { (head_dim / WIDE).next_power_of_two() as u32 } else { 32 };
        Ok(Self { heads: count(op, "heads", values / head_dim)?, head_dim: head_dim as i32, lanes, kind })
    }

    /// The right one.
    pub(crate) fn kernel<'a>(&self, kernels: &'a HeadKernels) -> &'a Kernel {
        &kernels[self.kind]
    }

    /// Number of heads, values of one, lanes that share one.
    pub(crate) fn arguments(&self) -> [Argument; 3] {
        [self.heads.into(), self.head_dim.into(), self.lanes.cast_signed().into()]
    }

    /// Blocks and threads.
    pub(crate) fn shape(&self) -> Shape {
        Shape::of(self.heads.unsigned_abs().div_ceil(THREADS / self.lanes * HEADS[self.kind]), THREADS)
    }
}
