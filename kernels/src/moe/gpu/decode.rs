//! Experts in bf16, some at a time: decoded into a workspace, or as they are stored.

use half::bf16;

use super::experts::{GpuExperts, GroupScales, Nf4Group, Stored};
use crate::Result;
use crate::gpu::{Buffer, Gpu, Kernel, Shape};

const DECODE: Kernel = Kernel::new(
    "moe_decode",
    "const u8*, const f32*, const u8*, const f32*, const f32*, const f32*, i32, i32, u64, u64, bf16*",
);
const THREADS: u32 = 256;
/// Values that a thread decodes at a time.
const VALUES: usize = 8;
/// Experts that are decoded at once: 256 MB of gate and up of Qwen3-Next, some 750 tiles of work with 160 rows an expert.
const AT_ONCE: usize = 64;

/// Which matrices of an expert.
#[derive(Debug, Clone, Copy)]
pub(super) enum Matrices {
    GateUp,
    Down,
}

/// Calls `work` for experts first..last, with their matrices in bf16 and the expert that these begin with.
pub(super) fn each_group(
    experts: &GpuExperts,
    which: Matrices,
    mut work: impl FnMut(&Buffer<bf16>, usize, std::ops::Range<usize>) -> Result<()>,
) -> Result<()> {
    let groups = match &experts.stored {
        Stored::Plain { gate_up, down } => {
            let all = match which {
                Matrices::GateUp => gate_up,
                Matrices::Down => down,
            };
            return work(all, 0, 0..experts.experts());
        }
        Stored::Nf4(groups) => groups,
    };
    let parts = match which {
        Matrices::GateUp => &groups[..2],
        Matrices::Down => &groups[2..],
    };
    let count = parts[0].count;
    let gpu = experts.gpu();
    let mut workspace = gpu.empty(AT_ONCE.min(experts.experts()) * parts.len() * count)?;
    for first in (0..experts.experts()).step_by(AT_ONCE) {
        let some = first..experts.experts().min(first + AT_ONCE);
        for (index, part) in parts.iter().enumerate() {
            decode(gpu, part, some.clone(), parts.len() * count, index * count, &mut workspace)?;
        }
        work(&workspace, first, some)?;
    }
    Ok(())
}

fn decode(
    gpu: &Gpu,
    group: &Nf4Group,
    experts: std::ops::Range<usize>,
    stride: usize,
    start: usize,
    out: &mut Buffer<bf16>,
) -> Result<()> {
    let (absmax, codes, nested, offsets, map) = match &group.scales {
        GroupScales::Plain(absmax) => (Some(absmax), None, None, None, None),
        GroupScales::Double { codes, nested, offsets, map } => {
            (None, Some(codes), Some(nested), Some(offsets), Some(map))
        }
    };
    let blocks = (group.count / VALUES).div_ceil(THREADS as usize);
    let shape = Shape::grid([blocks as u32, experts.len() as u32, 1], THREADS);
    let arguments = [
        (&group.packed).into(),
        absmax.into(),
        codes.into(),
        nested.into(),
        offsets.into(),
        map.into(),
        (experts.start as i32).into(),
        (group.count as i32).into(),
        (stride as u64).into(),
        (start as u64).into(),
        out.into(),
    ];
    gpu.launch(&DECODE, shape, arguments)
}
