//! The same numbers, made on a GPU.

use std::ops::RangeInclusive;

use half::bf16;

use crate::gpu::{Buffer, Gpu, Kernel, Shape};
use crate::{Error, Result};

const OP: &str = "noise";
const ADD_ROWS: Kernel = Kernel::new("noise_add_rows", "bf16*, const f32*, u64, i32, u64");
const UNIFORM: Kernel = Kernel::new("noise_uniform", "bf16*, u64, f32, u64");
const BYTES: Kernel = Kernel::new("noise_bytes", "u8*, u64, u32, u32, u64");

const THREADS: u32 = 256;
/// Blocks of a multiprocessor.
const BLOCKS: u32 = 8;

/// Adds `uniform(key, place) · magnitudes[row]` to every value of a matrix with so many rows.
pub fn add_rows(x: &mut Buffer<bf16>, magnitudes: &Buffer<f32>, key: u64) -> Result<()> {
    let (count, rows) = (x.len(), magnitudes.len());
    if rows == 0 || !count.is_multiple_of(rows) {
        return Err(Error::shape(OP, "values", format!("a multiple of {rows} rows"), count));
    }
    let width = i32::try_from(count / rows).map_err(|_| Error::invalid(OP, "rows are too long"))?;
    let gpu = x.gpu().clone();
    let arguments = [x.into(), magnitudes.into(), (count as u64).into(), width.into(), key.into()];
    gpu.launch(&ADD_ROWS, shape(&gpu, count), arguments)
}

/// `uniform(key, place) · limit` for so many places.
pub fn uniform_bf16(gpu: &Gpu, count: usize, limit: f32, key: u64) -> Result<Buffer<bf16>> {
    let mut out = gpu.empty(count)?;
    let arguments = [(&mut out).into(), (count as u64).into(), limit.into(), key.into()];
    gpu.launch(&UNIFORM, shape(gpu, count.div_ceil(8)), arguments)?;
    Ok(out)
}

/// Bytes of a range, each about as often as any other.
pub fn random_bytes(gpu: &Gpu, count: usize, range: RangeInclusive<u8>, key: u64) -> Result<Buffer<u8>> {
    if range.is_empty() {
        return Err(Error::invalid(OP, format!("no byte is in {range:?}")));
    }
    let mut out = gpu.empty(count)?;
    let (low, high) = (u32::from(*range.start()), u32::from(*range.end()));
    let arguments = [(&mut out).into(), (count as u64).into(), low.into(), high.into(), key.into()];
    gpu.launch(&BYTES, shape(gpu, count.div_ceil(8)), arguments)?;
    Ok(out)
}

fn shape(gpu: &Gpu, threads: usize) -> Shape {
    Shape::of(gpu.blocks(threads.div_ceil(THREADS as usize), BLOCKS), THREADS)
}
