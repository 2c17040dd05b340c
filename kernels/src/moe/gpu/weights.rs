//! The experts' weights as products take them: all of them in NF4, or some at a time in bf16.

use std::ops::Range;

use half::bf16;

use super::experts::{GpuExperts, GroupScales, Nf4Group, Stored};
use super::ways;
use crate::Result;
use crate::gpu::{Argument, Buffer, Gpu, Kernel, Lane, Shape};
use crate::nf4::{BLOCK, NESTED_BLOCK, Reading};

const DECODE: Kernel =
    Kernel::new("moe_decode", "const u8*, const f32*, const u8*, const f32*, const f32*, const f32*, i32, i32, bf16*");
const THREADS: u32 = 256;
/// Values that a thread decodes at a time.
const VALUES: usize = 8;
/// Experts that are decoded at once, while products run on those before them: 128 MB of gate and up of Qwen3-Next in each of
/// two workspaces, and 2,048 tiles of work with 1,024 rows an expert, some 8 for each block of a card.
const AT_ONCE: usize = 32;

/// Which matrices of an expert.
#[derive(Debug, Clone, Copy)]
pub(super) enum Matrices {
    GateUp,
    Down,
}

/// Weights, and how they are stored.
#[derive(Clone, Copy)]
pub(super) struct Weights {
    pub(super) arguments: [Argument; 8],
    pub(super) nf4: bool,
}

// === impl Weights ===

impl Weights {
    /// In bf16, beginning with expert `first`.
    pub(super) fn plain(values: Option<&Buffer<bf16>>, first: usize) -> Self {
        let (bytes, floats) = (Argument::from(None::<&Buffer<u8>>), Argument::from(None::<&Buffer<f32>>));
        let first = (first as i32).into();
        Self { arguments: [values.into(), first, bytes, floats, bytes, floats, floats, floats], nf4: false }
    }

    fn quantised(group: &Nf4Group) -> Self {
        let [packed, absmax, codes, nested, offsets, map] = group.arguments();
        let plain = None::<&Buffer<bf16>>.into();
        Self { arguments: [plain, 0i32.into(), packed, absmax, codes, nested, offsets, map], nf4: true }
    }
}

// === impl Nf4Group ===

impl Nf4Group {
    fn arguments(&self) -> [Argument; 6] {
        let (absmax, codes, nested, offsets, map) = match &self.scales {
            GroupScales::Plain(absmax) => (Some(absmax), None, None, None, None),
            GroupScales::Double { codes, nested, offsets, map } => {
                (None, Some(codes), Some(nested), Some(offsets), Some(map))
            }
        };
        [(&self.packed).into(), absmax.into(), codes.into(), nested.into(), offsets.into(), map.into()]
    }

    fn decode(&self, gpu: &Gpu, matrices: Range<usize>, out: &mut Buffer<bf16>) -> Result<()> {
        let blocks = (self.count / VALUES).div_ceil(THREADS as usize);
        let shape = Shape::grid([blocks as u32, matrices.len() as u32, 1], THREADS);
        let [packed, absmax, codes, nested, offsets, map] = self.arguments();
        let (first, count) = ((matrices.start as i32).into(), (self.count as i32).into());
        gpu.launch(&DECODE, shape, [packed, absmax, codes, nested, offsets, map, first, count, out.into()])
    }
}

/// Calls `work` with weights and the experts that it is for, until it was called for all; `rows` is how many all have. Where
/// weights are decoded into a workspace, the next ones are decoded while the product runs on these.
pub(super) fn each_group(
    experts: &GpuExperts,
    which: Matrices,
    rows: usize,
    mut work: impl FnMut(Weights, Range<usize>) -> Result<()>,
) -> Result<()> {
    let all = 0..experts.experts();
    let (group, matrices) = match (&experts.stored, which) {
        (Stored::Plain { gate_up, .. }, Matrices::GateUp) => return work(Weights::plain(Some(gate_up), 0), all),
        (Stored::Plain { down, .. }, Matrices::Down) => return work(Weights::plain(Some(down), 0), all),
        (Stored::Nf4 { gate_up, .. }, Matrices::GateUp) => (gate_up, 2),
        (Stored::Nf4 { down, .. }, Matrices::Down) => (down, 1),
    };
    let gpu = experts.gpu();
    let reading = experts.reading.unwrap_or_else(|| ways::reading(gpu, rows / experts.experts()));
    if reading == Reading::Fused && in_whole_blocks(experts) {
        return work(Weights::quantised(group), all);
    }
    let some = |first: usize| first..all.end.min(first + AT_ONCE);
    let decode = |range: Range<usize>, workspace: &mut Buffer<bf16>| {
        group.decode(gpu, matrices * range.start..matrices * range.end, workspace)
    };
    let workspace = || gpu.empty(AT_ONCE.min(all.end) * matrices * group.count);
    let mut ready = workspace()?;
    let mut next = if all.end > AT_ONCE { Some(workspace()?) } else { None };
    decode(some(0), &mut ready)?;
    for first in all.clone().step_by(AT_ONCE) {
        // Beside this group's product, into what the product before it has read.
        let ahead = match &mut next {
            Some(next) if first + AT_ONCE < all.end => {
                Some(gpu.beside(Lane::Kernels, || decode(some(first + AT_ONCE), next))?)
            }
            _ => None,
        };
        work(Weights::plain(Some(&ready), first), some(first))?;
        if let (Some(ahead), Some(next)) = (ahead, &mut next) {
            ahead.join()?;
            std::mem::swap(&mut ready, next);
        }
    }
    Ok(())
}

/// What products that decode ask for: rows of whole blocks, and matrices of whole nested blocks.
fn in_whole_blocks(experts: &GpuExperts) -> bool {
    let (hidden, width) = (experts.hidden(), experts.width());
    hidden.is_multiple_of(BLOCK) && width.is_multiple_of(BLOCK) && (hidden * width).is_multiple_of(BLOCK * NESTED_BLOCK)
}
