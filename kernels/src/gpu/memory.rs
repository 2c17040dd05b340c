//! Memory of a GPU, with types.

use std::{marker::PhantomData, ops::Range, rc::Rc};

use half::bf16;

use super::lanes::Piece;
use super::{Gpu, HostBuffer};
use crate::{Error, Result};

const MEMORY: &str = "memory of a GPU";

/// Numbers that memory of a GPU can hold: any bytes are one.
pub trait Element: Copy + Default + 'static + private::Sealed {
    /// What kernels call it.
    const NAME: &'static str;
}

mod private {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($number:ty = $name:literal),* $(,)?) => {
        $(impl private::Sealed for $number {}
        impl Element for $number {
            const NAME: &'static str = $name;
        })*
    };
}

elements! { u8 = "u8", i32 = "i32", u32 = "u32", u64 = "u64", f32 = "f32", bf16 = "bf16" }

/// Values in a GPU's memory, or some of them: parts of a buffer share its memory, and it is free when the last is gone.
pub struct Buffer<T> {
    memory: Rc<Memory>,
    first: usize,
    count: usize,
    kind: PhantomData<T>,
}

/// A part of something that never changes: a name, and what is there.
#[derive(Debug)]
pub enum FrozenPart {
    /// Memory of a GPU.
    Memory(&'static str, Buffer<u8>),
    /// A number that kernels are told.
    Number(&'static str, f32),
}

struct Memory {
    gpu: Gpu,
    address: u64,
    bytes: usize,
}

// === impl Memory ===

impl Drop for Memory {
    fn drop(&mut self) {
        self.gpu.release(Piece { address: self.address, bytes: self.bytes, on_host: false });
    }
}

// === impl Buffer ===

impl<T: Element> Buffer<T> {
    pub(super) fn empty(gpu: &Gpu, count: usize) -> Result<Self> {
        let bytes =
            count.checked_mul(size_of::<T>()).ok_or_else(|| Error::invalid(MEMORY, "more than can be named"))?;
        let memory = Memory { gpu: gpu.clone(), address: gpu.backend.allocate(bytes, size_of::<T>())?, bytes };
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

    /// The GPU that has them.
    pub fn gpu(&self) -> &Gpu {
        &self.memory.gpu
    }

    /// Where they begin.
    pub fn address(&self) -> u64 {
        self.memory.address + (self.first * size_of::<T>()) as u64
    }

    pub(super) fn bytes(&self) -> usize {
        self.count * size_of::<T>()
    }

    /// The addresses of all bytes.
    pub(super) fn memory(&self) -> Range<u64> {
        self.address()..self.address() + self.bytes() as u64
    }

    /// Some of the values, in the same memory. Whoever has several parts sees to it that nothing writes what another part
    /// still has to read: the GPU does not know them as one.
    pub fn part(&self, range: Range<usize>) -> Result<Self> {
        if range.start > range.end || range.end > self.count {
            return Err(Error::shape(MEMORY, "part", 0..self.count, range));
        }
        let (first, count) = (self.first + range.start, range.len());
        Ok(Self { memory: Rc::clone(&self.memory), first, count, kind: PhantomData })
    }

    /// All of the values, under one more name. See [`Buffer::part`].
    pub fn shared(&self) -> Self {
        Self { memory: Rc::clone(&self.memory), first: self.first, count: self.count, kind: PhantomData }
    }

    /// The same memory as bytes. See [`Buffer::part`].
    pub fn as_bytes(&self) -> Buffer<u8> {
        let first = self.first * size_of::<T>();
        Buffer { memory: Rc::clone(&self.memory), first, count: self.bytes(), kind: PhantomData }
    }

    /// Replaces all values.
    pub fn upload(&mut self, values: &[T]) -> Result<()> {
        if values.len() != self.count {
            return Err(Error::shape(MEMORY, "values to upload", self.count, values.len()));
        }
        if values.is_empty() {
            return Ok(());
        }
        self.gpu().of_main_queue("copying to a GPU")?;
        self.gpu().touch("copying to a GPU", [(self.memory(), true)].into_iter())?;
        // SAFETY: an `Element` has no padding, so all of its bytes are there.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        self.gpu().backend.upload(self.address(), bytes)
    }

    /// The values, once all that was asked before has happened.
    pub fn download(&self) -> Result<Vec<T>> {
        let mut values = vec![T::default(); self.count];
        if self.count == 0 {
            return Ok(values);
        }
        self.gpu().of_main_queue("copying from a GPU")?;
        self.gpu().touch("copying from a GPU", [(self.memory(), false)].into_iter())?;
        // SAFETY: any bytes are an `Element`, and the vector has so many.
        let bytes = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), self.bytes()) };
        self.gpu().backend.download(self.address(), bytes)?;
        self.gpu().dropped_failure()?;
        Ok(values)
    }

    /// Copies values of another buffer of the same GPU and length.
    pub fn copy_from(&mut self, other: &Self) -> Result<()> {
        if other.count != self.count {
            return Err(Error::shape(MEMORY, "values to copy", self.count, other.count));
        }
        if self.count == 0 {
            return Ok(());
        }
        self.gpu().touch("copying on a GPU", [(other.memory(), false), (self.memory(), true)].into_iter())?;
        self.gpu().backend.copy(other.address(), self.address(), self.bytes())
    }

    /// Asks for a copy of pinned memory of the same length.
    pub fn copy_from_host(&mut self, other: &HostBuffer<T>) -> Result<()> {
        if other.len() != self.count {
            return Err(Error::shape(MEMORY, "values to copy in", self.count, other.len()));
        }
        if self.count == 0 {
            return Ok(());
        }
        self.gpu().touch("copying from the host", [(other.memory(), false), (self.memory(), true)].into_iter())?;
        self.gpu().backend.copy_in(other.address(), self.address(), self.bytes())
    }

    /// Makes all values 0.
    pub fn fill_zero(&mut self) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        self.gpu().touch("filling memory", [(self.memory(), true)].into_iter())?;
        self.gpu().backend.fill(self.address(), 0, self.bytes())
    }

    /// Fails unless there are so many values.
    pub fn expect(&self, op: &'static str, what: &'static str, count: usize) -> Result<()> {
        if self.count == count { Ok(()) } else { Err(Error::shape(op, what, count, self.count)) }
    }
}

// === impl FrozenPart ===

impl FrozenPart {
    pub(crate) fn of<T: Element>(name: &'static str, buffer: &Buffer<T>) -> Self {
        Self::Memory(name, buffer.as_bytes())
    }
}

impl<T: Element> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} at {:#x}", self.count, T::NAME, self.address())
    }
}
