//! What the benchmarks share: random checkpoints of any shape, and this process's memory.
#![forbid(unsafe_code)]

pub mod random_base;
pub mod resident;
