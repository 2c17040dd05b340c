//! Compares the product with numbers made by transformers, PEFT and bitsandbytes: the model, the LoRA run, the QLoRA
//! runs and the checkpoints of bitsandbytes, through the product's own loading, step and optimiser.

mod fixture;
mod gpu;
mod measure;
mod model;
mod nf4;

pub use fixture::{Fixture, Golden, Tensors};
pub use measure::{Held, Report, share_of_maximum};

use std::path::Path;

use anyhow::Result;
use brightrun_kernels::gpu::Gpu;

/// Measures everything a fixture has numbers for.
pub fn measure(dir: &Path) -> Result<Report> {
    let fixture = Fixture::open(dir)?;
    let mut report = Report::default();
    model::base(&fixture, &mut report)?;
    model::lora(&fixture, &mut report)?;
    nf4::quantisation(&fixture, &mut report)?;
    nf4::runs(&fixture, &mut report)?;
    nf4::checkpoint(&fixture, &mut report)?;
    Ok(report)
}

/// The fixture's losses and its LoRA run on a GPU, which computes in bf16.
pub fn measure_on(gpu: &Gpu, dir: &Path) -> Result<Report> {
    gpu::measure(gpu, dir)
}
