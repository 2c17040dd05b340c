//! The causal convolution on a GPU.

use half::bf16;

use super::{ConvWeight, HeadGroups, OP};
use crate::gpu::rows::{WIDE, address, count, wide};
use crate::gpu::{Argument, Buffer, FrozenPart, Gpu, Kernel, Shape};
use crate::{Error, GpuDocuments, Result};

/// The kernels of one direction, for what begins at multiples of 16 bytes and for anything, and how many tokens a thread
/// may walk through: 3 before them are read twice (and 3 behind them, backward), so not too few; but shorter runs where
/// the row is short, so that every multiprocessor has work.
struct Direction {
    kernels: [Kernel; 2],
    runs: [usize; 4],
}

const FORWARD_TAKES: &str = "const bf16*, const f32*, const u32*, bf16*, i32, i32, i32, i32, i32, i32";
/// 4 tokens at a time.
const FORWARD: Direction = Direction {
    kernels: [Kernel::new("conv_forward", FORWARD_TAKES), Kernel::new("conv_forward_any", FORWARD_TAKES)],
    runs: [64, 32, 16, 8],
};

const BACKWARD_TAKES: &str = "const bf16*, const f32*, const u32*, const bf16*, bf16*, i32, i32, i32, i32, i32, i32";
/// 3 tokens at a time, and 3 more in all.
const BACKWARD: Direction = Direction {
    kernels: [Kernel::new("conv_backward", BACKWARD_TAKES), Kernel::new("conv_backward_any", BACKWARD_TAKES)],
    runs: [63, 30, 15, 9],
};

/// Taps that kernels have; a convolution with fewer has zeros for those of older tokens.
const TAPS: usize = 4;
/// Threads of a block, and blocks that a multiprocessor has at once.
const THREADS: usize = 128;
const BLOCKS: usize = 4;
/// Blocks of a launch in the second dimension, at most.
const GRID: usize = 65_535;

/// The frozen taps of all channels in a GPU's memory.
#[derive(Debug)]
pub struct GpuConv {
    /// `[TAPS, channels]`, the factor of the token itself first.
    by_age: Buffer<f32>,
    groups: HeadGroups,
}

/// How the work is shared out.
struct Work {
    kernel: &'static Kernel,
    shape: Shape,
    sizes: [Argument; 6],
}

// === impl GpuConv ===

impl GpuConv {
    /// The weight, copied to a GPU. It has up to 4 taps.
    pub fn of(gpu: &Gpu, weight: &ConvWeight, groups: &HeadGroups) -> Result<Self> {
        groups.check()?;
        if weight.channels != groups.convolved_width() {
            return Err(Error::shape(OP, "channels of the weight", groups.convolved_width(), weight.channels));
        }
        if weight.taps > TAPS {
            return Err(Error::shape(OP, "taps", format!("at most {TAPS}"), weight.taps));
        }
        let mut by_age = vec![0.0; TAPS * weight.channels];
        for (age, factors) in by_age.chunks_exact_mut(weight.channels).take(weight.taps).enumerate() {
            factors.copy_from_slice(weight.back(age));
        }
        Ok(Self { by_age: gpu.of(&by_age)?, groups: *groups })
    }

    /// Everything that it knows.
    pub fn frozen(&self) -> Vec<FrozenPart> {
        vec![FrozenPart::of("taps", &self.by_age)]
    }

    /// `silu(conv(qkv))`: `qkvz` is the grouped projection `[tokens, …]`, `y` becomes `[tokens, q | k | v]`.
    pub fn forward(&self, qkvz: &Buffer<bf16>, documents: &GpuDocuments, y: &mut Buffer<bf16>) -> Result<()> {
        let work = self.work(&FORWARD, qkvz, documents, y, &[address(qkvz), address(&*y)])?;
        let [tokens, run, heads, dim, values, group] = work.sizes;
        let (weight, starts) = ((&self.by_age).into(), documents.starts().into());
        let arguments = [qkvz.into(), weight, starts, y.into(), tokens, run, heads, dim, values, group];
        qkvz.gpu().launch(work.kernel, work.shape, arguments)
    }

    /// Writes the gradients of q, k and v to their places in `d_qkvz`; what is beside them there stays as it is.
    pub fn backward(
        &self,
        qkvz: &Buffer<bf16>,
        documents: &GpuDocuments,
        dy: &Buffer<bf16>,
        d_qkvz: &mut Buffer<bf16>,
    ) -> Result<()> {
        d_qkvz.expect(OP, "gradient of the projection", qkvz.len())?;
        let addresses = [address(qkvz), address(dy), address(&*d_qkvz)];
        let work = self.work(&BACKWARD, qkvz, documents, dy, &addresses)?;
        let [tokens, run, heads, dim, values, group] = work.sizes;
        let (weight, starts) = ((&self.by_age).into(), documents.starts().into());
        let [dy, d_qkvz] = [dy.into(), d_qkvz.into()];
        let arguments = [qkvz.into(), weight, starts, dy, d_qkvz, tokens, run, heads, dim, values, group];
        qkvz.gpu().launch(work.kernel, work.shape, arguments)
    }

    fn work(
        &self,
        direction: &'static Direction,
        qkvz: &Buffer<bf16>,
        documents: &GpuDocuments,
        y: &Buffer<bf16>,
        addresses: &[u64],
    ) -> Result<Work> {
        let (groups, tokens) = (&self.groups, documents.tokens());
        let (channels, values) = (groups.convolved_width(), groups.values_per_key() * groups.value_dim);
        qkvz.expect(OP, "projection", tokens * groups.projection_width())?;
        y.expect(OP, "convolved channels", tokens * channels)?;
        let is_wide = wide(&[groups.key_dim, values], addresses);
        let columns = channels.div_ceil(if is_wide { WIDE } else { 1 }).div_ceil(THREADS);
        let run = self.run(direction, columns, tokens);
        let rows = tokens.div_ceil(run);
        if rows > GRID {
            return Err(Error::shape(OP, "tokens", format!("at most {}", run * GRID), tokens));
        }
        let sizes = [tokens, run, groups.key_heads, groups.key_dim, values, groups.group_width()];
        let [tokens, run, heads, dim, values, group] = sizes.map(|size| count(OP, "size", size));
        Ok(Work {
            kernel: &direction.kernels[usize::from(!is_wide)],
            shape: Shape::grid([columns as u32, rows as u32, 1], THREADS as u32),
            sizes: [tokens?.into(), run?.into(), heads?.into(), dim?.into(), values?.into(), group?.into()],
        })
    }

    /// The longest run that leaves no multiprocessor without its share of blocks.
    fn run(&self, direction: &Direction, columns: usize, tokens: usize) -> usize {
        let blocks = self.by_age.gpu().facts().multiprocessors as usize * BLOCKS;
        let fills = |run: &usize| columns * tokens.div_ceil(*run) >= blocks;
        direction.runs.into_iter().find(fills).unwrap_or(direction.runs[3])
    }
}
