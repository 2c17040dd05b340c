//! A chunk of rows: its buffers, which the next one uses again, and the kernels that go through it.

use half::bf16;

use super::{GpuHead, GpuLossGradients, LoraChunk};
use crate::Result;
use crate::gemm::gpu::{Tile, whole};
use crate::gpu::{Argument, Buffer, Gpu, Kernel, Shape};

macro_rules! logits {
    ($name:literal) => {
        Kernel::new(
            concat!("cross_entropy_logits_", $name),
            "const bf16*, const i32*, const i32*, i32, i32, const bf16*, i32, const bf16*, i32, const bf16*, i32, i32, \
             bf16*, f32*, f32*, i32, i32",
        )
    };
}

macro_rules! gradient {
    ($name:literal) => {
        Kernel::new(
            concat!("cross_entropy_gradient_", $name),
            "const bf16*, const bf16*, i32, i32, i32, i32, const bf16*, i32, i32, f32*, const bf16*, i32, i32, f32*",
        )
    };
}

const ROWS: Kernel =
    Kernel::new("cross_entropy_rows", "const f32*, i32, i32, i32, const f32*, f32*, f32*, f32*, bf16*");
const COMBINE: Kernel = Kernel::new(
    "cross_entropy_combine",
    "const f32*, i32, i32, i32, const i32*, const i32*, const f32*, const f32*, const bf16*, f32, bf16*, const f32*, \
     const bf16*, const bf16*, i32, i32, f32, u32, u64, bf16*, i32",
);

/// Tiles of logits.cu and gradient.cu.
const SMALL: Tile = Tile { m: TILE, n: TILE, k: 32, stages: 4, threads: 128 };
const LARGE: Tile = Tile { m: 2 * TILE, n: TILE, k: 32, stages: 4, threads: 256 };
/// Words are rounded up to it, and the smaller number of rows that is computed at a time.
pub(super) const TILE: usize = 128;
/// Blocks with small tiles that a multiprocessor has.
const BLOCKS: usize = 2;
/// Words that share an exponent.
const GROUP: usize = 64;
/// Parts that the sum over the vocabulary is cut into at most: each costs `f32` for a chunk of rows.
const PARTS: usize = 8;

/// Which tiles the two large products are computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tiles {
    /// Large ones for the logits.
    pub(crate) large_logits: bool,
    /// Large ones for the gradient.
    pub(crate) large_gradient: bool,
}

/// Sizes of a chunk, and what exists as long as one is worked on.
pub(super) struct Chunk {
    tiles: Tiles,
    /// Rows with room, and words with room.
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Parts of the sum over the vocabulary, and groups of words of a part.
    pub(super) parts: usize,
    share: usize,
    pub(super) terms: Option<Buffer<bf16>>,
    pub(super) factors: Option<Buffer<bf16>>,
    pub(super) row_factors: Buffer<f32>,
    pub(super) target_gradients: Buffer<f32>,
    groups: Buffer<f32>,
    target_logits: Buffer<f32>,
    sums: Option<Buffer<f32>>,
}

/// The rows of a chunk.
pub(super) struct Part<'a> {
    pub(super) count: usize,
    pub(super) hidden: &'a Buffer<bf16>,
    pub(super) list: Buffer<i32>,
    pub(super) targets: Buffer<i32>,
    pub(super) losses: Buffer<f32>,
}

/// A size as a kernel takes it.
pub(super) fn number(size: usize) -> Result<Argument> {
    Ok(whole(size)?.into())
}

// === impl Tiles ===

impl Tiles {
    /// For so many rows at a time.
    ///
    /// A large tile reads a quarter less from L2. The gradient's sums are long, and nothing but reading slows them down;
    /// beside logits their exponentials count too, which only two blocks do at the same time as products. Cards from 9.0
    /// on have tensor cores so fast that L2 counts more.
    pub(crate) fn of(gpu: &Gpu, rows: usize) -> Self {
        let filled = rows.next_multiple_of(LARGE.m) * 7 <= rows.next_multiple_of(SMALL.m) * 8;
        Self { large_logits: filled && gpu.facts().capability >= (9, 0), large_gradient: filled }
    }

    fn logits(self) -> (Kernel, Tile) {
        if self.large_logits { (logits!("large"), LARGE) } else { (logits!("small"), SMALL) }
    }

    fn gradient(self) -> (Kernel, Tile) {
        if self.large_gradient { (gradient!("large"), LARGE) } else { (gradient!("small"), SMALL) }
    }
}

// === impl Chunk ===

impl Chunk {
    /// For so many rows at a time.
    pub(super) fn new(gpu: &Gpu, head: &GpuHead<'_>, tiles: Tiles, count: usize, with_gradient: bool) -> Result<Self> {
        let rows = count.next_multiple_of(tiles.logits().1.m).next_multiple_of(tiles.gradient().1.m);
        let columns = head.vocabulary.next_multiple_of(TILE);
        let groups = columns / GROUP;
        let share = groups.div_ceil(parts(gpu, tiles.gradient().1, rows, columns_of_tiles(head)));
        let parts = groups.div_ceil(share);
        let values = |count: usize| with_gradient.then(|| gpu.empty::<bf16>(count)).transpose();
        Ok(Self {
            tiles,
            rows,
            columns,
            parts,
            share,
            terms: values(rows * columns)?,
            factors: values(groups * rows)?,
            row_factors: gpu.empty(rows)?,
            target_gradients: gpu.empty(rows)?,
            groups: gpu.empty(2 * groups * rows)?,
            target_logits: gpu.empty(rows)?,
            sums: with_gradient.then(|| gpu.empty(parts * rows * head.width)).transpose()?,
        })
    }

    pub(super) fn logits(&mut self, head: &GpuHead<'_>, lora: Option<&LoraChunk<'_>>, part: &Part<'_>) -> Result<()> {
        let arguments = [
            part.hidden.into(),
            (&part.list).into(),
            (&part.targets).into(),
            number(part.count)?,
            number(head.width)?,
            head.weight.into(),
            number(head.vocabulary)?,
            lora.map(|lora| &lora.inner).into(),
            number(lora.map_or(0, |lora| lora.stride))?,
            lora.map(|lora| lora.b).into(),
            number(lora.map_or(0, |lora| lora.stride_b))?,
            number(lora.map_or(0, |lora| lora.rank))?,
            self.terms.as_mut().into(),
            (&mut self.groups).into(),
            (&mut self.target_logits).into(),
            number(self.rows)?,
            number(self.columns)?,
        ];
        let (kernel, tile) = self.tiles.logits();
        part.hidden.gpu().launch(&kernel, tile.shape(self.rows, self.columns)?, arguments)
    }

    pub(super) fn rows(&mut self, part: &mut Part<'_>) -> Result<()> {
        let arguments = [
            (&self.groups).into(),
            number(self.columns / GROUP)?,
            number(self.rows)?,
            number(part.count)?,
            (&self.target_logits).into(),
            (&mut part.losses).into(),
            (&mut self.row_factors).into(),
            (&mut self.target_gradients).into(),
            self.factors.as_mut().into(),
        ];
        part.hidden.gpu().launch(&ROWS, Shape::of(self.rows as u32 / 32, 1024), arguments)
    }

    pub(super) fn gradient(
        &mut self,
        head: &GpuHead<'_>,
        lora: Option<&mut LoraChunk<'_>>,
        part: &Part<'_>,
    ) -> Result<()> {
        let (kernel, tile) = self.tiles.gradient();
        let blocks = whole(self.rows / tile.m * columns_of_tiles(head))?.cast_unsigned();
        let shape = Shape::grid([blocks, self.parts as u32, 1], tile.threads).with_shared(tile.shared());
        let (b, stride_b, rank) = lora.as_ref().map_or((None, 0, 0), |lora| (Some(lora.b), lora.stride_b, lora.rank));
        let arguments = [
            self.terms.as_ref().into(),
            self.factors.as_ref().into(),
            number(part.count)?,
            number(self.rows)?,
            number(self.columns)?,
            number(self.share)?,
            head.weight.into(),
            number(head.vocabulary)?,
            number(head.width)?,
            self.sums.as_mut().into(),
            b.into(),
            number(stride_b)?,
            number(rank)?,
            lora.map(|lora| &mut lora.sums).into(),
        ];
        part.hidden.gpu().launch(&kernel, shape, arguments)
    }

    pub(super) fn combine(
        &self,
        head: &GpuHead<'_>,
        lora: Option<&LoraChunk<'_>>,
        part: &Part<'_>,
        gradients: &mut GpuLossGradients<'_>,
    ) -> Result<()> {
        let (threshold, key) = lora.map_or((0, 0), |lora| lora.mask);
        let (sums, a, b) = (lora.map(|lora| &lora.sums), lora.map(|lora| lora.a), lora.map(|lora| lora.b));
        let [stride_b, rank, stride] = lora.map_or([0; 3], |lora| [lora.stride_b, lora.rank, lora.stride]);
        let scale = lora.map_or(0.0, |lora| lora.scale);
        let mut d_inner = lora.map(|lora| lora.d_inner.shared());
        let arguments = [
            self.sums.as_ref().into(),
            number(self.parts)?,
            number(self.rows)?,
            number(head.width)?,
            (&part.list).into(),
            (&part.targets).into(),
            (&self.row_factors).into(),
            (&self.target_gradients).into(),
            head.weight.into(),
            gradients.scale.into(),
            (&mut *gradients.hidden).into(),
            sums.into(),
            a.into(),
            b.into(),
            number(stride_b)?,
            number(rank)?,
            scale.into(),
            threshold.into(),
            key.into(),
            d_inner.as_mut().into(),
            number(stride)?,
        ];
        part.hidden.gpu().launch(&COMBINE, Shape::of(part.count as u32, 256), arguments)
    }
}

/// Tiles of the gradient beside each other: those of the rows, and those of the pair's inner values.
fn columns_of_tiles(head: &GpuHead<'_>) -> usize {
    head.width.div_ceil(TILE) + head.lora.map_or(0, |lora| lora.rank.div_ceil(TILE))
}

/// Into how many parts a sum is cut so that tiles fill all multiprocessors, and most of them in the last round too.
fn parts(gpu: &Gpu, tile: Tile, rows: usize, columns_of_tiles: usize) -> usize {
    let facts = gpu.facts();
    // A block's own share beside what it asks for is 1 KB.
    let fit = facts.shared_per_multiprocessor / (tile.shared() + 1024);
    let on_each = if tile.m == SMALL.m { fit.clamp(1, BLOCKS) } else { 1 };
    let (at_once, tiles) = (facts.multiprocessors as usize * on_each, rows / tile.m * columns_of_tiles);
    let busy = |parts: usize| (parts * tiles) as f64 / ((parts * tiles).next_multiple_of(at_once)) as f64;
    // One more part has to be worth what it writes and reads.
    (1..=PARTS).fold(1, |best, parts| if busy(parts) > busy(best) + 0.02 { parts } else { best })
}
