//! The cards of this machine that a run can compute on.

use brightrun_kernels::gpu::Gpu;

use crate::Result;

pub use brightrun_kernels::gpu_check::FAMILIES as OPS;

/// A card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its number among those of the machine, from 0.
    pub number: u32,
    /// As its driver calls it.
    pub name: String,
    /// Memory that nobody has yet, in bytes.
    pub free: u64,
}

/// The card of this number as it is now; an error that says why where there is none to be used.
#[cfg(feature = "cuda")]
pub fn look(number: u32) -> Result<Card> {
    let (facts, free) = Gpu::look(number)?;
    Ok(Card { number, name: facts.name, free })
}

/// The card of this number as it is now; an error that says why where there is none to be used.
#[cfg(not(feature = "cuda"))]
pub fn look(_number: u32) -> Result<Card> {
    without().map_err(crate::Error::from)
}

/// Takes a card, with nearly all memory that it has.
#[cfg(feature = "cuda")]
pub fn open(number: u32) -> brightrun_kernels::Result<Gpu> {
    Gpu::open(number, None)
}

/// Takes a card, with nearly all memory that it has.
#[cfg(not(feature = "cuda"))]
pub fn open(_number: u32) -> brightrun_kernels::Result<Gpu> {
    without()
}

#[cfg(not(feature = "cuda"))]
fn without<T>() -> brightrun_kernels::Result<T> {
    let reason = "this program was built without the feature `cuda`, and computes on the processor".to_owned();
    Err(brightrun_kernels::Error::Gpu { what: "no CUDA device".to_owned(), reason })
}
