//! A GPU on the processor, for tests: what kernels would read and write wrongly, or in no certain order, is an error with
//! kernel, block and thread. `cuda/emulator/emulator.h` says what is seen and what is not.

use std::{
    cell::{Cell, UnsafeCell},
    collections::BTreeMap,
    ffi::{CStr, CString, c_char, c_void},
    time::Instant,
};

use self::late::{Asked, Late};
use super::arena::rounded;
use super::lanes::Lane;
use super::{Argument, Backend, Facts, Kernel, LibraryProduct, Shape, Usage};
use crate::{Error, Result};

/// Longest message of a launch that went wrong.
const MESSAGE: usize = 512;

unsafe extern "C" {
    fn emulator_add(base: *mut c_void, bytes: usize, grain: usize);
    fn emulator_remove(base: *mut c_void);
    fn emulator_written(at: *const c_void, bytes: usize);
    fn emulator_unwritten(at: *const c_void, bytes: usize) -> usize;
    fn emulator_launch(
        kernel: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared_bytes: usize,
        signature: *const c_char,
        arguments: *const *mut c_void,
        bytes: *const usize,
        count: usize,
        seed: u64,
        message: *mut c_char,
        length: usize,
    );
}

#[derive(Clone, Copy)]
#[repr(C, align(256))]
struct Line([u8; 256]);

/// Memory that kernels may reach.
struct Memory {
    lines: Box<[UnsafeCell<Line>]>,
}

/// The emulator. Its memory belongs to the thread that made it, and it cannot leave that thread.
pub(super) struct Emulator {
    facts: Facts,
    seed: u64,
    memory: std::cell::RefCell<BTreeMap<u64, Memory>>,
    usage: Cell<Usage>,
    /// Whether there is something in place of the vendor's library.
    library: bool,
    /// Whether kernels are left out, and zeros are what they leave.
    idle: bool,
    /// What lanes were asked and have not done.
    late: Late,
}

// === impl Memory ===

impl Memory {
    fn new(bytes: usize, grain: usize) -> Self {
        let lines: Box<[_]> = (0..bytes.div_ceil(256).max(1)).map(|_| UnsafeCell::new(Line([0xff; 256]))).collect();
        let memory = Self { lines };
        // SAFETY: the memory lives until it is removed, and has so many bytes.
        unsafe { emulator_add(memory.base(), bytes, grain) };
        memory
    }

    fn base(&self) -> *mut c_void {
        self.lines.as_ptr() as *mut c_void
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the address is only looked up.
        unsafe { emulator_remove(self.base()) };
    }
}

// === impl Emulator ===

impl Emulator {
    pub(super) fn new(seed: u64) -> Self {
        // Few multiprocessors, so that blocks come round several times; the smallest shared memory of the cards that are
        // meant, so that no kernel takes more.
        let facts = Facts {
            name: "emulated GPU".into(),
            capability: (8, 0),
            multiprocessors: 3,
            shared_per_block: 99 << 10,
            shared_per_multiprocessor: 100 << 10,
            memory: 1 << 30,
        };
        let (memory, usage, late) = (std::cell::RefCell::default(), Cell::default(), Late::new(seed % 2 == 1));
        Self { facts, seed, memory, usage, library: false, idle: false, late }
    }

    pub(super) fn facts_mut(&mut self) -> &mut Facts {
        &mut self.facts
    }

    pub(super) fn with_library(self) -> Self {
        Self { library: true, ..self }
    }

    pub(super) fn idle(self) -> Self {
        Self { idle: true, ..self }
    }

    /// Whether all of it is memory of one allocation.
    fn has(&self, address: u64, bytes: usize) -> Result<()> {
        let memory = self.memory.borrow();
        let found = memory.range(..=address).next_back();
        match found {
            Some((base, memory)) if address + bytes as u64 <= base + (memory.lines.len() * 256) as u64 => Ok(()),
            _ => Err(failed("copy", "memory that nobody has allocated")),
        }
    }

    /// Does it now, or notes that a lane was asked.
    fn ask(&self, asked: Asked) -> Result<()> {
        self.late.note(asked).map_or(Ok(()), |asked| self.run(asked))
    }

    fn run(&self, asked: Asked) -> Result<()> {
        match asked {
            Asked::Copy { from, to, bytes } => self.run_copy(from, to, bytes),
            Asked::Fill { at, value, bytes } => self.run_fill(at, value, bytes),
            Asked::Launch { kernel, shape, arguments } => self.run_kernel(&kernel, shape, &arguments),
        }
    }

    fn run_copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.has(from, bytes)?;
        self.has(to, bytes)?;
        // SAFETY: so much is allocated at both places, and no kernel runs now.
        unsafe {
            if emulator_unwritten(from as *const c_void, bytes) > 0 {
                return Err(failed("copy", "some of it was never written"));
            }
            std::ptr::copy(from as *const u8, to as *mut u8, bytes);
            emulator_written(to as *const c_void, bytes);
        }
        Ok(())
    }

    fn run_fill(&self, at: u64, value: u8, bytes: usize) -> Result<()> {
        self.has(at, bytes)?;
        // SAFETY: so much is allocated there, and no kernel runs now.
        unsafe {
            std::ptr::write_bytes(at as *mut u8, value, bytes);
            emulator_written(at as *const c_void, bytes);
        }
        Ok(())
    }

    fn run_kernel(&self, kernel: &Kernel, shape: Shape, arguments: &[Argument]) -> Result<()> {
        if self.idle {
            return Ok(());
        }
        let name = CString::new(kernel.name).map_err(|error| failed(kernel.name, error.to_string()))?;
        let signature = CString::new(kernel.arguments).map_err(|error| failed(kernel.name, error.to_string()))?;
        let mut values: Vec<u64> = arguments.iter().map(|argument| argument.bits).collect();
        let pointers: Vec<*mut c_void> = values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let reach: Vec<usize> = arguments.iter().map(|argument| argument.reach.unwrap_or(usize::MAX)).collect();
        let mut message = [0u8; MESSAGE];
        // SAFETY: the arrays live until it returns and have `arguments.len()` entries; the kernel's own types are compared
        // with the signature, and the arguments were compared with that.
        unsafe {
            emulator_launch(
                name.as_ptr(),
                shape.grid.as_ptr(),
                shape.block.as_ptr(),
                shape.shared,
                signature.as_ptr(),
                pointers.as_ptr(),
                reach.as_ptr(),
                arguments.len(),
                self.seed,
                message.as_mut_ptr().cast(),
                MESSAGE,
            );
        }
        let said = CStr::from_bytes_until_nul(&message).map_err(|error| failed(kernel.name, error.to_string()))?;
        if said.is_empty() { Ok(()) } else { Err(failed("emulated GPU", said.to_string_lossy())) }
    }
}

fn failed(what: &str, reason: impl Into<String>) -> Error {
    Error::Gpu { what: what.into(), reason: reason.into() }
}

impl Backend for Emulator {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn allocate(&self, bytes: usize, grain: usize) -> Result<u64> {
        let memory = Memory::new(bytes, grain);
        let address = memory.base() as u64;
        self.memory.borrow_mut().insert(address, memory);
        if self.idle {
            self.run_fill(address, 0, bytes)?;
        }
        let usage = self.usage.get();
        // As a card's arena counts it.
        let now = usage.now + rounded(bytes as u64);
        self.usage.set(Usage { now, peak: usage.peak.max(now), ..usage });
        Ok(address)
    }

    fn release(&self, address: u64, bytes: usize) {
        self.memory.borrow_mut().remove(&address);
        let usage = self.usage.get();
        self.usage.set(Usage { now: usage.now - rounded(bytes as u64), ..usage });
    }

    fn usage(&self) -> Usage {
        self.usage.get()
    }

    fn forget_peak(&self) {
        let usage = self.usage.get();
        self.usage.set(Usage { peak: usage.now, ..usage });
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.has(to, bytes.len())?;
        // SAFETY: so much is allocated there, no kernel runs now, and the host's slice is not of it.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len());
            emulator_written(to as *const c_void, bytes.len());
        }
        Ok(())
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.has(from, bytes.len())?;
        // SAFETY: so much is allocated there, no kernel runs now, and the host's slice is not of it.
        let unwritten = unsafe { emulator_unwritten(from as *const c_void, bytes.len()) };
        if unwritten > 0 {
            return Err(failed("download", format!("{unwritten} of {} bytes were never written", bytes.len())));
        }
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.ask(Asked::Copy { from, to, bytes })
    }

    fn fill(&self, at: u64, value: u8, bytes: usize) -> Result<()> {
        self.ask(Asked::Fill { at, value, bytes })
    }

    fn allocate_host(&self, bytes: usize) -> Result<u64> {
        let memory = Memory::new(bytes, 1);
        let address = memory.base() as u64;
        self.memory.borrow_mut().insert(address, memory);
        let usage = self.usage.get();
        self.usage.set(Usage { pinned: usage.pinned + bytes as u64, ..usage });
        Ok(address)
    }

    fn release_host(&self, address: u64, bytes: usize) {
        self.memory.borrow_mut().remove(&address);
        let usage = self.usage.get();
        self.usage.set(Usage { pinned: usage.pinned - bytes as u64, ..usage });
    }

    fn read_host(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.download(from, bytes)
    }

    fn copy_out(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.copy(from, to, bytes)
    }

    fn copy_in(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.copy(from, to, bytes)
    }

    fn launch(&self, kernel: &Kernel, shape: Shape, arguments: &[Argument]) -> Result<()> {
        self.ask(Asked::Launch { kernel: *kernel, shape, arguments: arguments.to_vec() })
    }

    fn begin(&self, lane: Lane) -> Result<()> {
        self.late.begin(lane);
        Ok(())
    }

    fn end(&self, _lane: Lane) -> Result<u64> {
        Ok(self.late.end())
    }

    fn join(&self, lane: Lane, mark: u64) -> Result<()> {
        while let Some(asked) = self.late.next(lane, mark) {
            self.run(asked)?;
        }
        Ok(())
    }

    fn library_product(&self, product: &LibraryProduct) -> Result<bool> {
        if self.library {
            self.multiply(product)?;
        }
        Ok(self.library)
    }

    fn synchronize(&self) -> Result<()> {
        Lane::ALL.into_iter().try_for_each(|lane| self.join(lane, u64::MAX))
    }

    fn timed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    }
}

mod late;
mod library;
#[cfg(test)]
mod tests;
