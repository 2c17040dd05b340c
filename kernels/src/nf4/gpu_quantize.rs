//! Values in a GPU's memory to NF4, byte for byte as [`Nf4Matrix::quantize`](super::Nf4Matrix::quantize) does it.

use half::bf16;

use super::{BLOCK, DynamicMap, GpuNf4, GpuScales, NESTED_BLOCK, OP, count, dynamic_map, mean};
use crate::gpu::{Buffer, Gpu, Kernel, Shape};
use crate::{Error, Result};

const QUANTIZE_BF16: Kernel = Kernel::new("nf4_quantize_bf16", "const bf16*, u64, i32, u8*, f32*, u32*");
const QUANTIZE_F32: Kernel = Kernel::new("nf4_quantize_f32", "const f32*, u64, i32, u8*, f32*, u32*");
const MEAN_GROUPS: Kernel = Kernel::new("nf4_mean_groups", "const f32*, i32, i32, f32*");
const MEAN: Kernel = Kernel::new("nf4_mean", "const f32*, i32, i32, const f32*, f32*");
const NESTED: Kernel = Kernel::new("nf4_nested", "const f32*, i32, const f32*, const f32*, u8*, f32*");

/// Threads of a block, blocks of a multiprocessor, and values of a thread.
const THREADS: u32 = 256;
const BLOCKS: u32 = 8;
const VALUES: usize = 8;

/// What is to be quantised.
#[derive(Debug, Clone, Copy)]
pub enum GpuValues<'a> {
    /// In bf16.
    Bf16(&'a Buffer<bf16>),
    /// In `f32`.
    F32(&'a Buffer<f32>),
}

// === impl GpuNf4 ===

impl GpuNf4 {
    /// Quantises a row-major matrix, with or without double quantisation. Values must be finite: the number of blocks where
    /// one is not is added to `damaged`.
    ///
    /// With double quantisation it waits for the GPU, since the host keeps the mean of the scales.
    pub fn quantize(
        values: GpuValues<'_>,
        rows: usize,
        columns: usize,
        double_quant: bool,
        damaged: &mut Buffer<u32>,
    ) -> Result<Self> {
        let count = count(rows, columns)?;
        damaged.expect(OP, "number of damaged blocks", 1)?;
        let gpu = damaged.gpu().clone();
        let mut packed = gpu.empty(count.div_ceil(2))?;
        let mut absmax = gpu.empty(count.div_ceil(BLOCK))?;
        let shape = Shape::of(gpu.blocks(count.div_ceil(VALUES).div_ceil(THREADS as usize), BLOCKS), THREADS);
        let aligned = |address: u64| i32::from(address.is_multiple_of(16)).into();
        let (number, to, scales) = ((count as u64).into(), (&mut packed).into(), (&mut absmax).into());
        match values {
            GpuValues::Bf16(values) => {
                values.expect(OP, "values", count)?;
                let arguments = [values.into(), number, aligned(values.address()), to, scales, damaged.into()];
                gpu.launch(&QUANTIZE_BF16, shape, arguments)?;
            }
            GpuValues::F32(values) => {
                values.expect(OP, "values", count)?;
                let arguments = [values.into(), number, aligned(values.address()), to, scales, damaged.into()];
                gpu.launch(&QUANTIZE_F32, shape, arguments)?;
            }
        }
        let scales = if double_quant { double(&gpu, &absmax)? } else { GpuScales::Plain(absmax) };
        Ok(Self::from_parts(rows, columns, packed, scales))
    }
}

/// Quantises the scales themselves.
fn double(gpu: &Gpu, absmax: &Buffer<f32>) -> Result<GpuScales> {
    let offset = mean_of(absmax)?;
    let blocks = absmax.len().div_ceil(NESTED_BLOCK);
    let mut codes = gpu.empty(absmax.len())?;
    let mut nested = gpu.empty(blocks)?;
    let limits = gpu.of(DynamicMap::signed().search().0)?;
    let shape = Shape::of(u32::try_from(blocks).unwrap_or(u32::MAX), NESTED_BLOCK as u32);
    let number = whole(absmax.len())?.into();
    let arguments =
        [absmax.into(), number, (&offset).into(), (&limits).into(), (&mut codes).into(), (&mut nested).into()];
    gpu.launch(&NESTED, shape, arguments)?;
    let offset = offset.download()?[0];
    Ok(GpuScales::Double { codes, nested, map: gpu.of(dynamic_map())?, offset })
}

/// The mean of values, as [`mean::mean`] rounds it.
pub(crate) fn mean_of(values: &Buffer<f32>) -> Result<Buffer<f32>> {
    let gpu = values.gpu();
    let rows = values.len() / mean::WIDTH;
    let power = mean::group_power(rows);
    let groups = rows.div_ceil(1 << power);
    let mut sums = gpu.empty::<f32>(groups * mean::WIDTH)?;
    let mut mean = gpu.empty::<f32>(1)?;
    // A group is a warp's.
    let shape = Shape::of(gpu.blocks(groups.div_ceil(THREADS as usize / 32), BLOCKS), THREADS);
    gpu.launch(&MEAN_GROUPS, shape, [values.into(), whole(rows)?.into(), (1i32 << power).into(), (&mut sums).into()])?;
    let (number, power) = (whole(values.len())?.into(), power.cast_signed().into());
    gpu.launch(&MEAN, Shape::of(1, 32), [values.into(), number, power, (&sums).into(), (&mut mean).into()])?;
    Ok(mean)
}

fn whole(size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| Error::invalid(OP, "more blocks than a kernel counts"))
}
