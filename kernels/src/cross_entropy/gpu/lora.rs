//! What a LoRA pair on the head adds to the work of a chunk.

use half::bf16;

use super::chunk::{Chunk, Part, TILE, number};
use super::{AT_ONCE, GpuHead, GpuHeadLora};
use crate::Result;
use crate::gemm::gpu::Matrix;
use crate::gpu::{Argument, Buffer, Gpu, Kernel, Shape};

const INNER: Kernel = Kernel::new(
    "cross_entropy_lora_inner",
    "const bf16*, const i32*, i32, i32, const bf16*, i32, f32, u32, u64, bf16*, i32",
);
const FOR_A: Kernel =
    Kernel::new("cross_entropy_lora_a", "const bf16*, i32, i32, const bf16*, const i32*, i32, i32, u32, u64, f32*");
const FOR_B: Kernel = Kernel::new(
    "cross_entropy_lora_b",
    "const bf16*, const bf16*, const f32*, i32, i32, i32, const bf16*, i32, i32, i32, f32, f32*",
);
const FOR_TARGETS: Kernel =
    Kernel::new("cross_entropy_lora_targets", "const i32*, i32, const f32*, const bf16*, i32, i32, f32, f32*");

/// Tiles of lora.cu: rows, columns, values along k, stages.
const INNER_TILE: [usize; 4] = [64, 16, 64, 3];
const A_TILE: [usize; 4] = [16, 128, 64, 3];
const B_TILE: [usize; 4] = [TILE, 32, 32, 4];
const THREADS: u32 = 128;

/// The pair, and what exists as long as a chunk is worked on.
pub(super) struct LoraChunk<'a> {
    pub(super) a: &'a Buffer<bf16>,
    /// With rows that begin at multiples of 16 bytes.
    pub(super) b: &'a Buffer<bf16>,
    pub(super) stride_b: usize,
    pub(super) rank: usize,
    /// Of the pair's contribution and of what the dropout keeps.
    pub(super) scale: f32,
    /// Threshold and key of the dropout.
    pub(super) mask: (u32, u64),
    /// `scale · A drop(h)` of the rows, and the gradient of `A drop(h)`.
    pub(super) inner: Buffer<bf16>,
    pub(super) d_inner: Buffer<bf16>,
    /// Of both, from row to row.
    pub(super) stride: usize,
    /// The parts that `d_inner` is summed from.
    pub(super) sums: Buffer<f32>,
}

// === impl LoraChunk ===

impl<'a> LoraChunk<'a> {
    /// `padded` holds a copy of `B` where its rows do not lie as they have to.
    pub(super) fn new(
        gpu: &Gpu,
        head: &GpuHead<'_>,
        lora: GpuHeadLora<'a>,
        chunk: &Chunk,
        padded: &'a mut Option<Buffer<bf16>>,
    ) -> Result<Self> {
        let GpuHeadLora { a, b, rank, scale, dropout } = lora;
        let (b, stride_b) = Matrix::of(b, head.vocabulary, rank)?.aligned(padded)?.place();
        let stride = rank.next_multiple_of(AT_ONCE);
        Ok(Self {
            a,
            b,
            stride_b,
            rank,
            scale: scale * dropout.map_or(1.0, |dropout| dropout.scale()),
            mask: dropout.map_or((0, 0), |dropout| (dropout.threshold(), dropout.key)),
            inner: gpu.empty(chunk.rows * stride)?,
            d_inner: gpu.empty(chunk.rows * stride)?,
            stride,
            sums: gpu.empty(chunk.parts * chunk.rows * rank)?,
        })
    }

    pub(super) fn inner(&mut self, head: &GpuHead<'_>, part: &Part<'_>) -> Result<()> {
        let arguments = [
            part.hidden.into(),
            (&part.list).into(),
            number(part.count)?,
            number(head.width)?,
            self.a.into(),
            number(self.rank)?,
            self.scale.into(),
            self.mask.0.into(),
            self.mask.1.into(),
            (&mut self.inner).into(),
            number(self.stride)?,
        ];
        part.hidden.gpu().launch(&INNER, shape(INNER_TILE, part.count, self.rank, false), arguments)
    }

    /// Adds the gradients of `A` and `B`.
    pub(super) fn gradients(
        &self,
        head: &GpuHead<'_>,
        chunk: &Chunk,
        part: &Part<'_>,
        scale: f32,
        d_a: &mut Buffer<f32>,
        d_b: &mut Buffer<f32>,
    ) -> Result<()> {
        let gpu = part.hidden.gpu();
        let (count, rank, stride): (Argument, Argument, Argument) =
            (number(part.count)?, number(self.rank)?, number(self.stride)?);
        let arguments = [
            (&self.d_inner).into(),
            stride,
            rank,
            part.hidden.into(),
            (&part.list).into(),
            count,
            number(head.width)?,
            self.mask.0.into(),
            self.mask.1.into(),
            d_a.into(),
        ];
        gpu.launch(&FOR_A, shape(A_TILE, self.rank, head.width, true), arguments)?;
        let arguments = [
            chunk.terms.as_ref().into(),
            chunk.factors.as_ref().into(),
            (&chunk.row_factors).into(),
            count,
            number(chunk.rows)?,
            number(chunk.columns)?,
            (&self.inner).into(),
            stride,
            rank,
            number(head.vocabulary)?,
            scale.into(),
            (&mut *d_b).into(),
        ];
        gpu.launch(&FOR_B, shape(B_TILE, head.vocabulary, self.rank, false), arguments)?;
        let (targets, gradients) = ((&part.targets).into(), (&chunk.target_gradients).into());
        let arguments = [targets, count, gradients, (&self.inner).into(), stride, rank, scale.into(), d_b.into()];
        gpu.launch(&FOR_TARGETS, Shape::of(part.count as u32, 32), arguments)
    }
}

/// Blocks for `m` x `n` values in tiles; the first side of the grid is that of the columns if they are `wide`.
fn shape([tile_m, tile_n, k, stages]: [usize; 4], m: usize, n: usize, wide: bool) -> Shape {
    let (rows, columns) = (m.div_ceil(tile_m) as u32, n.div_ceil(tile_n) as u32);
    let grid = if wide { [columns, rows, 1] } else { [rows, columns, 1] };
    Shape::grid(grid, THREADS).with_shared(stages * (tile_m + tile_n) * k * size_of::<bf16>())
}
