//! AdamW of many tensors in a GPU's memory, to the bit as [`super::step`] does it.
//!
//! A step is two launches, whatever the number of tensors: a thread for each tensor decides whether it takes the step and
//! how far, then one pass over all values. Nothing of it comes from the host but the learning rate, so that a step can be
//! recorded once and repeated.

mod state;
mod tables;

use half::bf16;

use super::{Hyper, MOMENT_BLOCK, OP};
use crate::gpu::{Argument, Buffer, Gpu, Kernel, Shape};
use crate::grad_norm::units::FirstUnits;
use crate::nf4::DynamicMap;
use crate::{Error, Result};

pub use state::{MomentPart, MomentValues};

const PREPARE: Kernel =
    Kernel::new("adamw_prepare", "const u64*, i32, const u64*, i32, const u64*, const f32*, u64*, f32*");
const FULL: Kernel =
    Kernel::new("adamw_full", "const u64*, const u32*, i32, const f32*, const f32*, const f32*, f32*, f32*, i32, u32");
const BLOCKWISE: Kernel = Kernel::new(
    "adamw_blockwise",
    "const u64*, const u32*, i32, const f32*, const f32*, const f32*, const u8*, u8*, f32*, u8*, f32*, i32, u32",
);
const COPIES: Kernel = Kernel::new("adamw_copies", "const u64*, const u32*, i32, u32");

/// Warps of a block, each of which has one unit of [`MOMENT_BLOCK`] values at a time.
const WARPS: u32 = 8;
/// Units of a block in a row: enough of them that its search and its tables do not count, if there are so many.
const SHARE: std::ops::RangeInclusive<u32> = WARPS..=128;
/// Blocks of a multiprocessor that smaller shares are made for.
const BLOCKS: u32 = 8;

/// A tensor that is updated by itself.
#[derive(Debug)]
pub struct GpuParameter {
    /// Its values.
    pub values: Buffer<f32>,
    /// Their gradient.
    pub gradient: Buffer<f32>,
    /// What products read, written with every step.
    pub copy: Option<Buffer<bf16>>,
    /// Times the learning rate of the step.
    pub rate: f64,
    /// One number; where it is 0 the tensor is left alone, moments and all (a routed expert without a row).
    pub hits: Option<Buffer<u32>>,
}

/// How moments are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MomentKind {
    /// 32 bits a value.
    Full,
    /// 8 bits a value and a scale for each [`MOMENT_BLOCK`].
    Blockwise,
}

/// What becomes of gradients that were used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gradients {
    /// They stay.
    Keep,
    /// They become 0 in the same pass. Those of tensors that did not take the step stay.
    Clear,
}

/// The moments of all tensors, in whole units: that of a number begins at so many times [`MOMENT_BLOCK`].
#[derive(Debug)]
enum Moments {
    Full { m: Buffer<f32>, v: Buffer<f32> },
    Blockwise { maps: Buffer<u8>, m: Buffer<u8>, m_scale: Buffer<f32>, v: Buffer<u8>, v_scale: Buffer<f32> },
}

/// AdamW with its state.
#[derive(Debug)]
pub struct GpuAdamW {
    parameters: Vec<GpuParameter>,
    hyper: Hyper,
    method: Buffer<f32>,
    table: Buffer<u64>,
    first: FirstUnits,
    kinds: Vec<f64>,
    rates: Buffer<u64>,
    corrections: tables::Corrections,
    prepared: Buffer<f32>,
    updates: Buffer<u64>,
    moments: Moments,
}

// === impl GpuAdamW ===

impl GpuAdamW {
    /// With empty moments, for at most so many steps. The learning rate of `hyper` is that until another one is set.
    pub fn new(gpu: &Gpu, kind: MomentKind, hyper: &Hyper, parameters: Vec<GpuParameter>, steps: u64) -> Result<Self> {
        for GpuParameter { values, gradient, copy, hits, .. } in &parameters {
            gradient.expect(OP, "gradient", values.len())?;
            copy.iter().try_for_each(|copy| copy.expect(OP, "copy", values.len()))?;
            hits.iter().try_for_each(|hits| hits.expect(OP, "hits", 1))?;
        }
        let (table, kinds) = tables::tensors(&parameters);
        let first = FirstUnits::new(gpu, OP, parameters.iter().map(|p| p.values.len()), MOMENT_BLOCK)?;
        let mut adamw = Self {
            hyper: *hyper,
            method: gpu.of(&tables::method(hyper)?)?,
            table: gpu.of(&table)?,
            rates: gpu.empty(2 * kinds.len())?,
            kinds,
            corrections: tables::Corrections::new(gpu, hyper, steps)?,
            prepared: gpu.empty(4 * parameters.len())?,
            updates: gpu.zeros(parameters.len())?,
            moments: Moments::zero(gpu, kind, first.units() as usize)?,
            first,
            parameters,
        };
        adamw.set_learning_rate(hyper.learning_rate)?;
        Ok(adamw)
    }

    /// Takes this learning rate from now on.
    pub fn set_learning_rate(&mut self, learning_rate: f64) -> Result<()> {
        let hyper = Hyper { learning_rate, ..self.hyper };
        self.rates.upload(&tables::rates(&hyper, &self.kinds)?)?;
        self.hyper = hyper;
        Ok(())
    }

    /// Makes one step with all gradients times `factor`, one number as [`crate::grad_norm::GpuGradientNorm`] leaves it.
    /// Where that is not finite nothing is changed, neither moments nor gradients nor the count of updates.
    pub fn step(&mut self, factor: &Buffer<f32>, gradients: Gradients) -> Result<()> {
        factor.expect(OP, "factor", 1)?;
        self.corrections.go_on()?;
        let gpu = self.table.gpu().clone();
        let tensors = self.first.tensors();
        let known = self.corrections.last().into();
        let arguments = [
            (&self.table).into(),
            tensors.into(),
            self.corrections.buffer().into(),
            known,
            (&self.rates).into(),
            factor.into(),
            (&mut self.updates).into(),
            (&mut self.prepared).into(),
        ];
        gpu.launch(&PREPARE, Shape::of(tensors.cast_unsigned().div_ceil(256), 256), arguments)?;
        let (shape, share) = self.shape();
        let (table, first, tensors) = ((&self.table).into(), self.first.buffer().into(), tensors.into());
        let (prepared, method) = ((&self.prepared).into(), (&self.method).into());
        let (factor, clear) = (factor.into(), i32::from(gradients == Gradients::Clear).into());
        match &mut self.moments {
            Moments::Full { m, v } => {
                let (m, v) = (m.into(), v.into());
                gpu.launch(&FULL, shape, [table, first, tensors, prepared, factor, method, m, v, clear, share])
            }
            Moments::Blockwise { maps, m, m_scale, v, v_scale } => {
                let (maps, m, v) = ((&*maps).into(), m.into(), v.into());
                let (m_scale, v_scale) = (m_scale.into(), v_scale.into());
                let arguments =
                    [table, first, tensors, prepared, factor, method, maps, m, m_scale, v, v_scale, clear, share];
                gpu.launch(&BLOCKWISE, shape, arguments)
            }
        }
    }

    /// Writes the bf16 copies of all values as they are now: at the start, and after values were put there.
    pub fn write_copies(&mut self) -> Result<()> {
        let (shape, share) = self.shape();
        let arguments = [(&self.table).into(), self.first.buffer().into(), self.first.tensors().into(), share];
        self.table.gpu().launch(&COPIES, shape, arguments)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.parameters.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty()
    }

    /// Blocks for all units, and how many of them each one takes.
    fn shape(&self) -> (Shape, Argument) {
        let units = self.first.units();
        let blocks = self.table.gpu().blocks(units as usize, BLOCKS).max(1);
        let share = units.div_ceil(blocks).next_multiple_of(WARPS).clamp(*SHARE.start(), *SHARE.end());
        (Shape::of(units.div_ceil(share), 32 * WARPS), share.into())
    }
}

// === impl Moments ===

impl Moments {
    fn zero(gpu: &Gpu, kind: MomentKind, units: usize) -> Result<Self> {
        let count =
            units.checked_mul(MOMENT_BLOCK).ok_or_else(|| Error::invalid(OP, "more moments than can be named"))?;
        match kind {
            MomentKind::Full => Ok(Self::Full { m: gpu.zeros(count)?, v: gpu.zeros(count)? }),
            MomentKind::Blockwise => Ok(Self::Blockwise {
                maps: gpu.of(&tables::maps())?,
                m: tables::filled(gpu, DynamicMap::signed().nearest(0.0), count)?,
                m_scale: gpu.zeros(units)?,
                v: tables::filled(gpu, DynamicMap::unsigned().nearest(0.0), count)?,
                v_scale: gpu.zeros(units)?,
            }),
        }
    }
}
