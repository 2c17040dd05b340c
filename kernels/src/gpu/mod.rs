//! A GPU: its memory, and kernels that run on it.
//!
//! Behind a [`Gpu`] is a card, or an emulator on the processor that checks every access
//! (feature `emulation`). What an op does with a GPU, which kernels it launches on what and in which order, is written once
//! and does not know which of them it is.
//!
//! All that is asked of a `Gpu` happens in the order of the asking; results are there once they are downloaded.

#[cfg(feature = "emulation")]
mod emulated;
mod kernel;
mod memory;

use std::rc::Rc;

pub use kernel::{Argument, Kernel, Shape};
pub use memory::{Buffer, Element};

use crate::{Error, Result};

/// A GPU. Copies of it are the same one.
#[derive(Clone)]
pub struct Gpu(Rc<dyn Backend>);

/// What a GPU is like.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// What its kernels may use: 8.0, 9.0 and so on.
    pub capability: (u32, u32),
    /// Multiprocessors: so many blocks run at once at least.
    pub multiprocessors: u32,
    /// Shared memory that one block may have, in bytes.
    pub shared_per_block: usize,
    /// Shared memory of a multiprocessor, in bytes.
    pub shared_per_multiprocessor: usize,
    /// All of its memory, in bytes.
    pub memory: u64,
}

/// How much memory is in use, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Now.
    pub now: u64,
    /// At most, since the start or the last [`Gpu::forget_peak`].
    pub peak: u64,
}

/// What is behind a [`Gpu`]. Addresses are numbers; nobody reads through them on the host.
trait Backend {
    fn facts(&self) -> &Facts;
    /// Memory for so many bytes that nobody has written, at a multiple of 256.
    fn allocate(&self, bytes: usize, grain: usize) -> Result<u64>;
    fn release(&self, address: u64, bytes: usize);
    fn usage(&self) -> Usage;
    fn forget_peak(&self);
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;
    /// Waits for all that was asked before.
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()>;
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;
    fn fill(&self, at: u64, value: u8, bytes: usize) -> Result<()>;
    fn launch(&self, kernel: &Kernel, shape: Shape, arguments: &[Argument]) -> Result<()>;
    fn synchronize(&self) -> Result<()>;
    /// Seconds that the GPU takes for what `work` asks of it.
    fn timed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64>;
}

// === impl Gpu ===

impl Gpu {
    /// An emulated one. `seed` says in which order threads and blocks come where that is not certain; no result depends
    /// on it.
    #[cfg(feature = "emulation")]
    pub fn emulated(seed: u64) -> Self {
        Self::emulated_as(seed, |_| {})
    }

    /// An emulated one that says something else of itself, so that ops do what they do on such a card.
    #[cfg(feature = "emulation")]
    pub fn emulated_as(seed: u64, change: impl FnOnce(&mut Facts)) -> Self {
        let mut emulator = emulated::Emulator::new(seed);
        change(emulator.facts_mut());
        Self(Rc::new(emulator))
    }

    /// What it is like.
    pub fn facts(&self) -> &Facts {
        self.0.facts()
    }

    /// How much of its memory is in use.
    pub fn usage(&self) -> Usage {
        self.0.usage()
    }

    /// Counts the most that is in use from now on.
    pub fn forget_peak(&self) {
        self.0.forget_peak();
    }

    /// Memory for so many values that nobody has written.
    pub fn empty<T: Element>(&self, count: usize) -> Result<Buffer<T>> {
        Buffer::empty(self, count)
    }

    /// Memory full of zeros.
    pub fn zeros<T: Element>(&self, count: usize) -> Result<Buffer<T>> {
        let mut buffer = Buffer::empty(self, count)?;
        buffer.fill_zero()?;
        Ok(buffer)
    }

    /// Memory with these values.
    pub fn of<T: Element>(&self, values: &[T]) -> Result<Buffer<T>> {
        let mut buffer = Buffer::empty(self, values.len())?;
        buffer.upload(values)?;
        Ok(buffer)
    }

    /// Runs a kernel. Its arguments are compared with what it was declared to take.
    pub fn launch<const N: usize>(&self, kernel: &Kernel, shape: Shape, arguments: [Argument; N]) -> Result<()> {
        kernel.check(&arguments)?;
        if shape.blocks() == 0 {
            return Ok(());
        }
        let allowed = self.facts().shared_per_block;
        if shape.shared > allowed {
            let found = format!("{} bytes, and a block of {} has {allowed}", shape.shared, self.facts().name);
            return Err(Error::Gpu { what: kernel.name.into(), reason: format!("shared memory: {found}") });
        }
        self.0.launch(kernel, shape, &arguments)
    }

    /// Waits for all that was asked; what went wrong meanwhile is an error now.
    pub fn synchronize(&self) -> Result<()> {
        self.0.synchronize()
    }

    /// Seconds that the GPU takes for what `work` asks of it.
    pub fn timed(&self, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
        self.0.timed(&mut work)
    }

    /// Blocks that keep the whole GPU busy, so many on each multiprocessor, but no more than there is work for.
    pub fn blocks(&self, work: usize, on_each: u32) -> u32 {
        u32::try_from(work).unwrap_or(u32::MAX).min(self.facts().multiprocessors * on_each)
    }
}
