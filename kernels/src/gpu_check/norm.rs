//! The norms: with the sums that are fused with them, and with the gate.

use half::bf16;

use super::{BF16, BF16_GRADIENT, Checks, EXACT, Sizes};
use crate::Result;
use crate::conv::HeadGroups;
use crate::gpu::Buffer;
use crate::norm::{GpuGatedNorm, GpuNorm, Kind, reference};
use crate::self_test::values::narrow;

const EPSILON: f32 = 1e-6;

/// Rows of every kernel's greatest width, and of one value more.
const SMALL: [(usize, usize); 11] =
    [(1, 1), (3, 7), (2, 8), (5, 72), (2, 1033), (3, 1000), (5, 2048), (2, 2056), (1, 4104), (1, 8192), (1, 4096)];
const REAL: [(usize, usize); 3] = [(65, 2048), (9, 4096), (9, 2049)];

/// Key heads, value heads, their sizes, tokens.
const SMALL_HEADS: [([usize; 4], usize); 7] = [
    ([1, 1, 4, 8], 1),
    ([2, 4, 8, 32], 7),
    ([2, 2, 16, 128], 9),
    ([1, 3, 4, 24], 5),
    ([2, 4, 3, 5], 6),
    ([1, 2, 8, 256], 3),
    // Whole blocks of heads.
    ([2, 4, 16, 128], 8),
];
const REAL_HEADS: [([usize; 4], usize); 1] = [([16, 32, 128, 128], 100)];

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    let shapes: &[_] = if checks.sizes == Sizes::Small { &SMALL } else { &REAL };
    for &(rows, width) in shapes {
        for kind in [Kind::Plain, Kind::ZeroCentred] {
            checks.case(format!("norm {rows} x {width} {kind:?}"));
            rms(checks, rows, width, kind)?;
        }
    }
    let shapes: &[_] = if checks.sizes == Sizes::Small { &SMALL_HEADS } else { &REAL_HEADS };
    for &([key_heads, value_heads, key_dim, value_dim], tokens) in shapes {
        let groups = HeadGroups { key_heads, value_heads, key_dim, value_dim };
        checks.case(format!("gated norm {tokens} x {groups:?}"));
        gated(checks, &groups, tokens)?;
    }
    nothing(checks)
}

/// No rows at all are no error.
fn nothing(checks: &mut Checks<'_>) -> Result<()> {
    checks.case("norms of nothing");
    let none = || checks.gpu.empty::<bf16>(0);
    let norm = GpuNorm::of(checks.gpu, &[1.0; 16], Kind::Plain, EPSILON)?;
    norm.forward(&none()?, &mut none()?)?;
    norm.backward(&none()?, &none()?, None, &mut none()?)?;
    let groups = HeadGroups { key_heads: 1, value_heads: 2, key_dim: 8, value_dim: 8 };
    let norm = GpuGatedNorm::of(checks.gpu, &[1.0; 8], &groups, EPSILON)?;
    norm.forward(&none()?, &none()?, &mut none()?)?;
    norm.backward(&none()?, &none()?, &none()?, &mut none()?, &mut none()?)
}

/// `x + y` as a GPU has it.
fn sum(x: &[f64], y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| bf16::from_f32((x + y) as f32).to_f64()).collect()
}

fn plus(x: &[f64], y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| x + y).collect()
}

fn rms(checks: &mut Checks<'_>, rows: usize, width: usize, kind: Kind) -> Result<()> {
    let count = rows * width;
    let weight = checks.random.values(width);
    let norm = GpuNorm::of(checks.gpu, &narrow(&weight), kind, EPSILON)?;
    let forward = |x: &[f64]| reference::forward(x, &weight, kind, f64::from(EPSILON));
    let (x, wide_x) = checks.bf16(count)?;
    let (delta, wide_delta) = checks.bf16(count)?;
    let wide_h = sum(&wide_x, &wide_delta);

    let mut y = checks.gpu.empty(count)?;
    norm.forward(&x, &mut y)?;
    checks.compare("forward", &y, &forward(&wide_x), BF16)?;
    let (mut h, mut y) = (checks.gpu.empty(count)?, checks.gpu.empty(count)?);
    norm.forward_sum(&x, &delta, &mut h, &mut y)?;
    checks.compare("sum", &h, &wide_h, EXACT)?;
    checks.compare("forward of the sum", &y, &forward(&wide_h), BF16)?;
    let (mut added, mut y) = (checks.gpu.empty(count)?, checks.gpu.empty(count)?);
    added.copy_from(&x)?;
    norm.forward_add(&mut added, &delta, &mut y)?;
    checks.compare("sum in its place", &added, &wide_h, EXACT)?;
    checks.compare("forward of the sum in its place", &y, &forward(&wide_h), BF16)?;

    let (dy, wide_dy) = checks.bf16(count)?;
    let (residual, wide_residual) = checks.bf16(count)?;
    let expected = reference::backward(&wide_h, &weight, kind, f64::from(EPSILON), &wide_dy);
    let with_residual = plus(&expected, &wide_residual);
    let mut dx = checks.gpu.empty(count)?;
    // A single value is its own norm: what reaches it is rounding.
    if width > 1 {
        norm.backward(&h, &dy, None, &mut dx)?;
        checks.compare("gradient", &dx, &expected, BF16_GRADIENT)?;
    }
    norm.backward(&h, &dy, Some(&residual), &mut dx)?;
    checks.compare("gradient with the residual's", &dx, &with_residual, BF16_GRADIENT)?;
    dx.copy_from(&residual)?;
    norm.backward_add(&h, &dy, &mut dx)?;
    checks.compare("gradient added to the residual's", &dx, &with_residual, BF16_GRADIENT)
}

fn gated(checks: &mut Checks<'_>, groups: &HeadGroups, tokens: usize) -> Result<()> {
    let weight = checks.random.values(groups.value_dim);
    let norm = GpuGatedNorm::of(checks.gpu, &narrow(&weight), groups, EPSILON)?;
    let (count, projection) = (tokens * groups.value_width(), tokens * groups.projection_width());
    let (o, wide_o) = checks.bf16(count)?;
    let (qkvz, wide_qkvz) = checks.bf16_within(4.0, projection)?;
    let (dy, wide_dy) = checks.bf16(count)?;
    let mut y = checks.gpu.empty(count)?;
    norm.forward(&o, &qkvz, &mut y)?;
    let expected = reference::gated_forward(&wide_o, &wide_qkvz, &weight, groups, f64::from(EPSILON));
    checks.compare("forward", &y, &expected, BF16)?;
    let mut d_o = checks.gpu.empty(count)?;
    // What is beside z stays as it was.
    let mut d_qkvz: Buffer<bf16> = checks.gpu.zeros(projection)?;
    norm.backward(&o, &qkvz, &dy, &mut d_o, &mut d_qkvz)?;
    let (expected_o, expected_qkvz) =
        reference::gated_backward(&wide_o, &wide_qkvz, &weight, groups, f64::from(EPSILON), &wide_dy);
    checks.compare("gradient of o", &d_o, &expected_o, BF16_GRADIENT)?;
    checks.compare("gradient of z", &d_qkvz, &expected_qkvz, BF16_GRADIENT)
}
