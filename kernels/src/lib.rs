//! Numeric ops of the trainer: each one has a plain `f64` reference, a fast CPU version and a candle op with its
//! backward pass. This is the only crate of the workspace that may use `unsafe`.

pub mod adamw;
pub mod allocator;
pub mod attention;
pub mod conv;
pub mod cross_entropy;
pub mod delta_rule;
mod disjoint;
mod documents;
pub mod dropout;
pub mod elements;
pub mod embedding;
mod error;
mod fast_math;
pub mod fp8;
mod frozen;
pub mod gemm;
pub mod gpu;
pub mod gpu_check;
pub mod grad_norm;
pub mod lora_linear;
pub mod moe;
pub mod nf4;
pub mod noise;
pub mod norm;
pub mod op;
pub mod rope;
pub mod seed;
pub mod self_test;
pub mod swiglu;
#[cfg(test)]
mod test_values;

pub use documents::{Document, Documents, GpuDocuments};
pub use error::{Error, Result};
pub use frozen::{FrozenWeight, Stored};
