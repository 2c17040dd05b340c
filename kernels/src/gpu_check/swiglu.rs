//! The gated activation, and rows scaled by a gate.

use half::bf16;

use super::{BF16, BF16_GRADIENT, Checks, Sizes};
use crate::Result;
use crate::gpu::Buffer;
use crate::swiglu::{gpu, reference};

/// The last fills whole blocks.
const SMALL: [(usize, usize); 8] = [(1, 1), (3, 5), (2, 8), (7, 24), (5, 513), (9, 1024), (2, 2064), (8, 1024)];
const REAL: [(usize, usize); 3] = [(257, 512), (300, 2048), (63, 5120)];

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    let shapes: &[_] = if checks.sizes == Sizes::Small { &SMALL } else { &REAL };
    for &(rows, width) in shapes {
        checks.case(format!("swiglu {rows} x {width}"));
        activation(checks, rows, width)?;
        checks.case(format!("scaled rows {rows} x {width}"));
        scaled(checks, rows, width)?;
    }
    Ok(())
}

/// Rows of two buffers beside each other.
fn joined<T: Copy>(left: &[T], right: &[T], width: usize) -> Vec<T> {
    left.chunks(width).zip(right.chunks(width)).flat_map(|(left, right)| left.iter().chain(right).copied()).collect()
}

fn activation(checks: &mut Checks<'_>, rows: usize, width: usize) -> Result<()> {
    let count = rows * width;
    let (gate, wide_gate) = checks.bf16_within(4.0, count)?;
    let (up, wide_up) = checks.bf16(count)?;
    let (dy, wide_dy) = checks.bf16(count)?;
    let both = checks.gpu.of(&joined(&gate.download()?, &up.download()?, width))?;

    let expected = reference::forward(&wide_gate, &wide_up);
    let mut y: Buffer<bf16> = checks.gpu.empty(count)?;
    gpu::forward(&gate, &up, &mut y)?;
    checks.compare("forward", &y, &expected, BF16)?;
    let mut y: Buffer<bf16> = checks.gpu.empty(count)?;
    gpu::forward_joined(&both, width, &mut y)?;
    checks.compare("forward, joined", &y, &expected, BF16)?;

    let (expected_gate, expected_up) = reference::backward(&wide_gate, &wide_up, &wide_dy);
    let (mut d_gate, mut d_up) = (checks.gpu.empty(count)?, checks.gpu.empty(count)?);
    gpu::backward(&gate, &up, &dy, &mut d_gate, &mut d_up)?;
    checks.compare("gradient of gate", &d_gate, &expected_gate, BF16_GRADIENT)?;
    checks.compare("gradient of up", &d_up, &expected_up, BF16_GRADIENT)?;
    let mut d_both: Buffer<bf16> = checks.gpu.empty(2 * count)?;
    gpu::backward_joined(&both, width, &dy, &mut d_both)?;
    checks.compare("gradient, joined", &d_both, &joined(&expected_gate, &expected_up, width), BF16_GRADIENT)
}

fn scaled(checks: &mut Checks<'_>, rows: usize, width: usize) -> Result<()> {
    let count = rows * width;
    let (y, wide_y) = checks.bf16(count)?;
    let (gates, wide_gates) = checks.bf16_within(3.0, rows)?;
    let (d_out, wide_d_out) = checks.bf16(count)?;
    let (before, wide_before) = checks.bf16(count)?;

    let expected = reference::scale_forward(&wide_y, &wide_gates);
    let mut out: Buffer<bf16> = checks.gpu.empty(count)?;
    gpu::scale_rows(&y, &gates, &mut out)?;
    checks.compare("forward", &out, &expected, BF16)?;
    out.copy_from(&before)?;
    gpu::add_scaled_rows(&y, &gates, &mut out)?;
    let expected: Vec<f64> = expected.iter().zip(&wide_before).map(|(scaled, before)| scaled + before).collect();
    checks.compare("added to what was there", &out, &expected, BF16)?;

    let (mut d_y, mut d_gates) = (checks.gpu.empty(count)?, checks.gpu.empty(rows)?);
    gpu::scale_rows_backward(&y, &gates, &d_out, &mut d_y, &mut d_gates)?;
    let (expected_y, expected_gates) = reference::scale_backward(&wide_y, &wide_gates, &wide_d_out);
    checks.compare("gradient of the rows", &d_y, &expected_y, BF16_GRADIENT)?;
    checks.compare("gradient of the gates", &d_gates, &expected_gates, BF16_GRADIENT)
}
