//! What a GPU does to every value by itself: sums, factors, other types. Buffers begin at multiples of 16 bytes, as they do
//! by themselves and at their parts of whole rows.

use half::bf16;

use crate::gpu::{Buffer, Kernel, Shape};
use crate::{Error, Result};

const OP: &str = "elements";
const ADD: Kernel = Kernel::new("elements_add", "const bf16*, bf16*, u64");
const SCALE: Kernel = Kernel::new("elements_scale", "const bf16*, bf16*, f32, u64");
const SCALE_FLOATS: Kernel = Kernel::new("elements_scale_floats", "f32*, f32, u64");
const TO_BF16: Kernel = Kernel::new("elements_to_bf16", "const f32*, bf16*, u64");
const TO_FLOATS: Kernel = Kernel::new("elements_to_floats", "const bf16*, f32*, u64");

/// Threads of a block, and values that a thread has.
const THREADS: u32 = 256;
const VALUES: u64 = 32;

/// Blocks and threads for so many values in buffers at these addresses.
pub(crate) fn shape(op: &'static str, count: usize, addresses: &[u64]) -> Result<Shape> {
    if let Some(address) = addresses.iter().find(|address| !address.is_multiple_of(16)) {
        return Err(Error::invalid(op, format!("a buffer begins at {address:#x}, which is no multiple of 16 bytes")));
    }
    let blocks = u32::try_from((count as u64).div_ceil(u64::from(THREADS) * VALUES));
    Ok(Shape::of(blocks.map_err(|_| Error::invalid(op, format!("{count} values are too many")))?, THREADS))
}

/// `y += x`
pub fn add(x: &Buffer<bf16>, y: &mut Buffer<bf16>) -> Result<()> {
    y.expect(OP, "sum", x.len())?;
    let shape = shape(OP, x.len(), &[x.address(), y.address()])?;
    x.gpu().launch(&ADD, shape, [x.into(), y.into(), (x.len() as u64).into()])
}

/// `y = factor · x`
pub fn scaled(x: &Buffer<bf16>, factor: f32, y: &mut Buffer<bf16>) -> Result<()> {
    y.expect(OP, "product", x.len())?;
    let shape = shape(OP, x.len(), &[x.address(), y.address()])?;
    x.gpu().launch(&SCALE, shape, [x.into(), y.into(), factor.into(), (x.len() as u64).into()])
}

/// `y *= factor`
pub fn scale(y: &mut Buffer<bf16>, factor: f32) -> Result<()> {
    let (gpu, count) = (y.gpu().clone(), y.len());
    let shape = shape(OP, count, &[y.address()])?;
    gpu.launch(&SCALE, shape, [None::<&Buffer<bf16>>.into(), y.into(), factor.into(), (count as u64).into()])
}

/// `y *= factor`
pub fn scale_floats(y: &mut Buffer<f32>, factor: f32) -> Result<()> {
    let (gpu, count) = (y.gpu().clone(), y.len());
    let shape = shape(OP, count, &[y.address()])?;
    gpu.launch(&SCALE_FLOATS, shape, [y.into(), factor.into(), (count as u64).into()])
}

/// `x` in bf16, rounded to the nearest.
pub fn to_bf16(x: &Buffer<f32>, y: &mut Buffer<bf16>) -> Result<()> {
    y.expect(OP, "values in bf16", x.len())?;
    let shape = shape(OP, x.len(), &[x.address(), y.address()])?;
    x.gpu().launch(&TO_BF16, shape, [x.into(), y.into(), (x.len() as u64).into()])
}

/// `x` in `f32`.
pub fn to_floats(x: &Buffer<bf16>, y: &mut Buffer<f32>) -> Result<()> {
    y.expect(OP, "values in f32", x.len())?;
    let shape = shape(OP, x.len(), &[x.address(), y.address()])?;
    x.gpu().launch(&TO_FLOATS, shape, [x.into(), y.into(), (x.len() as u64).into()])
}

#[cfg(all(test, feature = "emulation"))]
mod tests {
    use super::*;
    use crate::gpu::Gpu;

    #[test]
    fn a_part_that_begins_between_is_refused() {
        let gpu = Gpu::emulated(0);
        let (x, y) = (gpu.zeros::<bf16>(64).unwrap(), gpu.zeros::<bf16>(64).unwrap());
        assert!(add(&x.part(8..24).unwrap(), &mut y.part(16..32).unwrap()).is_ok());
        let error = add(&x.part(4..20).unwrap(), &mut y.part(16..32).unwrap()).unwrap_err().to_string();
        assert!(error.contains("no multiple of 16 bytes"), "{error}");
        assert!(add(&x.part(0..16).unwrap(), &mut y.part(0..15).unwrap()).is_err());
    }
}
