//! The kernels, compiled for cards: `build.rs` has nvcc make one fat binary of each source file, and keeps what the
//! compiler said of each kernel.

/// The kernels of one source file.
pub(super) struct Fatbin {
    pub(super) file: &'static str,
    pub(super) kernels: &'static [&'static str],
    pub(super) bytes: &'static Aligned<[u8]>,
}

/// The driver reads words of eight bytes in it.
#[repr(C, align(64))]
pub(super) struct Aligned<T: ?Sized>(pub(super) T);

/// What a kernel takes of a card, by the compiler's report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// The kernel.
    pub kernel: &'static str,
    /// What it was compiled for: `sm_80` and so on.
    pub architecture: &'static str,
    /// Registers of a thread.
    pub registers: u32,
    /// Shared memory of fixed size, in bytes.
    pub shared: u32,
    /// Memory of a thread beside its registers, in bytes.
    pub stack: u32,
    /// Bytes that a thread moves out of its registers because they are too few, and back again.
    pub spills: u32,
}

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));
