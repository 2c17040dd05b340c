//! Kernels as the host knows them.

use std::ops::Range;

use super::{Buffer, Element};
use crate::{Error, Result};

/// A kernel, declared: its name, and what it takes.
///
/// The emulator holds this against the kernel itself at every launch, and a card compares number and sizes, so a wrong
/// declaration is an error and not a wrong number.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    pub(super) name: &'static str,
    pub(super) arguments: &'static str,
}

/// What a kernel is given.
#[derive(Debug, Clone, Copy)]
pub struct Argument {
    /// Its bytes, the first ones of eight.
    pub(super) bits: u64,
    /// Of memory: how many bytes may be reached.
    pub(super) reach: Option<usize>,
    pub(super) kind: &'static str,
    writes: bool,
}

/// How many threads there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block: whole warps, 1024 at most.
    pub block: [u32; 3],
    /// Bytes of `DYNAMIC_SHARED`.
    pub shared: usize,
}

// === impl Kernel ===

impl Kernel {
    /// Declares a kernel. `arguments` are its types with commas between them, as in `"const bf16*, f32*, u64"`.
    pub const fn new(name: &'static str, arguments: &'static str) -> Self {
        Self { name, arguments }
    }

    /// What it takes, one by one.
    pub(super) fn types(&self) -> impl Iterator<Item = &'static str> {
        self.arguments.split(", ").filter(|name| !name.is_empty())
    }

    /// How many bytes each of them has.
    #[cfg(feature = "cuda")]
    pub(super) fn sizes(&self) -> impl Iterator<Item = usize> {
        self.types().map(|name| if name.ends_with('*') || name == "u64" { 8 } else { 4 })
    }

    pub(super) fn check(&self, arguments: &[Argument]) -> Result<()> {
        let declared = self.types().count();
        if declared != arguments.len() {
            return Err(Error::shape(self.name, "arguments", declared, arguments.len()));
        }
        for (index, (declared, argument)) in self.types().zip(arguments).enumerate() {
            let (constant, kind) = match declared.strip_prefix("const ") {
                Some(kind) => (true, kind),
                None => (false, declared),
            };
            let (memory, kind) = match kind.strip_suffix('*') {
                Some(kind) => (true, kind),
                None => (false, kind),
            };
            if kind != argument.kind || memory != argument.reach.is_some() {
                let found = if argument.reach.is_some() { "memory of " } else { "a number, " };
                let reason = format!("argument {index} is {declared}, given {found}{}", argument.kind);
                return Err(Error::invalid(self.name, reason));
            }
            if argument.reach.is_some_and(|bytes| bytes > 0) && argument.bits == 0 {
                return Err(Error::invalid(self.name, format!("argument {index} is memory without an address")));
            }
            if memory && constant == argument.writes {
                let reason = format!("argument {index} is {declared}, given memory to {}", argument.purpose());
                return Err(Error::invalid(self.name, reason));
            }
        }
        Ok(())
    }
}

// === impl Argument ===

impl Argument {
    fn purpose(&self) -> &'static str {
        if self.writes { "write" } else { "read" }
    }

    /// The memory that it is, and whether it is written.
    pub(super) fn memory(&self) -> Option<(Range<u64>, bool)> {
        self.reach.map(|bytes| (self.bits..self.bits + bytes as u64, self.writes))
    }

    fn number(bits: u64, kind: &'static str) -> Self {
        Self { bits, reach: None, kind, writes: false }
    }
}

impl<T: Element> From<&Buffer<T>> for Argument {
    fn from(buffer: &Buffer<T>) -> Self {
        Self { bits: buffer.address(), reach: Some(buffer.bytes()), kind: T::NAME, writes: false }
    }
}

impl<T: Element> From<&mut Buffer<T>> for Argument {
    fn from(buffer: &mut Buffer<T>) -> Self {
        Self { writes: true, ..Self::from(&*buffer) }
    }
}

/// Memory that may be left out; the kernel is given no address then.
impl<T: Element> From<Option<&Buffer<T>>> for Argument {
    fn from(buffer: Option<&Buffer<T>>) -> Self {
        buffer.map_or(Self { bits: 0, reach: Some(0), kind: T::NAME, writes: false }, Self::from)
    }
}

/// Memory that may be left out; the kernel is given no address then.
impl<T: Element> From<Option<&mut Buffer<T>>> for Argument {
    fn from(buffer: Option<&mut Buffer<T>>) -> Self {
        buffer.map_or(Self { bits: 0, reach: Some(0), kind: T::NAME, writes: true }, Self::from)
    }
}

impl From<i32> for Argument {
    fn from(value: i32) -> Self {
        Self::number(u64::from(value.cast_unsigned()), "i32")
    }
}

impl From<u32> for Argument {
    fn from(value: u32) -> Self {
        Self::number(u64::from(value), "u32")
    }
}

impl From<u64> for Argument {
    fn from(value: u64) -> Self {
        Self::number(value, "u64")
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self::number(u64::from(value.to_bits()), "f32")
    }
}

// === impl Shape ===

impl Shape {
    /// So many blocks of so many threads.
    pub fn of(blocks: u32, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], block: [threads, 1, 1], shared: 0 }
    }

    /// With a grid in several dimensions.
    pub fn grid(grid: [u32; 3], threads: u32) -> Self {
        Self { grid, block: [threads, 1, 1], shared: 0 }
    }

    /// With so many bytes of `DYNAMIC_SHARED`.
    pub fn with_shared(self, bytes: usize) -> Self {
        Self { shared: bytes, ..self }
    }

    pub(super) fn blocks(&self) -> u64 {
        self.grid.iter().map(|&side| u64::from(side)).product()
    }
}
