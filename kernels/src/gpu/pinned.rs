//! Memory of the host that a GPU copies from and to by itself, while both do something else.

use std::{marker::PhantomData, ops::Range, rc::Rc};

use super::lanes::Piece;
use super::{Buffer, Element, Gpu};
use crate::{Error, Result};

const PINNED: &str = "pinned memory of the host";

/// Values in memory of the host that stays where it is. Parts share it, and it is free when the last is gone.
///
/// Copies from it and to it happen in the order of the asking, beside the main queue inside of [`Gpu::beside`].
pub struct HostBuffer<T> {
    memory: Rc<HostMemory>,
    first: usize,
    count: usize,
    kind: PhantomData<T>,
}

struct HostMemory {
    gpu: Gpu,
    address: u64,
    bytes: usize,
}

// === impl HostMemory ===

impl Drop for HostMemory {
    fn drop(&mut self) {
        self.gpu.release(Piece { address: self.address, bytes: self.bytes, on_host: true });
    }
}

// === impl HostBuffer ===

impl<T: Element> HostBuffer<T> {
    pub(super) fn empty(gpu: &Gpu, count: usize) -> Result<Self> {
        let bytes =
            count.checked_mul(size_of::<T>()).ok_or_else(|| Error::invalid(PINNED, "more than can be named"))?;
        let memory = HostMemory { gpu: gpu.clone(), address: gpu.backend.allocate_host(bytes)?, bytes };
        Ok(Self { memory: Rc::new(memory), first: 0, count, kind: PhantomData })
    }

    /// How many values.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Some of the values, in the same memory.
    pub fn part(&self, range: Range<usize>) -> Result<Self> {
        if range.start > range.end || range.end > self.count {
            return Err(Error::shape(PINNED, "part", 0..self.count, range));
        }
        let (first, count) = (self.first + range.start, range.len());
        Ok(Self { memory: Rc::clone(&self.memory), first, count, kind: PhantomData })
    }

    /// Asks for a copy of a buffer of the same length.
    pub fn copy_from(&mut self, other: &Buffer<T>) -> Result<()> {
        if other.len() != self.count {
            return Err(Error::shape(PINNED, "values to copy out", self.count, other.len()));
        }
        if self.count == 0 {
            return Ok(());
        }
        let gpu = &self.memory.gpu;
        gpu.touch("copying to the host", [(other.memory(), false), (self.memory(), true)].into_iter())?;
        gpu.backend.copy_out(other.address(), self.address(), self.bytes())
    }

    /// The values, once all that was asked before has happened.
    pub fn values(&self) -> Result<Vec<T>> {
        let mut values = vec![T::default(); self.count];
        if self.count == 0 {
            return Ok(values);
        }
        self.memory.gpu.synchronize()?;
        // SAFETY: any bytes are an `Element`, and the vector has so many.
        let bytes = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), self.bytes()) };
        self.memory.gpu.backend.read_host(self.address(), bytes)?;
        Ok(values)
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.address + (self.first * size_of::<T>()) as u64
    }

    pub(super) fn bytes(&self) -> usize {
        self.count * size_of::<T>()
    }

    pub(super) fn memory(&self) -> Range<u64> {
        self.address()..self.address() + self.bytes() as u64
    }
}

impl<T: Element> std::fmt::Debug for HostBuffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} of the host", self.count, T::NAME)
    }
}
