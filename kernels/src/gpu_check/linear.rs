//! Linear layers: weights in bf16 and NF4, read in both ways, with and without a low-rank update, bias and dropout.

use half::bf16;

use super::{BF16, BF16_GRADIENT, Checks, EXACT, Sizes};
use crate::Result;
use crate::dropout::Dropout;
use crate::gemm::Accumulate;
use crate::gemm::gpu::Out;
use crate::gpu::Gpu;
use crate::lora_linear::gpu::{GpuLinear, GpuLora, GpuLoraGradients, GpuWeight};
use crate::lora_linear::reference::{Shape, backward, forward};
use crate::nf4::{GpuNf4, Nf4Matrix, Reading};
use crate::self_test::values::narrow;

/// Where a weight's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bf16,
    Nf4,
    Double,
}

/// A layer, and how it is computed.
#[derive(Debug, Clone, Copy)]
struct Case {
    rows: usize,
    inputs: usize,
    outputs: usize,
    /// 0: no update.
    rank: usize,
    kind: Kind,
    reading: Reading,
    bias: bool,
    dropout: bool,
}

fn case([rows, inputs, outputs, rank]: [usize; 4], kind: Kind, reading: Reading, bias: bool, dropout: bool) -> Case {
    Case { rows, inputs, outputs, rank, kind, reading, bias, dropout }
}

fn small() -> Vec<Case> {
    use {Kind::*, Reading::*};
    vec![
        case([1, 7, 5, 1], Bf16, Copied, true, false),
        case([70, 40, 33, 8], Bf16, Copied, false, true),
        case([33, 72, 136, 20], Bf16, Copied, true, true),
        case([5, 61, 40, 3], Nf4, Copied, false, true),
        case([40, 128, 70, 16], Double, Copied, true, false),
        case([1, 64, 3, 1], Nf4, Fused, false, false),
        case([130, 192, 140, 0], Double, Fused, true, false),
        case([35, 128, 200, 8], Nf4, Fused, true, true),
        case([300, 192, 129, 20], Double, Fused, false, true),
        case([9, 64, 72, 70], Nf4, Fused, false, true),
        case([520, 16, 24, 16], Bf16, Copied, false, false),
        // Whole tiles.
        case([128, 128, 128, 16], Bf16, Copied, false, true),
        case([128, 128, 128, 64], Nf4, Fused, false, true),
    ]
}

fn real() -> Vec<Case> {
    use {Kind::*, Reading::*};
    vec![
        case([192, 2048, 1024, 16], Bf16, Copied, true, true),
        case([192, 2048, 1024, 16], Nf4, Copied, false, false),
        case([192, 2048, 1024, 8], Double, Fused, false, false),
        case([192, 1024, 2048, 32], Nf4, Fused, false, true),
        case([520, 512, 768, 256], Double, Fused, false, true),
    ]
}

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    let cases = if checks.sizes == Sizes::Small { small() } else { real() };
    for case in cases {
        checks.case(format!("{case:?}"));
        one(checks, case)?;
    }
    nothing(checks)
}

/// No rows at all are no error, and leave gradients as they were.
fn nothing(checks: &mut Checks<'_>) -> Result<()> {
    checks.case("linear of nothing");
    let gpu = checks.gpu.clone();
    let weight = GpuWeight::bf16(gpu.zeros(16 * 8)?, 16, 8)?;
    let linear = GpuLinear { weight, bias: None };
    let lora = GpuLora { a: gpu.zeros(4 * 8)?, b: gpu.zeros(16 * 4)?, rank: 4, scale: 1.0, dropout: None };
    let none = || gpu.empty::<bf16>(0);
    let down = linear.forward_by(Reading::Copied, &none()?, 0, Some(&lora), Out::Bf16(&mut none()?))?;
    let ((a, a_before), (b, b_before)) = (checks.f32(4 * 8)?, checks.f32(16 * 4)?);
    let mut gradients = GpuLoraGradients { a, b };
    let update = down.as_ref().map(|down| (&lora, down, &mut gradients));
    linear.backward_by(Reading::Copied, &none()?, &none()?, 0, update, Some((&mut none()?, Accumulate::Overwrite)))?;
    checks.compare("gradient of A", &gradients.a, &a_before, EXACT)?;
    checks.compare("gradient of B", &gradients.b, &b_before, EXACT)
}

/// A weight on the GPU, and its values as products get them.
fn weight(gpu: &Gpu, case: &Case, values: &[f64]) -> Result<(GpuWeight, Vec<f64>)> {
    let rounded = |values: &[f32]| values.iter().map(|&value| bf16::from_f32(value)).collect::<Vec<_>>();
    let wide = |values: &[bf16]| values.iter().map(|value| value.to_f64()).collect();
    if case.kind == Kind::Bf16 {
        let values = rounded(&narrow(values));
        return Ok((GpuWeight::bf16(gpu.of(&values)?, case.outputs, case.inputs)?, wide(&values)));
    }
    let matrix = Nf4Matrix::quantize(&narrow(values), case.outputs, case.inputs, case.kind == Kind::Double)?;
    let values = wide(&rounded(&matrix.dequantize()));
    Ok((GpuWeight::Nf4(GpuNf4::of(gpu, &matrix)?), values))
}

fn one(checks: &mut Checks<'_>, case: Case) -> Result<()> {
    let Case { rows, inputs, outputs, rank, reading, .. } = case;
    let gpu = checks.gpu.clone();
    let shape = Shape { rows, inputs, outputs, rank, scale: 0.75 };
    let values = checks.random.values(outputs * inputs);
    let (weight, w) = weight(&gpu, &case, &values)?;
    let (x, x_values) = checks.bf16(rows * inputs)?;
    let (dy, dy_values) = checks.bf16(rows * outputs)?;
    // As large as the weight's part, so that a fault in either shows.
    let limit = if rank == 0 { 1.0 } else { 1.5 / (rank as f64).sqrt() };
    let (a, a_values) = checks.bf16_within(limit, rank * inputs)?;
    let (b, b_values) = checks.bf16(outputs * rank)?;
    let (bias, mut bias_values) = checks.f32(outputs)?;
    if !case.bias {
        bias_values.fill(0.0);
    }
    let dropout = case.dropout.then(|| Dropout::keyed(0.25, &[rows as u64, rank as u64]));
    let mask: Vec<f64> =
        (0..rows * inputs).map(|index| dropout.map_or(1.0, |dropout| dropout.factor(index as u64).into())).collect();
    let linear = GpuLinear { weight, bias: case.bias.then_some(bias) };
    let lora = (rank > 0).then_some(GpuLora { a, b, rank, scale: 0.75, dropout });

    let mut y = gpu.empty(rows * outputs)?;
    let down = linear.forward_by(reading, &x, rows, lora.as_ref(), Out::Bf16(&mut y))?;
    checks.compare("forward", &y, &forward(&shape, &x_values, &w, &bias_values, &a_values, &b_values, &mask), BF16)?;

    let expected = backward(&shape, &x_values, &w, &a_values, &b_values, &mask, &dy_values);
    let (mut dx, old) = checks.bf16(rows * inputs)?;
    let (da, da_old) = checks.f32(rank * inputs)?;
    let (db, db_old) = checks.f32(outputs * rank)?;
    let mut gradients = GpuLoraGradients { a: da, b: db };
    let update = match (&lora, &down) {
        (Some(lora), Some(down)) => Some((lora, down, &mut gradients)),
        _ => None,
    };
    linear.backward_by(reading, &x, &dy, rows, update, Some((&mut dx, Accumulate::Add)))?;
    let sum = |new: &[f64], old: &[f64]| new.iter().zip(old).map(|(new, old)| new + old).collect::<Vec<_>>();
    checks.compare("gradient of x, added", &dx, &sum(&expected.x, &old), BF16_GRADIENT)?;
    if rank > 0 {
        checks.compare("gradient of A", &gradients.a, &sum(&expected.a, &da_old), BF16_GRADIENT)?;
        checks.compare("gradient of B", &gradients.b, &sum(&expected.b, &db_old), BF16_GRADIENT)?;
    }
    let mut dx = gpu.empty(rows * inputs)?;
    linear.backward_by(reading, &x, &dy, rows, None, Some((&mut dx, Accumulate::Overwrite)))?;
    let plain = backward(&Shape { rank: 0, ..shape }, &x_values, &w, &[], &[], &mask, &dy_values);
    checks.compare("gradient of x without an update", &dx, &plain.x, BF16_GRADIENT)
}
