//! Kernels for GPUs on the processor, for tests: what they would read and write wrongly, or in no certain order, is an error
//! with kernel, block and thread. `cuda/emulator/emulator.h` says what is seen and what is not.

use std::{
    cell::UnsafeCell,
    ffi::{CStr, CString, c_char, c_int, c_void},
    slice,
};

/// Longest message of a launch that went wrong.
const MESSAGE: usize = 512;

unsafe extern "C" {
    fn emulator_add(base: *mut c_void, bytes: usize, written: c_int);
    fn emulator_remove(base: *mut c_void);
    fn emulator_unwritten(base: *const c_void) -> usize;
    fn emulator_launch(
        kernel: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared_bytes: usize,
        arguments: *const *mut c_void,
        seed: u64,
        message: *mut c_char,
        length: usize,
    );
}

/// Numbers that any bytes are.
pub trait Plain: Copy + private::Sealed {}

mod private {
    pub trait Sealed {}
}

macro_rules! plain {
    ($($number:ty),*) => {
        $(impl private::Sealed for $number {}
        impl Plain for $number {})*
    };
}

plain!(u8, u16, u32, u64, i32, f32);

#[derive(Clone, Copy)]
#[repr(C, align(128))]
struct Line([u8; 128]);

/// Memory that kernels may reach. It belongs to the thread that made it.
pub struct Memory {
    lines: Box<[UnsafeCell<Line>]>,
    bytes: usize,
}

/// What a kernel is given.
pub enum Argument<'a> {
    /// An address.
    Memory(&'a Memory),
    /// A number.
    I32(i32),
    /// A number.
    U64(u64),
    /// A number.
    F32(f32),
}

/// How many threads there are, and how they are ordered.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block: whole warps, 1024 at most.
    pub block: [u32; 3],
    /// Bytes of `DYNAMIC_SHARED`.
    pub shared: usize,
    /// Which thread comes first, wherever that is not certain; 0 is the order of their numbers.
    pub seed: u64,
}

// === impl Memory ===

impl Memory {
    /// Memory with these values.
    pub fn of<T: Plain>(values: &[T]) -> Self {
        let memory = Self::new(size_of_val(values), true);
        // SAFETY: source and target have so many bytes, and the target is nobody else's yet.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), memory.base().cast(), memory.bytes) };
        memory
    }

    /// Memory for so many values that nobody has written: to read them before a kernel writes them is an error of the kernel.
    pub fn empty<T: Plain>(count: usize) -> Self {
        Self::new(count * size_of::<T>(), false)
    }

    fn new(bytes: usize, written: bool) -> Self {
        let line = || UnsafeCell::new(Line([0xff; 128]));
        let lines: Box<[_]> = (0..bytes.div_ceil(128).max(1)).map(|_| line()).collect();
        let memory = Self { lines, bytes };
        // SAFETY: the memory lives until it is removed, and has so many bytes.
        unsafe { emulator_add(memory.base(), bytes, c_int::from(written)) };
        memory
    }

    fn base(&self) -> *mut c_void {
        self.lines.as_ptr() as *mut c_void
    }

    /// The values in it.
    pub fn values<T: Plain>(&self) -> Vec<T> {
        // SAFETY: it has so many values, is aligned for all of them, every pattern of bits is one, and no kernel runs now:
        // launches are over when they return, and the memory stays with its thread.
        unsafe { slice::from_raw_parts(self.base().cast::<T>(), self.bytes / size_of::<T>()) }.to_vec()
    }

    /// How many of its bytes nobody has written.
    pub fn unwritten(&self) -> usize {
        // SAFETY: the address is only looked up.
        unsafe { emulator_unwritten(self.base()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the address is only looked up.
        unsafe { emulator_remove(self.base()) };
    }
}

/// Runs a kernel to its end. The caller names its arguments in its order and with its types; the error says what the kernel
/// did wrong, and where.
///
/// # Safety
///
/// The arguments are as many as the kernel has and of its types: as with a GPU, nobody can check that.
pub unsafe fn launch(kernel: &str, shape: Shape, arguments: &[Argument<'_>]) -> Result<(), String> {
    let name = CString::new(kernel).map_err(|error| error.to_string())?;
    let mut values: Vec<u64> = arguments.iter().map(Argument::bits).collect();
    let pointers: Vec<*mut c_void> = values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
    let mut message = [0u8; MESSAGE];
    // SAFETY: the arrays live until it returns; the arguments are as the caller promises.
    unsafe {
        emulator_launch(
            name.as_ptr(),
            shape.grid.as_ptr(),
            shape.block.as_ptr(),
            shape.shared,
            pointers.as_ptr(),
            shape.seed,
            message.as_mut_ptr().cast(),
            MESSAGE,
        );
    }
    let said = CStr::from_bytes_until_nul(&message).map_err(|error| error.to_string())?;
    if said.is_empty() { Ok(()) } else { Err(said.to_string_lossy().into_owned()) }
}

// === impl Argument ===

impl Argument<'_> {
    /// Its bytes, the first ones of eight.
    fn bits(&self) -> u64 {
        match self {
            Self::Memory(memory) => memory.base() as u64,
            Self::I32(value) => u64::from(value.cast_unsigned()),
            Self::U64(value) => *value,
            Self::F32(value) => u64::from(value.to_bits()),
        }
    }
}

#[cfg(test)]
mod tests;
