//! A card, through CUDA's driver. The driver is looked for when a card is opened, so that programs start without one.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ffi::{CString, c_int, c_void},
};

use cudarc::driver::{DriverError, result, sys};

use super::arena::Arena;
use super::cublas::{Library, WORKSPACE};
use super::fatbins::FATBINS;
use super::{Argument, Backend, Facts, Kernel, LibraryProduct, Shape, Usage};
use crate::{Error, Result};

/// What a card keeps of its memory besides ours: the driver's own needs while kernels are loaded.
const RESERVE: u64 = 512 << 20;

/// A card.
pub(super) struct Card {
    facts: Facts,
    device: sys::CUdevice,
    stream: sys::CUstream,
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
            reason.push_str("; the kernels of this program are for other cards, or need a newer driver");
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
    match result::device::get_count().map_err(said(LOOKING))? {
        0 => Err(failed(LOOKING, "the driver knows no card")),
        count => Ok(count.unsigned_abs()),
    }
}

// === impl Card ===

impl Card {
    pub(super) fn open(number: u32, limit: Option<u64>) -> Result<Self> {
        const OPENING: &str = "opening the card";
        let cards = count()?;
        let ordinal = c_int::try_from(number).ok().filter(|_| number < cards);
        let ordinal = ordinal.ok_or_else(|| failed(OPENING, format!("card {number} of {cards}")))?;
        let device = result::device::get(ordinal).map_err(said(OPENING))?;
        // SAFETY: the device is one that the driver gave.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(said(OPENING))?;
        // SAFETY: the context was retained and is released when the card is closed.
        unsafe { result::ctx::set_current(context) }.map_err(said(OPENING))?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(said(OPENING))?;
        let facts = facts(device)?;
        let (free, _) = result::mem_get_info().map_err(said(OPENING))?;
        let most = (free as u64).saturating_sub(RESERVE);
        let size = limit.map_or(most, |limit| limit.min(most));
        let mut arena = Arena::new(size);
        // SAFETY: freed when the card is closed.
        let base = unsafe { result::malloc_sync(arena.size() as usize) }.map_err(said("taking the card's memory"))?;
        let library = arena.take(WORKSPACE).and_then(|at| Library::open(base + at));
        let (modules, functions) = (RefCell::default(), RefCell::default());
        Ok(Self { facts, device, stream, base, arena: RefCell::new(arena), library, modules, functions })
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
        Usage { now: arena.used(), peak: arena.peak() }
    }

    fn forget_peak(&self) {
        self.arena.borrow_mut().forget_peak();
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: a buffer's memory; from pageable memory the driver has read everything when it returns.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream) }.map_err(said("copying to the card"))
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: a buffer's memory; nobody has the slice until the stream has come to its end.
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream) }.map_err(said("copying from the card"))?;
        self.synchronize()
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: two buffers' memory.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }.map_err(said("copying on the card"))
    }

    fn fill(&self, at: u64, value: u8, bytes: usize) -> Result<()> {
        // SAFETY: a buffer's memory.
        unsafe { result::memset_d8_async(at, value, bytes, self.stream) }.map_err(said("filling memory of the card"))
    }

    fn launch(&self, kernel: &Kernel, shape: Shape, arguments: &[Argument]) -> Result<()> {
        let function = self.function(kernel)?;
        let mut values: Vec<u64> = arguments.iter().map(|argument| argument.bits).collect();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (shape.grid, shape.block);
        let shared = shape.shared as u32;
        // SAFETY: number and sizes of the arguments were compared with the kernel's, and their types with its declaration.
        let launched =
            unsafe { result::launch_kernel(function, (gx, gy, gz), (bx, by, bz), shared, self.stream, &mut pointers) };
        launched.map_err(said(kernel.name))
    }

    fn library_product(&self, product: &LibraryProduct) -> Result<bool> {
        self.library.as_ref().map_or(Ok(false), |library| library.product(product, self.stream))
    }

    fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is ours.
        unsafe { result::stream::synchronize(self.stream) }.map_err(said("waiting for the card"))
    }

    fn timed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        const TIMING: &str = "timing";
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(said(TIMING));
        let (start, end) = (event()?, event()?);
        // SAFETY: stream and events are ours, and the events are destroyed once.
        unsafe {
            result::event::record(start, self.stream).map_err(said(TIMING))?;
            let worked = work();
            result::event::record(end, self.stream).map_err(said(TIMING))?;
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
            let _ = result::stream::synchronize(self.stream);
            for &module in self.modules.borrow().values() {
                let _ = result::module::unload(module);
            }
            let _ = result::free_sync(self.base);
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
