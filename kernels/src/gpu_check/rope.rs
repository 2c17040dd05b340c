//! Heads before attention, and the gate behind it.

use half::bf16;

use super::{BF16, BF16_GRADIENT, Checks, Sizes};
use crate::gpu::Buffer;
use crate::norm::Kind;
use crate::rope::{GpuHeadNormRope, GpuRopeTable, HeadNorm, HeadNormRope, HeadShape, RopeTable, gpu, reference};
use crate::self_test::values::narrow;
use crate::{Documents, GpuDocuments, Result};

/// Heads, values of one, values to the next, values that turn; lengths of documents.
const SMALL: [([usize; 4], &[usize]); 11] = [
    ([1, 2, 2, 2], &[3]),
    ([3, 6, 9, 4], &[2, 1, 3]),
    ([2, 37, 80, 10], &[4, 1]),
    ([2, 16, 32, 16], &[5, 3]),
    ([5, 64, 64, 16], &[1, 6]),
    ([3, 40, 48, 32], &[7, 2]),
    ([2, 128, 128, 128], &[9]),
    ([3, 256, 512, 64], &[3, 4]),
    ([1, 128, 129, 128], &[2]),
    // Whole blocks of heads: 16 of 128 values, 32 of 64.
    ([16, 128, 128, 64], &[1, 1]),
    ([8, 64, 128, 64], &[1; 8]),
];
const REAL: [([usize; 4], &[usize]); 3] =
    [([16, 256, 512, 64], &[100, 1, 155]), ([2, 256, 256, 64], &[511]), ([32, 128, 128, 128], &[77, 123])];

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    let shapes: &[_] = if checks.sizes == Sizes::Small { &SMALL } else { &REAL };
    for (index, &([heads, head_dim, source_stride, rotary_dim], lengths)) in shapes.iter().enumerate() {
        let shape = HeadShape { heads, head_dim, source_stride };
        let kinds = [Some(Kind::ZeroCentred), None, Some(Kind::Plain)];
        for kind in kinds.into_iter().skip(index % 2).take(2) {
            checks.case(format!("rope {lengths:?} x {shape:?}, {rotary_dim} turn, norm {kind:?}"));
            prepare(checks, shape, rotary_dim, kind, &Documents::from_lengths(lengths)?)?;
        }
        checks.case(format!("sigmoid gate {lengths:?} x {shape:?}"));
        gate(checks, lengths.iter().sum::<usize>() * heads, head_dim)?;
    }
    Ok(())
}

fn prepare(
    checks: &mut Checks<'_>,
    shape: HeadShape,
    rotary_dim: usize,
    kind: Option<Kind>,
    documents: &Documents,
) -> Result<()> {
    let table = RopeTable::new(rotary_dim, 1e4, documents.tokens())?;
    let weight = narrow(&checks.random.values(shape.head_dim));
    let norm = kind.map(|kind| HeadNorm { weight: weight.into(), kind, epsilon: 1e-6 });
    let gpu_rope = GpuHeadNormRope::of(checks.gpu, shape, norm.as_ref())?;
    let (gpu_table, gpu_documents) = (GpuRopeTable::of(checks.gpu, &table)?, GpuDocuments::of(checks.gpu, documents)?);
    let rope = HeadNormRope { shape, norm, table, positions: documents.positions().into() };

    let count = documents.tokens() * shape.heads;
    let (x, wide_x) = checks.bf16(count * shape.source_stride)?;
    let (dy, wide_dy) = checks.bf16(count * shape.head_dim)?;
    let mut y = checks.gpu.empty(count * shape.head_dim)?;
    gpu_rope.forward(&x, &gpu_table, &gpu_documents, &mut y)?;
    checks.compare("forward", &y, &reference::forward(&wide_x, &rope), BF16)?;
    // What is beside the heads stays as it was.
    let mut dx: Buffer<bf16> = checks.gpu.zeros(x.len())?;
    gpu_rope.backward(&x, &gpu_table, &gpu_documents, &dy, &mut dx)?;
    checks.compare("gradient", &dx, &reference::backward(&wide_x, &rope, &wide_dy), BF16_GRADIENT)
}

fn gate(checks: &mut Checks<'_>, heads: usize, head_dim: usize) -> Result<()> {
    let count = heads * head_dim;
    let (attention, wide_attention) = checks.bf16(count)?;
    let (raw, wide_raw) = checks.bf16_within(4.0, 2 * count)?;
    let (dy, wide_dy) = checks.bf16(count)?;
    let mut y = checks.gpu.empty(count)?;
    gpu::sigmoid_gate(&attention, &raw, head_dim, &mut y)?;
    checks.compare("forward", &y, &reference::gate_forward(&wide_attention, &wide_raw, head_dim), BF16)?;
    let mut d_attention = checks.gpu.empty(count)?;
    let mut d_raw: Buffer<bf16> = checks.gpu.zeros(2 * count)?;
    gpu::sigmoid_gate_backward(&attention, &raw, head_dim, &dy, &mut d_attention, &mut d_raw)?;
    let (expected, expected_raw) = reference::gate_backward(&wide_attention, &wide_raw, head_dim, &wide_dy);
    checks.compare("gradient of attention", &d_attention, &expected, BF16_GRADIENT)?;
    checks.compare("gradient of the gate", &d_raw, &expected_raw, BF16_GRADIENT)
}
