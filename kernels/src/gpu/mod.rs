//! A GPU: its memory, and kernels that run on it.
//!
//! Two things can be behind a [`Gpu`]: a card (feature `cuda`), or an emulator on the processor that checks every access
//! (feature `emulation`). What an op does with a GPU, which kernels it launches on what and in which order, is written once
//! and does not know which of them it is.
//!
//! All that is asked of a `Gpu` happens in the order of the asking, but for what is asked beside it ([`Gpu::beside`]); results
//! are there once they are downloaded.

pub mod arena;
#[cfg(feature = "cuda")]
mod cublas;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "emulation")]
mod emulated;
#[cfg(feature = "cuda")]
mod fatbins;
pub(crate) mod heads;
mod kernel;
mod lanes;
mod library;
mod memory;
pub(crate) mod pairs;
mod pinned;
pub(crate) mod rows;
#[cfg(feature = "cuda")]
mod streams;

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

#[cfg(feature = "cuda")]
pub use fatbins::{RESOURCES, Resources};
pub use kernel::{Argument, Kernel, Shape};
use lanes::Lanes;
pub use lanes::{Lane, Task};
pub use library::LibraryProduct;
pub use memory::{Buffer, Element, FrozenPart};
pub use pinned::HostBuffer;

use crate::{Error, Result};

/// A GPU. Copies of it are the same one.
#[derive(Clone)]
pub struct Gpu {
    backend: Rc<dyn Backend>,
    profile: Rc<RefCell<Option<Profile>>>,
    lanes: Rc<RefCell<Lanes>>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.facts().name)
    }
}

/// The time of each kernel.
type Profile = BTreeMap<&'static str, KernelTime>;

/// How often a kernel ran, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct KernelTime {
    /// Launches.
    pub launches: u64,
    /// Seconds of all of them.
    pub seconds: f64,
}

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
    /// Of the host, pinned, now: in none of the others.
    pub pinned: u64,
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
    /// Memory of the host that the GPU copies from and to by itself.
    fn allocate_host(&self, bytes: usize) -> Result<u64>;
    fn release_host(&self, address: u64, bytes: usize);
    /// Pinned memory, when nothing is under way.
    fn read_host(&self, from: u64, bytes: &mut [u8]) -> Result<()>;
    /// To pinned memory.
    fn copy_out(&self, from: u64, to: u64, bytes: usize) -> Result<()>;
    /// From pinned memory.
    fn copy_in(&self, from: u64, to: u64, bytes: usize) -> Result<()>;
    fn launch(&self, kernel: &Kernel, shape: Shape, arguments: &[Argument]) -> Result<()>;
    /// What is asked from now on is the lane's, after all that the main queue was asked.
    fn begin(&self, lane: Lane) -> Result<()>;
    /// What is asked from now on is the main queue's again; gives a mark of what the lane was asked until now.
    fn end(&self, lane: Lane) -> Result<u64>;
    /// The main queue, and whoever is asked now, waits for a mark of the lane.
    fn join(&self, lane: Lane, mark: u64) -> Result<()>;
    /// Whether the vendor's library computed the product; not where there is none.
    fn library_product(&self, _product: &LibraryProduct) -> Result<bool> {
        Ok(false)
    }
    /// Waits for the main queue and all lanes.
    fn synchronize(&self) -> Result<()>;
    /// Seconds that the GPU takes for what `work` asks of it.
    fn timed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64>;
}

// === impl Gpu ===

impl Gpu {
    #[cfg(any(feature = "cuda", feature = "emulation"))]
    fn with(backend: impl Backend + 'static) -> Self {
        Self { backend: Rc::new(backend), profile: Rc::default(), lanes: Rc::default() }
    }

    /// How many cards there are; an error that says why not where there are none that could be used.
    #[cfg(feature = "cuda")]
    pub fn cards() -> Result<u32> {
        cuda::count()
    }

    /// What a card is like, and how many bytes of its memory nobody has. Nothing of it is taken.
    #[cfg(feature = "cuda")]
    pub fn look(number: u32) -> Result<(Facts, u64)> {
        cuda::look(number)
    }

    /// A card. `limit` is how many bytes of its memory are taken, once and for all; without it, nearly all that is free.
    #[cfg(feature = "cuda")]
    pub fn open(number: u32, limit: Option<u64>) -> Result<Self> {
        Ok(Self::with(cuda::Card::open(number, limit)?))
    }

    /// An emulated one. `seed` says in which order threads and blocks come where that is not certain, and whether what is asked
    /// beside the main queue is done at once (even) or when somebody waits for it (odd); no result depends on it.
    #[cfg(feature = "emulation")]
    pub fn emulated(seed: u64) -> Self {
        Self::emulated_as(seed, |_| {})
    }

    /// An emulated one with something in place of the vendor's library, as cards have it.
    #[cfg(feature = "emulation")]
    pub fn emulated_with_library(seed: u64) -> Self {
        Self::with(emulated::Emulator::new(seed).with_library())
    }

    /// An emulated one that says something else of itself, so that ops do what they do on such a card.
    #[cfg(feature = "emulation")]
    pub fn emulated_as(seed: u64, change: impl FnOnce(&mut Facts)) -> Self {
        let mut emulator = emulated::Emulator::new(seed);
        change(emulator.facts_mut());
        Self::with(emulator)
    }

    /// One that runs no kernel, for what is asked of memory alone: every result is zero.
    #[cfg(feature = "emulation")]
    pub fn emulated_idle(change: impl FnOnce(&mut Facts)) -> Self {
        let mut emulator = emulated::Emulator::new(0).idle();
        change(emulator.facts_mut());
        Self::with(emulator)
    }

    /// What it is like.
    pub fn facts(&self) -> &Facts {
        self.backend.facts()
    }

    /// How much of its memory is in use.
    pub fn usage(&self) -> Usage {
        self.backend.usage()
    }

    /// Counts the most that is in use from now on.
    pub fn forget_peak(&self) {
        self.backend.forget_peak();
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

    /// Pinned memory of the host for so many values that nobody has written.
    pub fn pinned<T: Element>(&self, count: usize) -> Result<HostBuffer<T>> {
        HostBuffer::empty(self, count)
    }

    /// Runs a kernel. Its arguments are compared with what it was declared to take.
    pub fn launch(&self, kernel: &Kernel, shape: Shape, arguments: impl IntoIterator<Item = Argument>) -> Result<()> {
        let arguments: Vec<Argument> = arguments.into_iter().collect();
        kernel.check(&arguments)?;
        if shape.blocks() == 0 {
            return Ok(());
        }
        let allowed = self.facts().shared_per_block;
        if shape.shared > allowed {
            let found = format!("{} bytes, and a block of {} has {allowed}", shape.shared, self.facts().name);
            return Err(Error::Gpu { what: kernel.name.into(), reason: format!("shared memory: {found}") });
        }
        self.touch(kernel.name, arguments.iter().filter_map(Argument::memory))?;
        self.counted(kernel.name, || self.backend.launch(kernel, shape, &arguments))
    }

    /// Takes the time where that is asked for.
    fn counted<T>(&self, name: &'static str, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        if self.profile.borrow().is_none() {
            return work();
        }
        let mut done = None;
        let seconds = self.backend.timed(&mut || work().map(|result| done = Some(result)))?;
        if let Some(profile) = self.profile.borrow_mut().as_mut() {
            let time = profile.entry(name).or_default();
            time.launches += 1;
            time.seconds += seconds;
        }
        done.ok_or_else(|| Error::Gpu { what: name.into(), reason: "it was not timed".into() })
    }

    /// The time of each kernel that `work` launches, one by one: each waits for the one before, so the sum is more than `work`
    /// takes by itself.
    pub fn profiled(&self, work: impl FnOnce() -> Result<()>) -> Result<BTreeMap<&'static str, KernelTime>> {
        *self.profile.borrow_mut() = Some(Profile::new());
        let worked = work();
        let profile = self.profile.borrow_mut().take().unwrap_or_default();
        worked.map(|()| profile)
    }

    /// Whether the vendor's library computed the product: not where there is none, or where it has no way for these sizes.
    pub fn library_product(&self, product: &LibraryProduct) -> Result<bool> {
        // Its workspace is the main queue's.
        if !self.asks_main_queue() {
            return Ok(false);
        }
        self.touch("cuBLASLt", product.memory().into_iter())?;
        self.counted("cuBLASLt", || self.backend.library_product(product))
    }

    /// Waits for all that was asked; what went wrong meanwhile is an error now.
    pub fn synchronize(&self) -> Result<()> {
        self.backend.synchronize()?;
        self.all_joined();
        self.dropped_failure()
    }

    /// Seconds that the GPU takes for what `work` asks of it.
    pub fn timed(&self, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
        self.backend.timed(&mut work)
    }

    /// Blocks that keep the whole GPU busy, so many on each multiprocessor, but no more than there is work for.
    pub fn blocks(&self, work: usize, on_each: u32) -> u32 {
        u32::try_from(work).unwrap_or(u32::MAX).min(self.facts().multiprocessors * on_each)
    }
}
