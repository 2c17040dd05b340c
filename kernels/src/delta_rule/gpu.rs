//! The gated delta rule on a GPU, chunked as on the processor.
//!
//! Forward is two launches: what every chunk needs before a state is known (`delta_intra`), then the walk over the chunks of
//! each document (`delta_forward`). Backward is two more: the walk back, which leaves the gradients of the states and of the
//! values (`delta_backward`), and everything else of every chunk at once (`delta_gradients`).

use half::bf16;

use super::{NAME, Parameters};
use crate::conv::HeadGroups;
use crate::gpu::rows::{address, count, wide};
use crate::gpu::{Argument, Buffer, FrozenPart, Gpu, Kernel, Shape};
use crate::{Error, Result};

pub use chunks::GpuChunks;

mod chunks;

/// Kernels for keys of up to 32 and of up to 128.
type ByKeys<T> = [T; 2];
const KEY_DIMS: ByKeys<usize> = [32, 128];
/// Of the columns of the values, how many one block of a walk has.
const COLUMNS: [usize; 2] = [32, 64];

const fn intra(name: &'static str) -> Kernel {
    Kernel::new(
        name,
        "const bf16*, const bf16*, const f32*, const f32*, const u32*, f32*, bf16*, bf16*, i32, i32, i32, i32",
    )
}
const INTRA: ByKeys<Kernel> = [intra("delta_intra_32"), intra("delta_intra_128")];

const fn forward(name: &'static str) -> Kernel {
    Kernel::new(
        name,
        "const bf16*, const bf16*, const bf16*, const f32*, const u32*, bf16*, bf16*, bf16*, i32, i32, i32, i32",
    )
}
const FORWARD: ByKeys<[Kernel; 2]> = [
    [forward("delta_forward_32_32"), forward("delta_forward_32_64")],
    [forward("delta_forward_128_32"), forward("delta_forward_128_64")],
];

const fn backward(name: &'static str) -> Kernel {
    Kernel::new(
        name,
        "const bf16*, const bf16*, const bf16*, const f32*, const u32*, const bf16*, bf16*, bf16*, i32, i32, i32, i32",
    )
}
const BACKWARD: ByKeys<[Kernel; 2]> = [
    [backward("delta_backward_32_32"), backward("delta_backward_32_64")],
    [backward("delta_backward_128_32"), backward("delta_backward_128_64")],
];

const fn gradients(name: &'static str) -> Kernel {
    Kernel::new(
        name,
        "const bf16*, const bf16*, const f32*, const f32*, const u32*, const f32*, const bf16*, const bf16*, const bf16*, \
         const bf16*, const bf16*, bf16*, bf16*, i32, i32, i32, i32",
    )
}
const GRADIENTS: ByKeys<Kernel> = [gradients("delta_gradients_32"), gradients("delta_gradients_128")];

/// Tokens of a chunk: what kernels know as `CHUNK`.
const CHUNK: usize = 64;
/// Head sizes are multiples of this, as products of a warp are.
const GRAIN: usize = 16;
/// `FACTORS` and `SETS` of the kernels.
const FACTORS: usize = 4;
const SETS: usize = 2;
/// Threads of a block of `delta_intra` and `delta_gradients`.
const INTRA_THREADS: u32 = 128;
const GRADIENT_THREADS: u32 = 256;
/// Warps that make the outputs in a block of `delta_forward`.
const READERS: usize = 4;
/// Columns of the values at a time in `delta_gradients`.
const DEPTH: usize = 32;
/// Values of a warp in the memory through which halves are exchanged.
const EXCHANGE: usize = 1024;

/// The frozen parts of the op in a GPU's memory.
#[derive(Debug)]
pub struct GpuDeltaRule {
    groups: HeadGroups,
    a_log: Buffer<f32>,
    dt_bias: Buffer<f32>,
    /// Which of the kernels by size of a key.
    kind: usize,
    sizes: [Argument; 4],
}

/// What backward needs of the forward pass.
#[derive(Debug)]
pub struct GpuSaved {
    within: Within,
    /// The state before every chunk that is not its document's first, transposed: `[state, head, value_dim, key_dim]`.
    states: Buffer<bf16>,
    /// What was written to the state, `[token, head, value_dim]`.
    written: Buffer<bf16>,
}

/// What chunks need before a state is known.
#[derive(Debug)]
struct Within {
    /// `[token, head, SETS, FACTORS]`.
    factors: Buffer<f32>,
    /// `[token, head, CHUNK]`.
    solution: Buffer<bf16>,
    /// `[token, head, CHUNK]`.
    weights: Buffer<bf16>,
}

// === impl GpuDeltaRule ===

impl GpuDeltaRule {
    /// The parameters, copied to a GPU. Sizes of heads are multiples of 16, keys up to 128.
    pub fn of(gpu: &Gpu, parameters: &Parameters) -> Result<Self> {
        let groups = parameters.groups;
        groups.check()?;
        for (what, found) in [("A_log", parameters.a_log.len()), ("dt_bias", parameters.dt_bias.len())] {
            if found != groups.value_heads {
                return Err(Error::shape(NAME, what, groups.value_heads, found));
            }
        }
        let kind = KEY_DIMS.iter().position(|dim| groups.key_dim <= *dim);
        let Some(kind) = kind.filter(|_| (groups.key_dim | groups.value_dim).is_multiple_of(GRAIN)) else {
            let expected = format!("multiples of {GRAIN}, keys up to {}", KEY_DIMS[1]);
            return Err(Error::shape(NAME, "sizes of heads", expected, groups));
        };
        let sizes = [groups.key_heads, groups.values_per_key(), groups.key_dim, groups.value_dim];
        let [heads, per_key, key_dim, value_dim] = sizes.map(|size| count(NAME, "size", size).map(Argument::from));
        let (a_log, dt_bias) = (gpu.of(&parameters.a_log)?, gpu.of(&parameters.dt_bias)?);
        Ok(Self { groups, a_log, dt_bias, kind, sizes: [heads?, per_key?, key_dim?, value_dim?] })
    }

    /// Everything that it knows.
    pub fn frozen(&self) -> Vec<FrozenPart> {
        vec![FrozenPart::of("A_log", &self.a_log), FrozenPart::of("dt_bias", &self.dt_bias)]
    }

    /// `qkv [tokens, q | k | v]` and `ba [tokens, 2 value_heads]` to `out [tokens, value_heads · value_dim]`.
    pub fn forward(
        &self,
        qkv: &Buffer<bf16>,
        ba: &Buffer<bf16>,
        chunks: &GpuChunks,
        out: &mut Buffer<bf16>,
    ) -> Result<()> {
        self.check(qkv, ba, chunks, out)?;
        let within = self.within(qkv, ba, chunks)?;
        self.walk(qkv, chunks, &within, out, None)
    }

    /// [`GpuDeltaRule::forward`], and what [`GpuDeltaRule::backward`] needs of it.
    pub fn forward_saving(
        &self,
        qkv: &Buffer<bf16>,
        ba: &Buffer<bf16>,
        chunks: &GpuChunks,
        out: &mut Buffer<bf16>,
    ) -> Result<GpuSaved> {
        self.check(qkv, ba, chunks, out)?;
        let within = self.within(qkv, ba, chunks)?;
        let mut states = self.states(qkv.gpu(), chunks)?;
        let mut written = qkv.gpu().empty(out.len())?;
        self.walk(qkv, chunks, &within, out, Some((&mut states, &mut written)))?;
        Ok(GpuSaved { within, states, written })
    }

    /// Replaces `d_qkv` and `d_ba` by the gradients of `qkv` and `ba` for the output's gradient `dout`.
    pub fn backward(
        &self,
        qkv: &Buffer<bf16>,
        ba: &Buffer<bf16>,
        chunks: &GpuChunks,
        saved: &GpuSaved,
        dout: &Buffer<bf16>,
        (d_qkv, d_ba): (&mut Buffer<bf16>, &mut Buffer<bf16>),
    ) -> Result<()> {
        self.check(qkv, ba, chunks, dout)?;
        self.check(d_qkv, d_ba, chunks, dout)?;
        saved.states.expect(NAME, "saved states", chunks.states() * self.state())?;
        saved.written.expect(NAME, "saved values", dout.len())?;
        let (gpu, Within { factors, solution, weights }) = (qkv.gpu(), &saved.within);
        let mut dstates = self.states(gpu, chunks)?;
        let [heads, per_key, key_dim, value_dim] = self.sizes;
        let (columns, blocks) = self.split(gpu, chunks, |columns| self.backward_shared(columns));
        let shape = Shape::of(blocks, 32 * Self::warps(columns)).with_shared(self.backward_shared(columns));
        gpu.launch(
            &BACKWARD[self.kind][columns],
            shape,
            [
                qkv.into(),
                solution.into(),
                weights.into(),
                factors.into(),
                chunks.documents().into(),
                dout.into(),
                (&mut *d_qkv).into(),
                (&mut dstates).into(),
                heads,
                per_key,
                key_dim,
                value_dim,
            ],
        )?;
        let shape = Shape::of(self.blocks(chunks)?, GRADIENT_THREADS).with_shared(self.gradients_shared());
        gpu.launch(
            &GRADIENTS[self.kind],
            shape,
            [
                qkv.into(),
                ba.into(),
                (&self.a_log).into(),
                (&self.dt_bias).into(),
                chunks.chunks().into(),
                factors.into(),
                weights.into(),
                (&saved.states).into(),
                (&saved.written).into(),
                (&dstates).into(),
                dout.into(),
                d_qkv.into(),
                d_ba.into(),
                heads,
                per_key,
                key_dim,
                value_dim,
            ],
        )
    }

    fn check(&self, qkv: &Buffer<bf16>, ba: &Buffer<bf16>, chunks: &GpuChunks, out: &Buffer<bf16>) -> Result<()> {
        let (groups, tokens) = (&self.groups, chunks.tokens());
        qkv.expect(NAME, "qkv", tokens * groups.convolved_width())?;
        ba.expect(NAME, "ba", tokens * 2 * groups.value_heads)?;
        out.expect(NAME, "outputs", tokens * groups.value_width())?;
        if !wide(&[], &[address(qkv), address(out)]) {
            return Err(Error::invalid(NAME, "rows that do not begin at multiples of 16 bytes"));
        }
        Ok(())
    }

    fn within(&self, qkv: &Buffer<bf16>, ba: &Buffer<bf16>, chunks: &GpuChunks) -> Result<Within> {
        let (gpu, rows) = (qkv.gpu(), chunks.tokens() * self.groups.value_heads);
        let mut within = Within {
            factors: gpu.empty(rows * SETS * FACTORS)?,
            solution: gpu.empty(rows * CHUNK)?,
            weights: gpu.empty(rows * CHUNK)?,
        };
        let [heads, per_key, key_dim, value_dim] = self.sizes;
        gpu.launch(
            &INTRA[self.kind],
            Shape::of(self.blocks(chunks)?, INTRA_THREADS),
            [
                qkv.into(),
                ba.into(),
                (&self.a_log).into(),
                (&self.dt_bias).into(),
                chunks.chunks().into(),
                (&mut within.factors).into(),
                (&mut within.solution).into(),
                (&mut within.weights).into(),
                heads,
                per_key,
                key_dim,
                value_dim,
            ],
        )?;
        Ok(within)
    }

    fn walk(
        &self,
        qkv: &Buffer<bf16>,
        chunks: &GpuChunks,
        within: &Within,
        out: &mut Buffer<bf16>,
        saved: Option<(&mut Buffer<bf16>, &mut Buffer<bf16>)>,
    ) -> Result<()> {
        let gpu = qkv.gpu();
        let [heads, per_key, key_dim, value_dim] = self.sizes;
        let (columns, blocks) = self.split(gpu, chunks, |columns| self.forward_shared(columns));
        let threads = 32 * (Self::warps(columns) + READERS as u32);
        let (states, written) = saved.unzip();
        gpu.launch(
            &FORWARD[self.kind][columns],
            Shape::of(blocks, threads).with_shared(self.forward_shared(columns)),
            [
                qkv.into(),
                (&within.solution).into(),
                (&within.weights).into(),
                (&within.factors).into(),
                chunks.documents().into(),
                out.into(),
                states.into(),
                written.into(),
                heads,
                per_key,
                key_dim,
                value_dim,
            ],
        )
    }

    /// How many columns a block of a walk has, by its index in [`COLUMNS`], and how many blocks there are: what takes the
    /// shortest time if every multiprocessor has one block at a time. Twice the columns take a third longer, as keys are
    /// read once for all of them and one walk waits where another works.
    fn split(&self, gpu: &Gpu, chunks: &GpuChunks, shared: impl Fn(usize) -> usize) -> (usize, u32) {
        let blocks = |columns: usize| {
            let splits = self.groups.value_dim.div_ceil(COLUMNS[columns]);
            u32::try_from(chunks.count() * self.groups.value_heads * splits).unwrap_or(u32::MAX)
        };
        let facts = gpu.facts();
        let [few, many] = [0, 1].map(|columns| u64::from(blocks(columns).div_ceil(facts.multiprocessors)));
        let columns = usize::from(4 * many < 3 * few && shared(1) <= facts.shared_per_block);
        (columns, blocks(columns))
    }

    /// One block for each chunk and key head.
    fn blocks(&self, chunks: &GpuChunks) -> Result<u32> {
        Ok(count(NAME, "chunks", chunks.len() * self.groups.key_heads)?.unsigned_abs())
    }

    /// Warps that hold a state of so many columns: 16 columns and half of the keys each.
    fn warps(columns: usize) -> u32 {
        (COLUMNS[columns] / 8) as u32
    }

    /// Values of the states of all heads.
    fn state(&self) -> usize {
        self.groups.value_width() * self.groups.key_dim
    }

    fn states(&self, gpu: &Gpu, chunks: &GpuChunks) -> Result<Buffer<bf16>> {
        gpu.empty(chunks.states() * self.state())
    }

    /// Bytes of `Tiles` in `delta_forward`: K twice, Q; U and P; V; S and N; exchange, and two chunks' factors.
    fn forward_shared(&self, columns: usize) -> usize {
        let (keys, columns, warps) = (KEY_DIMS[self.kind], COLUMNS[columns], Self::warps(columns) as usize);
        let half = 3 * CHUNK * keys + 2 * CHUNK * CHUNK + CHUNK * columns + columns * keys + columns * CHUNK;
        2 * half + 4 * (warps * EXCHANGE + 2 * CHUNK * FACTORS)
    }

    /// Bytes of `Tiles` in `delta_backward`: K twice, Q; U and P; dO twice; dV; exchange, and two chunks' factors.
    fn backward_shared(&self, columns: usize) -> usize {
        let (keys, columns, warps) = (KEY_DIMS[self.kind], COLUMNS[columns], Self::warps(columns) as usize);
        let half = 3 * CHUNK * keys + 2 * CHUNK * CHUNK + 3 * CHUNK * columns;
        2 * half + 4 * (warps * EXCHANGE + 2 * CHUNK * FACTORS)
    }

    /// Bytes of `Tiles` in `delta_gradients`: Q, K; two stages of S, dS and of dO, dV, N; a square; two heads' factors,
    /// lengths of Q and K, a diagonal, and a sum of each warp.
    fn gradients_shared(&self) -> usize {
        let keys = KEY_DIMS[self.kind];
        let half = 2 * CHUNK * keys + 2 * (2 * DEPTH * keys + 3 * CHUNK * DEPTH) + CHUNK * CHUNK;
        2 * half + 4 * (2 * CHUNK * FACTORS + 3 * CHUNK + GRADIENT_THREADS as usize / 32)
    }
}
