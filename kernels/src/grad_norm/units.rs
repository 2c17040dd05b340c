//! Many tensors in one launch: each is cut into units of so many values, and units are numbered through all of them.

use crate::gpu::{Buffer, Gpu};
use crate::{Error, Result};

/// The number of each tensor's first unit, and of all units at the end; kernels search it (`cuda/tensor_list.h`).
#[derive(Debug)]
pub(crate) struct FirstUnits {
    host: Vec<u32>,
    buffer: Buffer<u32>,
}

// === impl FirstUnits ===

impl FirstUnits {
    pub(crate) fn new(gpu: &Gpu, op: &'static str, counts: impl Iterator<Item = usize>, unit: usize) -> Result<Self> {
        let mut host = vec![0u32];
        let mut next = 0usize;
        for count in counts {
            next += count.div_ceil(unit);
            host.push(u32::try_from(next).map_err(|_| Error::invalid(op, "more values than can be numbered"))?);
        }
        i32::try_from(host.len()).map_err(|_| Error::invalid(op, "more tensors than can be numbered"))?;
        Ok(Self { buffer: gpu.of(&host)?, host })
    }

    /// Number of all units.
    pub(crate) fn units(&self) -> u32 {
        self.host[self.host.len() - 1]
    }

    /// Number of tensors.
    pub(crate) fn tensors(&self) -> i32 {
        (self.host.len() - 1) as i32
    }

    /// The first unit of a tensor, or of the one behind the last.
    pub(crate) fn first(&self, tensor: usize) -> usize {
        self.host[tensor] as usize
    }

    pub(crate) fn buffer(&self) -> &Buffer<u32> {
        &self.buffer
    }
}
