//! Head and loss on a GPU, for a chunk of rows with a target at a time.
//!
//! Of the logits only the terms of the softmax exist, in bf16 and each up to a power of 2 (`cuda/logits.cu`): once written,
//! once multiplied with the head, by tensor cores both times.

use half::bf16;

use super::OP;
use crate::gpu::{Buffer, Gpu, Kernel, Shape};
use crate::{Error, Result};

const LOGITS: Kernel = Kernel::new(
    "cross_entropy_logits",
    "const bf16*, const i32*, const i32*, i32, i32, const bf16*, i32, const bf16*, i32, const bf16*, i32, i32, bf16*, f32*, f32*, i32, i32",
);
const ROWS: Kernel =
    Kernel::new("cross_entropy_rows", "const f32*, i32, i32, i32, const f32*, f32*, f32*, f32*, bf16*");
const GRADIENT: Kernel =
    Kernel::new("cross_entropy_gradient", "const bf16*, const bf16*, i32, i32, i32, i32, const bf16*, i32, i32, f32*");
const COMBINE: Kernel = Kernel::new(
    "cross_entropy_combine",
    "const f32*, i32, i32, i32, const i32*, const i32*, const f32*, const f32*, const bf16*, f32, bf16*",
);
const SUM: Kernel = Kernel::new("cross_entropy_sum", "const f32*, i32, u64*");

/// Rows and columns of what a block computes, its threads, its shared memory, and how many of them a multiprocessor has.
const TILE: usize = 128;
const THREADS: u32 = 128;
const SHARED: usize = 4 * 2 * TILE * 32 * 2;
const BLOCKS: usize = 2;
/// Words that share an exponent.
const GROUP: usize = 64;
/// Parts that the sum over the vocabulary is cut into at most: each costs `f32` for a chunk of rows.
const PARTS: usize = 8;
/// Rows whose terms exist at a time: as many as tensor cores need beside memory (each chunk reads the head twice, and writes
/// and reads its terms), and few enough that they stay below 320 MB for 151,936 words.
const CHUNK: usize = 1024;

/// The output projection.
#[derive(Debug, Clone, Copy)]
pub struct GpuHead<'a> {
    /// `[vocabulary, width]`.
    pub weight: &'a Buffer<bf16>,
    /// Number of words.
    pub vocabulary: usize,
    /// Size of a row: a multiple of 8.
    pub width: usize,
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
    /// The bits of an `f64` that they are added to, in the order of the rows.
    pub sum: &'a mut Buffer<u64>,
    /// Where each one is left, in the order of the rows that have a target.
    pub each: &'a mut Buffer<f32>,
}

/// Which gradients are made.
#[derive(Debug)]
pub struct GpuLossGradients<'a> {
    /// Factor of the loss in what is minimised: one over the targets of the whole step.
    pub scale: f32,
    /// `[rows, width]`, replaced: zeros for rows without a target.
    pub hidden: &'a mut Buffer<bf16>,
}

/// Sizes of a chunk, and what exists as long as one is worked on.
struct Chunk {
    /// Rows with room, words with room, parts of the sum over the vocabulary and groups of words of a part.
    rows: usize,
    columns: usize,
    parts: usize,
    share: usize,
    terms: Option<Buffer<bf16>>,
    groups: Buffer<f32>,
    target_logits: Buffer<f32>,
    row_factors: Buffer<f32>,
    target_gradients: Buffer<f32>,
    factors: Option<Buffer<bf16>>,
    sums: Option<Buffer<f32>>,
}

/// The rows of a chunk.
struct Part {
    count: usize,
    list: Buffer<i32>,
    targets: Buffer<i32>,
    losses: Buffer<f32>,
}

// === impl GpuTargets ===

impl GpuTargets {
    /// Of all rows, some of which have a target.
    pub fn new(gpu: &Gpu, targets: &[Option<u32>], vocabulary: usize) -> Result<Self> {
        let kept = super::keep(targets, vocabulary)?;
        let list: Vec<i32> = kept.iter().map(|&(row, _)| row as i32).collect();
        let words: Vec<i32> = kept.iter().map(|&(_, target)| target as i32).collect();
        Ok(Self { rows: targets.len(), vocabulary, list: gpu.of(&list)?, targets: gpu.of(&words)? })
    }

    /// Rows with a target.
    pub fn count(&self) -> usize {
        self.list.len()
    }
}

/// Adds the cross entropies of all rows of `hidden` `[rows, width]` that have a target to a sum, and makes the gradients that
/// are wanted.
pub fn gpu_fused(
    head: &GpuHead<'_>,
    hidden: &Buffer<bf16>,
    targets: &GpuTargets,
    losses: GpuLosses<'_>,
    mut gradients: Option<GpuLossGradients<'_>>,
) -> Result<()> {
    let GpuHead { weight, vocabulary, width } = *head;
    if width == 0 || width % 8 != 0 || vocabulary == 0 || vocabulary > i32::MAX as usize / 2 {
        return Err(Error::invalid(OP, format!("a head of {vocabulary} x {width}: rows are multiples of 8")));
    }
    if targets.vocabulary != vocabulary {
        return Err(Error::shape(OP, "words of the targets", vocabulary, targets.vocabulary));
    }
    weight.expect(OP, "weight", vocabulary * width)?;
    hidden.expect(OP, "hidden", targets.rows * width)?;
    losses.sum.expect(OP, "sum", 1)?;
    losses.each.expect(OP, "losses", targets.count())?;
    if let Some(gradients) = &mut gradients {
        gradients.hidden.expect(OP, "gradient of hidden", targets.rows * width)?;
        if targets.count() < targets.rows {
            gradients.hidden.fill_zero()?;
        }
    }
    if targets.count() == 0 {
        return Ok(());
    }
    let gpu = hidden.gpu();
    let mut chunk = Chunk::new(gpu, head, targets.count(), gradients.is_some())?;
    for begin in (0..targets.count()).step_by(chunk.rows) {
        let range = begin..targets.count().min(begin + chunk.rows);
        let mut part = Part {
            count: range.len(),
            list: targets.list.part(range.clone())?,
            targets: targets.targets.part(range.clone())?,
            losses: losses.each.part(range)?,
        };
        chunk.logits(head, hidden, &part)?;
        chunk.rows(&mut part)?;
        if let Some(gradients) = &mut gradients {
            chunk.gradient(head, &part)?;
            chunk.combine(head, &part, gradients)?;
        }
    }
    let count = (targets.count() as i32).into();
    gpu.launch(&SUM, Shape::of(1, 1024), [(&*losses.each).into(), count, losses.sum.into()])
}

// === impl Chunk ===

impl Chunk {
    fn new(gpu: &Gpu, head: &GpuHead<'_>, count: usize, with_gradient: bool) -> Result<Self> {
        let rows = count.div_ceil(count.div_ceil(CHUNK)).next_multiple_of(TILE);
        let columns = head.vocabulary.next_multiple_of(TILE);
        let groups = columns / GROUP;
        let parts = parts(gpu, rows / TILE * head.width.div_ceil(TILE)).min(groups);
        let share = groups.div_ceil(parts);
        let parts = groups.div_ceil(share);
        let values = |count: usize| with_gradient.then(|| gpu.empty::<bf16>(count)).transpose();
        Ok(Self {
            rows,
            columns,
            parts,
            share,
            terms: values(rows.min(count) * columns)?,
            groups: gpu.empty(2 * groups * rows)?,
            target_logits: gpu.empty(rows)?,
            row_factors: gpu.empty(rows)?,
            target_gradients: gpu.empty(rows)?,
            factors: values(groups * rows)?,
            sums: with_gradient.then(|| gpu.empty(parts * rows * head.width)).transpose()?,
        })
    }

    fn logits(&mut self, head: &GpuHead<'_>, hidden: &Buffer<bf16>, part: &Part) -> Result<()> {
        let number = |value: usize| (value as i32).into();
        let nothing = None::<&Buffer<bf16>>;
        let arguments = [
            hidden.into(),
            (&part.list).into(),
            (&part.targets).into(),
            number(part.count),
            number(head.width),
            head.weight.into(),
            number(head.vocabulary),
            nothing.into(),
            number(0),
            nothing.into(),
            number(0),
            number(0),
            self.terms.as_mut().into(),
            (&mut self.groups).into(),
            (&mut self.target_logits).into(),
            number(self.rows),
            number(self.columns),
        ];
        let tiles = (self.rows / TILE) * (self.columns / TILE);
        hidden.gpu().launch(&LOGITS, Shape::of(tiles as u32, THREADS).with_shared(SHARED), arguments)
    }

    fn rows(&mut self, part: &mut Part) -> Result<()> {
        let number = |value: usize| (value as i32).into();
        let gpu = self.groups.gpu().clone();
        let arguments = [
            (&self.groups).into(),
            number(self.columns / GROUP),
            number(self.rows),
            number(part.count),
            (&self.target_logits).into(),
            (&mut part.losses).into(),
            (&mut self.row_factors).into(),
            (&mut self.target_gradients).into(),
            self.factors.as_mut().into(),
        ];
        gpu.launch(&ROWS, Shape::of(self.rows as u32 / 32, 1024), arguments)
    }

    fn gradient(&mut self, head: &GpuHead<'_>, part: &Part) -> Result<()> {
        let number = |value: usize| (value as i32).into();
        let tiles = (self.rows / TILE) * head.width.div_ceil(TILE);
        let shape = Shape::grid([tiles as u32, self.parts as u32, 1], THREADS).with_shared(SHARED);
        let arguments = [
            self.terms.as_ref().into(),
            self.factors.as_ref().into(),
            number(part.count),
            number(self.rows),
            number(self.columns),
            number(self.share),
            head.weight.into(),
            number(head.vocabulary),
            number(head.width),
            self.sums.as_mut().into(),
        ];
        head.weight.gpu().launch(&GRADIENT, shape, arguments)
    }

    fn combine(&self, head: &GpuHead<'_>, part: &Part, gradients: &mut GpuLossGradients<'_>) -> Result<()> {
        let number = |value: usize| (value as i32).into();
        let arguments = [
            self.sums.as_ref().into(),
            number(self.parts),
            number(self.rows),
            number(head.width),
            (&part.list).into(),
            (&part.targets).into(),
            (&self.row_factors).into(),
            (&self.target_gradients).into(),
            head.weight.into(),
            gradients.scale.into(),
            (&mut *gradients.hidden).into(),
        ];
        head.weight.gpu().launch(&COMBINE, Shape::of(part.count as u32, 256), arguments)
    }
}

/// Into how many parts a sum is cut so that so many tiles fill all multiprocessors, and most of them in the last round too.
fn parts(gpu: &Gpu, tiles: usize) -> usize {
    let facts = gpu.facts();
    let at_once = facts.multiprocessors as usize * (facts.shared_per_multiprocessor / (SHARED + 1024)).clamp(1, BLOCKS);
    let busy = |parts: usize| (parts * tiles) as f64 / ((parts * tiles).next_multiple_of(at_once)) as f64;
    // One more part has to be worth what it writes and reads.
    (1..=PARTS).fold(1, |best, parts| if busy(parts) > busy(best) + 0.02 { parts } else { best })
}
