//! A GPU on the processor, for tests: what kernels would read and write wrongly, or in no certain order, is an error with
//! kernel, block and thread. `cuda/emulator/emulator.h` says what is seen and what is not.

use std::{
    cell::{Cell, UnsafeCell},
    collections::BTreeMap,
    ffi::{CStr, CString, c_char, c_void},
    time::Instant,
};

use half::bf16;

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
        Self { facts, seed, memory: std::cell::RefCell::default(), usage: Cell::default(), library: false }
    }

    pub(super) fn facts_mut(&mut self) -> &mut Facts {
        &mut self.facts
    }

    pub(super) fn with_library(self) -> Self {
        Self { library: true, ..self }
    }

    /// A matrix of bf16, row by row: what is between rows is not read.
    fn rows(&self, address: u64, rows: usize, columns: usize, stride: usize) -> Result<Vec<Vec<f32>>> {
        (0..rows)
            .map(|row| {
                let mut bytes = vec![0; 2 * columns];
                self.download(address + (2 * row * stride) as u64, &mut bytes)?;
                Ok(bytes.chunks_exact(2).map(|two| bf16::from_le_bytes([two[0], two[1]]).to_f32()).collect())
            })
            .collect()
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
        let Usage { now, peak } = self.usage.get();
        let now = now + bytes as u64;
        self.usage.set(Usage { now, peak: peak.max(now) });
        Ok(address)
    }

    fn release(&self, address: u64, bytes: usize) {
        self.memory.borrow_mut().remove(&address);
        let usage = self.usage.get();
        self.usage.set(Usage { now: usage.now - bytes as u64, ..usage });
    }

    fn usage(&self) -> Usage {
        self.usage.get()
    }

    fn forget_peak(&self) {
        let now = self.usage.get().now;
        self.usage.set(Usage { now, peak: now });
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

    fn fill(&self, at: u64, value: u8, bytes: usize) -> Result<()> {
        self.has(at, bytes)?;
        // SAFETY: so much is allocated there, and no kernel runs now.
        unsafe {
            std::ptr::write_bytes(at as *mut u8, value, bytes);
            emulator_written(at as *const c_void, bytes);
        }
        Ok(())
    }

    fn launch(&self, kernel: &Kernel, shape: Shape, arguments: &[Argument]) -> Result<()> {
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

    fn library_product(&self, product: &LibraryProduct) -> Result<bool> {
        if !self.library {
            return Ok(false);
        }
        let LibraryProduct { columns: [a_columns, b_columns], sizes: [m, n, k], strides, wide, .. } = *product;
        let side = |columns: bool, side: usize| if columns { (k, side) } else { (side, k) };
        let ((a_rows, a_width), (b_rows, b_width)) = (side(a_columns, m), side(b_columns, n));
        let a = self.rows(product.a, a_rows, a_width, strides[0])?;
        let b = self.rows(product.b, b_rows, b_width, strides[1])?;
        for row in 0..m {
            for column in 0..n {
                let of_a = |k: usize| if a_columns { a[k][row] } else { a[row][k] };
                let of_b = |k: usize| if b_columns { b[k][column] } else { b[column][k] };
                let sum = product.scale * (0..k).map(|k| of_a(k) * of_b(k)).sum::<f32>();
                let place = (row * n + column) as u64;
                if wide {
                    let mut old = [0; 4];
                    if product.add {
                        self.download(product.out + 4 * place, &mut old)?;
                    }
                    self.upload(product.out + 4 * place, &(f32::from_le_bytes(old) + sum).to_le_bytes())?;
                } else {
                    let mut old = [0; 2];
                    if product.add {
                        self.download(product.out + 2 * place, &mut old)?;
                    }
                    let sum = bf16::from_f32(bf16::from_le_bytes(old).to_f32() + sum);
                    self.upload(product.out + 2 * place, &sum.to_le_bytes())?;
                }
            }
        }
        Ok(true)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn timed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    }
}

#[cfg(test)]
mod tests;
