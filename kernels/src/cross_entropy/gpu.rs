//! Head and loss on a GPU, for a chunk of rows with a target at a time.
//!
//! Of the logits only the terms of the softmax exist, in bf16 and each up to a power of 2 (`cuda/logits.cu`): once written,
//! once multiplied with the head, by tensor cores both times.

mod chunk;
mod lora;

use half::bf16;

use super::OP;
use crate::dropout::Dropout;
use crate::gemm::gpu::whole;
use crate::gpu::{Buffer, Gpu, Kernel, Shape};
use crate::{Error, Result};
use chunk::{Chunk, Part};
use lora::LoraChunk;

pub(crate) use chunk::Tiles;

const SUM: Kernel = Kernel::new("cross_entropy_sum", "const f32*, i32, u64*");

/// Rows per chunk on a GPU: as many as tensor cores need beside memory (each chunk reads the head twice, and writes and
/// reads its terms), and few enough that the terms stay below 320 MB for the 151,936 words of Qwen.
pub const GPU_CHUNK_ROWS: usize = 1024;

/// Values that kernels read at once.
const AT_ONCE: usize = 8;
/// Largest rank of a pair on the head.
const MOST_RANK: usize = 256;

/// The output projection.
#[derive(Debug, Clone, Copy)]
pub struct GpuHead<'a> {
    /// `[vocabulary, width]`.
    pub weight: &'a Buffer<bf16>,
    /// Number of words.
    pub vocabulary: usize,
    /// Size of a row: a multiple of 8.
    pub width: usize,
    /// Its adapter, if it has one.
    pub lora: Option<GpuHeadLora<'a>>,
}

/// A LoRA pair on the output projection.
#[derive(Debug, Clone, Copy)]
pub struct GpuHeadLora<'a> {
    /// `[rank, width]`.
    pub a: &'a Buffer<bf16>,
    /// `[vocabulary, rank]`.
    pub b: &'a Buffer<bf16>,
    /// Size of the pair, 256 at most.
    pub rank: usize,
    /// Factor of the pair's contribution.
    pub scale: f32,
    /// Mask of what goes into `A`: of element `row · width + column` of `hidden`.
    pub dropout: Option<Dropout>,
}

/// The rows that count, with their targets.
#[derive(Debug)]
pub struct GpuTargets {
    rows: usize,
    vocabulary: usize,
    list: Buffer<i32>,
    targets: Buffer<i32>,
}

/// What becomes of the losses.
#[derive(Debug)]
pub struct GpuLosses<'a> {
    /// The bits of an `f64` that they are added to, in an order that depends on their number alone.
    pub sum: &'a mut Buffer<u64>,
    /// Where each one is left, in the order of the rows that have a target.
    pub each: &'a mut Buffer<f32>,
}

/// Which gradients are made, of the sum of losses times `scale`.
#[derive(Debug)]
pub struct GpuLossGradients<'a> {
    /// One over the targets of the whole step.
    pub scale: f32,
    /// `[rows, width]`, replaced: zeros for rows without a target.
    pub hidden: &'a mut Buffer<bf16>,
    /// Of `A` `[rank, width]` and `B` `[vocabulary, rank]`, added to what is there.
    pub lora: Option<(&'a mut Buffer<f32>, &'a mut Buffer<f32>)>,
}

// === impl GpuTargets ===

impl GpuTargets {
    /// Of all rows, some of which have a target.
    pub fn new(gpu: &Gpu, targets: &[Option<u32>], vocabulary: usize) -> Result<Self> {
        let kept = super::keep(targets, vocabulary)?;
        whole(targets.len())?;
        let list: Vec<i32> = kept.iter().map(|&(row, _)| row as i32).collect();
        let words: Vec<i32> = kept.iter().map(|&(_, target)| target as i32).collect();
        Ok(Self { rows: targets.len(), vocabulary, list: gpu.of(&list)?, targets: gpu.of(&words)? })
    }

    /// Rows with a target.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// Of chunks with at most so many rows, all of one size, as near as can be.
    fn rows_at_a_time(&self, chunk_rows: usize) -> usize {
        let chunks = self.count().div_ceil(chunk_rows.max(1));
        self.count().div_ceil(chunks.max(1))
    }
}

// === impl GpuHead ===

impl GpuHead<'_> {
    fn check(&self) -> Result<()> {
        let Self { weight, vocabulary, width, lora } = *self;
        if width == 0 || width % AT_ONCE != 0 || vocabulary == 0 {
            let reason = format!("a head of {vocabulary} x {width}: there are words, and rows are multiples of 8");
            return Err(Error::invalid(OP, reason));
        }
        weight.expect(OP, "weight", vocabulary * width)?;
        // Sums over the words go on to whole groups of them.
        whole(vocabulary.next_multiple_of(chunk::TILE))?;
        if let Some(GpuHeadLora { a, b, rank, .. }) = lora {
            if rank == 0 || rank > MOST_RANK {
                return Err(Error::invalid(OP, format!("a pair of rank {rank}: it is 1 to {MOST_RANK}")));
            }
            a.expect(OP, "lora A", rank * width)?;
            b.expect(OP, "lora B", vocabulary * rank)?;
        }
        let aligned = weight.address() % 16 == 0 && lora.is_none_or(|lora| lora.a.address() % 16 == 0);
        if aligned { Ok(()) } else { Err(Error::invalid(OP, "weight and A begin at multiples of 16 bytes")) }
    }
}

/// Adds the cross entropies of all rows of `hidden` `[rows, width]` that have a target to a sum, and makes the gradients that
/// are wanted. `chunk_rows` is usually [`GPU_CHUNK_ROWS`].
pub fn gpu_fused(
    head: &GpuHead<'_>,
    hidden: &Buffer<bf16>,
    targets: &GpuTargets,
    chunk_rows: usize,
    losses: GpuLosses<'_>,
    gradients: Option<GpuLossGradients<'_>>,
) -> Result<()> {
    let tiles = Tiles::of(hidden.gpu(), targets.rows_at_a_time(chunk_rows));
    gpu_fused_with(tiles, head, hidden, targets, chunk_rows, losses, gradients)
}

/// [`gpu_fused`] in tiles of a chosen size.
pub(crate) fn gpu_fused_with(
    tiles: Tiles,
    head: &GpuHead<'_>,
    hidden: &Buffer<bf16>,
    targets: &GpuTargets,
    chunk_rows: usize,
    losses: GpuLosses<'_>,
    mut gradients: Option<GpuLossGradients<'_>>,
) -> Result<()> {
    head.check()?;
    if targets.vocabulary != head.vocabulary {
        return Err(Error::shape(OP, "words of the targets", head.vocabulary, targets.vocabulary));
    }
    hidden.expect(OP, "hidden", targets.rows * head.width)?;
    if !hidden.address().is_multiple_of(16) {
        return Err(Error::invalid(OP, "hidden begins at a multiple of 16 bytes"));
    }
    losses.sum.expect(OP, "sum", 1)?;
    losses.each.expect(OP, "losses", targets.count())?;
    if let Some(gradients) = &mut gradients {
        gradients.check(head, targets)?;
        if targets.count() < targets.rows {
            gradients.hidden.fill_zero()?;
        }
    }
    if targets.count() == 0 {
        return Ok(());
    }
    let gpu = hidden.gpu();
    let mut chunk = Chunk::new(gpu, head, tiles, targets.rows_at_a_time(chunk_rows), gradients.is_some())?;
    let mut padded = None;
    let mut lora = head.lora.map(|lora| LoraChunk::new(gpu, head, lora, &chunk, &mut padded)).transpose()?;
    for begin in (0..targets.count()).step_by(chunk.rows) {
        let range = begin..targets.count().min(begin + chunk.rows);
        let mut part = Part {
            count: range.len(),
            hidden,
            list: targets.list.part(range.clone())?,
            targets: targets.targets.part(range.clone())?,
            losses: losses.each.part(range)?,
        };
        lora.as_mut().map(|lora| lora.inner(head, &part)).transpose()?;
        chunk.logits(head, lora.as_ref(), &part)?;
        chunk.rows(&mut part)?;
        if let Some(gradients) = &mut gradients {
            chunk.gradient(head, lora.as_mut(), &part)?;
            chunk.combine(head, lora.as_ref(), &part, gradients)?;
            if let (Some(lora), Some((d_a, d_b))) = (&lora, &mut gradients.lora) {
                lora.gradients(head, &chunk, &part, gradients.scale, d_a, d_b)?;
            }
        }
    }
    let count = whole(targets.count())?.into();
    gpu.launch(&SUM, Shape::of(1, 1024), [(&*losses.each).into(), count, losses.sum.into()])
}

// === impl GpuLossGradients ===

impl GpuLossGradients<'_> {
    fn check(&self, head: &GpuHead<'_>, targets: &GpuTargets) -> Result<()> {
        self.hidden.expect(OP, "gradient of hidden", targets.rows * head.width)?;
        if !self.hidden.address().is_multiple_of(AT_ONCE as u64) {
            return Err(Error::invalid(OP, "the gradient of hidden begins at a multiple of 8 bytes"));
        }
        match (&self.lora, head.lora) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(Error::invalid(OP, "gradients of a pair that the head does not have")),
            (Some((d_a, d_b)), Some(lora)) => {
                d_a.expect(OP, "gradient of A", lora.rank * head.width)?;
                d_b.expect(OP, "gradient of B", head.vocabulary * lora.rank)
            }
        }
    }
}
