//! Quantising: the bytes are those of the processor's side.

use half::bf16;

use super::{Checks, EXACT, Sizes};
use crate::Result;
use crate::nf4::{BLOCK, GpuNf4, GpuScales, GpuValues, Nf4Matrix, Scales, mean, mean_of};
use crate::self_test::values::{narrow, wide};

/// Up to 33 rows of 32 scales, and fewer than 8 of them.
const SMALL: [(usize, usize); 8] = [(1, 1), (3, 7), (5, 64), (2, 99), (4, 130), (33, 100), (200, 128), (273, 257)];
const REAL: [(usize, usize); 2] = [(2048, 4096), (3000, 1025)];

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    let shapes: &[_] = if checks.sizes == Sizes::Small { &SMALL } else { &REAL };
    for &(rows, columns) in shapes {
        for (double_quant, narrow) in [(false, true), (true, true), (true, false)] {
            checks.case(format!("quantize {rows} x {columns}, double {double_quant}, bf16 {narrow}"));
            one(checks, rows, columns, double_quant, narrow)?;
        }
    }
    // Sums of four levels, and what is left on each.
    for count in [5, 32 * 16 * 16, 32 * 16 * (16 * 16 + 16 + 1) + 32 * 3 + 29] {
        checks.case(format!("mean of {count}"));
        let values = narrow(&checks.random.values(count));
        let found = mean_of(&checks.gpu.of(&values)?)?;
        checks.compare("mean", &found, &[f64::from(mean(&values))], EXACT)?;
    }
    damaged(checks)
}

/// Blocks of many sizes, and some of zeros.
fn values(checks: &mut Checks<'_>, count: usize, rounded: bool) -> Vec<f32> {
    let mut values = narrow(&checks.random.values(count));
    for (block, values) in values.chunks_mut(BLOCK).enumerate() {
        let factor = if block % 37 == 7 { 0.0 } else { 0.01 * (1 + block % 13) as f32 };
        values.iter_mut().for_each(|value| *value *= factor);
    }
    if rounded {
        values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
    }
    values
}

fn one(checks: &mut Checks<'_>, rows: usize, columns: usize, double_quant: bool, rounded: bool) -> Result<()> {
    let gpu = checks.gpu.clone();
    let values = values(checks, rows * columns, rounded);
    let expected = Nf4Matrix::quantize(&values, rows, columns, double_quant)?;
    let mut damaged = gpu.zeros::<u32>(1)?;
    let found = if rounded {
        // From an odd place on.
        let all: Vec<bf16> = std::iter::once(0.0).chain(values).map(bf16::from_f32).collect();
        let begin = columns % 2;
        let values = gpu.of(&all[1 - begin..])?.part(begin..begin + rows * columns)?;
        GpuNf4::quantize(GpuValues::Bf16(&values), rows, columns, double_quant, &mut damaged)?
    } else {
        GpuNf4::quantize(GpuValues::F32(&gpu.of(&values)?), rows, columns, double_quant, &mut damaged)?
    };
    checks.compare("codes", found.packed(), &wide(expected.packed()), EXACT)?;
    checks.compare("damaged", &damaged, &[0.0], EXACT)?;
    match (found.scales(), expected.scales()) {
        (GpuScales::Plain(found), Scales::Plain(absmax)) => checks.compare("absmax", found, &wide(absmax), EXACT),
        (GpuScales::Double { codes, nested, offset, .. }, Scales::Double { codes: c, nested: n, offset: o }) => {
            checks.compare("codes of scales", codes, &wide(c), EXACT)?;
            checks.compare("nested scales", nested, &wide(n), EXACT)?;
            checks.compare("mean of scales", &gpu.of(&[*offset])?, &[f64::from(*o)], EXACT)
        }
        _ => checks.compare("kind of scales", &gpu.zeros::<f32>(1)?, &[1.0], EXACT),
    }
}

/// What is not finite is counted.
fn damaged(checks: &mut Checks<'_>) -> Result<()> {
    checks.case("quantize what is not finite");
    let mut values = values(checks, 5 * BLOCK + 3, false);
    for (index, value) in [(1, f32::NAN), (BLOCK, f32::INFINITY), (5 * BLOCK + 2, f32::NEG_INFINITY)] {
        values[index] = value;
    }
    let mut damaged = checks.gpu.zeros::<u32>(1)?;
    let (count, values) = (values.len(), checks.gpu.of(&values)?);
    GpuNf4::quantize(GpuValues::F32(&values), 1, count, false, &mut damaged)?;
    checks.compare("damaged", &damaged, &[3.0], EXACT)
}
