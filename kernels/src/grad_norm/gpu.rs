//! The norm of all gradients in a GPU's memory, and the factor that clips it, which stays there.

use super::units::FirstUnits;
use crate::gpu::{Buffer, Gpu, Kernel, Shape};
use crate::{Error, Result};

const OP: &str = "gradient norm";
const UNITS: Kernel = Kernel::new("grad_norm_units", "const u64*, const u32*, i32, u64*");
const FINISH: Kernel = Kernel::new("grad_norm_finish", "const u64*, u32, u64, u64*, f32*");

/// Values that a warp adds up, and warps of a block.
const UNIT: usize = 4096;
const WARPS: u32 = 8;
/// Threads of the block that adds up the sums of all units.
const FINISHERS: u32 = 1024;

/// What measures the norm of a list of gradients, again and again.
#[derive(Debug)]
pub struct GpuGradientNorm {
    gradients: Vec<Buffer<f32>>,
    table: Buffer<u64>,
    first: FirstUnits,
    sums: Buffer<u64>,
    max_norm: f64,
    norm: Buffer<u64>,
    factor: Buffer<f32>,
}

// === impl GpuGradientNorm ===

impl GpuGradientNorm {
    /// Of these gradients together. With `max_norm` the factor scales them down to it; without, the factor is 1 as long as
    /// the norm is finite.
    pub fn new(gpu: &Gpu, gradients: Vec<Buffer<f32>>, max_norm: Option<f64>) -> Result<Self> {
        let max_norm = max_norm.unwrap_or(f64::INFINITY);
        if max_norm.is_nan() || max_norm <= 0.0 {
            return Err(Error::invalid(OP, format!("the greatest norm is {max_norm}: it must be above 0")));
        }
        let table: Vec<u64> =
            gradients.iter().flat_map(|gradient| [gradient.address(), gradient.len() as u64]).collect();
        let first = FirstUnits::new(gpu, OP, gradients.iter().map(Buffer::len), UNIT)?;
        let (table, sums) = (gpu.of(&table)?, gpu.empty(first.units() as usize)?);
        Ok(Self { gradients, table, first, sums, max_norm, norm: gpu.zeros(1)?, factor: gpu.zeros(1)? })
    }

    /// Measures them as they are now. Sums are `f64`, made in an order that depends on the lengths alone.
    pub fn measure(&mut self) -> Result<()> {
        let gpu = self.norm.gpu().clone();
        let (units, tensors) = (self.first.units(), self.first.tensors());
        let arguments = [(&self.table).into(), self.first.buffer().into(), tensors.into(), (&mut self.sums).into()];
        gpu.launch(&UNITS, Shape::of(units.div_ceil(WARPS), 32 * WARPS), arguments)?;
        let max_norm = self.max_norm.to_bits().into();
        let (norm, factor) = ((&mut self.norm).into(), (&mut self.factor).into());
        gpu.launch(&FINISH, Shape::of(1, FINISHERS), [(&self.sums).into(), units.into(), max_norm, norm, factor])
    }

    /// What to multiply all gradients with: `min(1, max_norm / (norm + 1e-6))`, and NaN where the norm is not finite, which
    /// [`crate::adamw::GpuAdamW::step`] takes for a step not to be made.
    pub fn factor(&self) -> &Buffer<f32> {
        &self.factor
    }

    /// The norm of the last measure; waits for it.
    pub fn norm(&self) -> Result<f64> {
        Ok(f64::from_bits(self.norm.download()?[0]))
    }

    /// Makes all gradients 0.
    pub fn clear(&mut self) -> Result<()> {
        self.gradients.iter_mut().try_for_each(Buffer::fill_zero)
    }
}
