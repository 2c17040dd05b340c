//! A card, through CUDA's driver. The driver is looked for when a card is opened, so that programs start without one.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ffi::{CString, c_int, c_void},
};

use cudarc::driver::{DriverError, result, sys};

use super::arena::Arena;
use super::cublas::{Library, WORKSPACE};
use super::fatbins::{COMPILED_BY, FATBINS};
use super::lanes::Lane;
use super::streams::Streams;
use super::{Argument, Backend, Facts, Kernel, LibraryProduct, Shape, Usage};
use crate::{Error, Result};

/// What a card keeps of its memory besides ours: the driver's own needs while kernels are loaded.
const RESERVE: u64 = 512 << 20;

/// The oldest CUDA that a driver can be of, as it counts (12080 is 12.8): the one that has all functions that are called, or the
/// first of the compiler's major version, whose machine code older drivers do not load.
const OLDEST_DRIVER: u32 = if COMPILED_BY < 13000 { 12080 } else { COMPILED_BY / 1000 * 1000 };

/// A card.
pub(super) struct Card {
    facts: Facts,
    device: sys::CUdevice,
    streams: Streams,
    /// Bytes of pinned memory.
    pinned: Cell<u64>,
    base: u64,
    arena: RefCell<Arena>,
    library: Option<Library>,
    modules: RefCell<BTreeMap<&'static str, sys::CUmodule>>,
    functions: RefCell<BTreeMap<&'static str, sys::CUfunction>>,
}

fn failed(what: &str, reason: impl Into<String>) -> Error {
    Error::Gpu { what: what.into(), reason: reason.into() }
}

/// What the driver says went wrong, in its own words.
fn said(what: &str) -> impl Fn(DriverError) -> Error {
    move |error| {
        let text = |found: std::result::Result<&std::ffi::CStr, DriverError>| {
            found.map_or_else(|_| "an unknown error".to_owned(), |text| text.to_string_lossy().into_owned())
        };
        let name = text(error.error_name());
        let mut reason = format!("{} ({name})", text(error.error_string()));
        if error.0 == sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU {
            reason.push_str("; the kernels of this program are for other cards");
        }
        failed(what, reason)
    }
}

/// How many cards there are; why not where there are none.
pub(super) fn count() -> Result<u32> {
    const LOOKING: &str = "no CUDA device";
    // SAFETY: the library is only looked for.
    if !unsafe { sys::is_culib_present() } {
        return Err(failed(LOOKING, "NVIDIA's driver is not installed here (no libcuda.so.1)"));
    }
    result::init().map_err(said(LOOKING))?;
    let mut version = 0;
    // SAFETY: one number that the driver writes.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(said(LOOKING))?;
    if version.unsigned_abs() < OLDEST_DRIVER {
        let [known, needed] =
            [version.unsigned_abs(), OLDEST_DRIVER].map(|of| format!("{}.{}", of / 1000, of % 1000 / 10));
        let reason =
            format!("NVIDIA's driver here is of CUDA {known}, and this program needs one of CUDA {needed} or newer");
        return Err(failed(LOOKING, reason));
    }
    match result::device::get_count().map_err(said(LOOKING))? {
        0 => Err(failed(LOOKING, "the driver knows no card")),
        count => Ok(count.unsigned_abs()),
    }
}

const OPENING: &str = "opening the card";

/// The card of this number, whose context is this thread's from now on and has to be released.
fn enter(number: u32) -> Result<sys::CUdevice> {
    let cards = count()?;
    let ordinal = c_int::try_from(number).ok().filter(|_| number < cards);
    let ordinal =
        ordinal.ok_or_else(|| failed(OPENING, format!("card {number} of {cards}, which are counted from 0")))?;
    let device = result::device::get(ordinal).map_err(said(OPENING))?;
    // SAFETY: the device is one that the driver gave.
    let context = unsafe { result::primary_ctx::retain(device) }.map_err(said(OPENING))?;
    // SAFETY: the context was retained and is released by whoever asked.
    unsafe { result::ctx::set_current(context) }.map_err(said(OPENING))?;
    Ok(device)
}

/// What a card is like, and how many bytes of its memory are free.
pub(super) fn look(number: u32) -> Result<(Facts, u64)> {
    let device = enter(number)?;
    let found = facts(device).and_then(|facts| {
        let (free, _) = result::mem_get_info().map_err(said(OPENING))?;
        Ok((facts, free as u64))
    });
    // SAFETY: it was retained above.
    unsafe { result::primary_ctx::release(device) }.map_err(said(OPENING))?;
    found
}

// === impl Card ===

impl Card {
    pub(super) fn open(number: u32, limit: Option<u64>) -> Result<Self> {
        let device = enter(number)?;
        let streams = Streams::open().map_err(said(OPENING))?;
        let facts = facts(device)?;
        let (free, _) = result::mem_get_info().map_err(said(OPENING))?;
        let most = (free as u64).saturating_sub(RESERVE);
        let size = limit.map_or(most, |limit| limit.min(most));
        let mut arena = Arena::new(size);
        // SAFETY: freed when the card is closed.
        let base = unsafe { result::malloc_sync(arena.size() as usize) }.map_err(said("taking the card's memory"))?;
        let library = arena.take(WORKSPACE).and_then(|at| Library::open(base + at));
        let (modules, functions) = (RefCell::default(), RefCell::default());
        let (arena, pinned) = (RefCell::new(arena), Cell::new(0));
        Ok(Self { facts, device, streams, pinned, base, arena, library, modules, functions })
    }

    /// The kernel on this card, loaded when it is first asked for.
    fn function(&self, kernel: &Kernel) -> Result<sys::CUfunction> {
        if let Some(&function) = self.functions.borrow().get(kernel.name) {
            return Ok(function);
        }
        let fatbin = FATBINS.iter().find(|fatbin| fatbin.kernels.contains(&kernel.name));
        let fatbin = fatbin.ok_or_else(|| failed(kernel.name, "there is no such kernel"))?;
        let known = self.modules.borrow().get(fatbin.file).copied();
        let module = match known {
            Some(module) => module,
            None => {
                // SAFETY: a whole fat binary, as nvcc wrote it, aligned for its header.
                let module = unsafe { result::module::load_data(fatbin.bytes.0.as_ptr().cast::<c_void>()) };
                let module = module.map_err(said(fatbin.file))?;
                self.modules.borrow_mut().insert(fatbin.file, module);
                module
            }
        };
        let name = CString::new(kernel.name).map_err(|error| failed(kernel.name, error.to_string()))?;
        // SAFETY: the module is loaded, and stays so.
        let function = unsafe { result::module::get_function(module, name) }.map_err(said(kernel.name))?;
        self.compare(kernel, function)?;
        self.allow_shared(kernel, function)?;
        self.functions.borrow_mut().insert(kernel.name, function);
        Ok(function)
    }

    /// Number and sizes of the arguments are those that the kernel was compiled with.
    fn compare(&self, kernel: &Kernel, function: sys::CUfunction) -> Result<()> {
        let mut sizes = Vec::new();
        loop {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: two numbers that the driver writes; an index beyond the last one is an error that ends the loop.
            let found = unsafe { sys::cuFuncGetParamInfo(function, sizes.len(), &mut offset, &mut size) };
            if found != sys::CUresult::CUDA_SUCCESS {
                break;
            }
            sizes.push(size);
        }
        let declared: Vec<usize> = kernel.sizes().collect();
        if sizes == declared { Ok(()) } else { Err(Error::shape(kernel.name, "sizes of arguments", sizes, declared)) }
    }

    /// Lets the kernel have all the shared memory that a block can have.
    fn allow_shared(&self, kernel: &Kernel, function: sys::CUfunction) -> Result<()> {
        use sys::CUfunction_attribute_enum::{
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as FIXED,
        };
        // SAFETY: the function is loaded.
        let fixed = unsafe { result::function::get_function_attribute(function, FIXED) }.map_err(said(kernel.name))?;
        let most = self.facts.shared_per_block as c_int - fixed;
        // SAFETY: the function is loaded.
        unsafe { result::function::set_function_attribute(function, DYNAMIC, most) }.map_err(said(kernel.name))
    }
}

fn facts(device: sys::CUdevice) -> Result<Facts> {
    use sys::CUdevice_attribute as Attribute;
    const ASKING: &str = "asking the card what it is";
    let attribute = |attribute: Attribute| -> Result<u32> {
        // SAFETY: the device is one that the driver gave.
        let value = unsafe { result::device::get_attribute(device, attribute) }.map_err(said(ASKING))?;
        Ok(value.unsigned_abs())
    };
    // SAFETY: the device is one that the driver gave.
    let memory = unsafe { result::device::total_mem(device) }.map_err(said(ASKING))? as u64;
    Ok(Facts {
        name: result::device::get_name(device).map_err(said(ASKING))?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        shared_per_multiprocessor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?
            as usize,
        memory,
    })
}

impl Backend for Card {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn allocate(&self, bytes: usize, _grain: usize) -> Result<u64> {
        let mut arena = self.arena.borrow_mut();
        arena.take(bytes as u64).map(|at| self.base + at).ok_or_else(|| Error::OutOfGpuMemory {
            wanted: bytes as u64,
            used: arena.used(),
            size: arena.size(),
            gap: arena.longest_gap(),
        })
    }

    // What is given out again at once is written in the order of the asking, as everything is.
    fn release(&self, address: u64, bytes: usize) {
        self.arena.borrow_mut().give(address - self.base, bytes as u64);
    }

    fn usage(&self) -> Usage {
        let arena = self.arena.borrow();
        Usage { now: arena.used(), peak: arena.peak(), pinned: self.pinned.get() }
    }

    fn forget_peak(&self) {
        self.arena.borrow_mut().forget_peak();
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: a buffer's memory; from pageable memory the driver has read everything when it returns.
        unsafe { result::memcpy_htod_async(to, bytes, self.streams.main()) }.map_err(said("copying to the card"))
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        let main = self.streams.main();
        // SAFETY: a buffer's memory; nobody has the slice until the stream has come to its end, which is ours.
        unsafe { result::memcpy_dtoh_async(bytes, from, main).and_then(|()| result::stream::synchronize(main)) }
            .map_err(said("copying from the card"))
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: two buffers' memory.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.streams.current()) }
            .map_err(said("copying on the card"))
    }

    fn fill(&self, at: u64, value: u8, bytes: usize) -> Result<()> {
        // SAFETY: a buffer's memory.
        unsafe { result::memset_d8_async(at, value, bytes, self.streams.current()) }
            .map_err(said("filling memory of the card"))
    }

    fn allocate_host(&self, bytes: usize) -> Result<u64> {
        // SAFETY: what is in it is any bytes, and nobody reads it before something was copied there.
        let address = unsafe { result::malloc_host(bytes.max(1), 0) }.map_err(said("pinning memory of the host"))?;
        self.pinned.set(self.pinned.get() + bytes as u64);
        Ok(address as u64)
    }

    fn release_host(&self, address: u64, bytes: usize) {
        self.pinned.set(self.pinned.get() - bytes as u64);
        // SAFETY: it is ours, and nobody uses it any more. What fails now leaves it pinned, and nothing else.
        let _ = unsafe { result::free_host(address as *mut c_void) };
    }

    fn read_host(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: pinned memory of so many bytes; nothing is under way, and the slice is not of it.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn copy_out(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: a buffer's memory and pinned memory, which nobody frees before the lane is done.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to as *mut c_void, from, bytes, self.streams.current()) }
            .result()
            .map_err(said("copying to pinned memory"))
    }

    fn copy_in(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: pinned memory and a buffer's, which nobody frees before the lane is done.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to, from as *const c_void, bytes, self.streams.current()) }
            .result()
            .map_err(said("copying from pinned memory"))
    }

    fn begin(&self, lane: Lane) -> Result<()> {
        self.streams.begin(lane).map_err(said("going beside the main queue"))
    }

    fn end(&self, lane: Lane) -> Result<u64> {
        self.streams.end(lane).map_err(said("coming back to the main queue"))
    }

    fn join(&self, _lane: Lane, mark: u64) -> Result<()> {
        self.streams.join(mark).map_err(said("waiting for what is beside the main queue"))
    }

    fn launch(&self, kernel: &Kernel, shape: Shape, arguments: &[Argument]) -> Result<()> {
        let function = self.function(kernel)?;
        let mut values: Vec<u64> = arguments.iter().map(|argument| argument.bits).collect();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (shape.grid, shape.block);
        let (shared, stream) = (shape.shared as u32, self.streams.current());
        // SAFETY: number and sizes of the arguments were compared with the kernel's, and their types with its declaration.
        let launched =
            unsafe { result::launch_kernel(function, (gx, gy, gz), (bx, by, bz), shared, stream, &mut pointers) };
        launched.map_err(said(kernel.name))
    }

    fn library_product(&self, product: &LibraryProduct) -> Result<bool> {
        self.library.as_ref().map_or(Ok(false), |library| library.product(product, self.streams.main()))
    }

    fn synchronize(&self) -> Result<()> {
        self.streams.synchronize().map_err(said("waiting for the card"))
    }

    fn timed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        const TIMING: &str = "timing";
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(said(TIMING));
        let (start, end, stream) = (event()?, event()?, self.streams.current());
        // SAFETY: stream and events are ours, and the events are destroyed once.
        unsafe {
            result::event::record(start, stream).map_err(said(TIMING))?;
            let worked = work();
            result::event::record(end, stream).map_err(said(TIMING))?;
            result::event::synchronize(end).map_err(said(TIMING))?;
            let milliseconds = result::event::elapsed(start, end).map_err(said(TIMING));
            result::event::destroy(start).map_err(said(TIMING))?;
            result::event::destroy(end).map_err(said(TIMING))?;
            worked?;
            Ok(f64::from(milliseconds?) / 1e3)
        }
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        self.library = None;
        // SAFETY: all of it is ours, and nobody uses it any more. What fails now is lost with the process.
        unsafe {
            let _ = self.streams.synchronize();
            for &module in self.modules.borrow().values() {
                let _ = result::module::unload(module);
            }
            let _ = result::free_sync(self.base);
            self.streams.close();
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
