//! Products: every form, size of tiles and kind of result, at sizes that end anywhere within a tile.

use half::bf16;

use super::{BF16, Checks, F32, Sizes};
use crate::Result;
use crate::dropout::Dropout;
use crate::gemm::Accumulate;
use crate::gemm::gpu::{Choice, Form, Matrix, Out, Product};

/// m, n, k, and k of the product before.
const SMALL: [[usize; 4]; 6] =
    [[1, 1, 1, 0], [1, 70, 64, 8], [65, 7, 20, 0], [130, 129, 72, 20], [64, 128, 33, 16], [3, 200, 264, 0]];
const REAL: [[usize; 4]; 3] = [[256, 1024, 1024, 16], [257, 515, 777, 0], [384, 512, 2048, 64]];

const FORMS: [Form; 3] = [Form::RowsByRows, Form::RowsByColumns, Form::ColumnsByColumns];

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    let cases: &[_] = if checks.sizes == Sizes::Small { &SMALL } else { &REAL };
    for (case, &[m, n, k, before]) in cases.iter().enumerate() {
        for form in FORMS {
            // Not all of everything: the tiles take turns with the cases.
            let tiles = if case % 2 == 0 { Choice::Large } else { Choice::Small };
            checks.case(format!("product {form:?} {m} x {n} x {k} + {before}, {tiles:?}"));
            one(checks, form, [m, n, k, before], tiles)?;
        }
    }
    gaps(checks)
}

/// Rows and columns of an operand in memory.
fn lies(along_k: bool, outer: usize, k: usize) -> (usize, usize) {
    if along_k { (outer, k) } else { (k, outer) }
}

/// `Σk A[m, k] B[k, n]` of operands that lie as a form says.
fn reference(form: Form, [m, n, k]: [usize; 3], a: &[f64], b: &[f64]) -> Vec<f64> {
    let (a_step, b_step) = match form {
        Form::RowsByRows => ([k, 1], [k, 1]),
        Form::RowsByColumns => ([k, 1], [1, n]),
        Form::ColumnsByColumns => ([1, m], [1, n]),
    };
    let mut out = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            out.push((0..k).map(|l| a[i * a_step[0] + l * a_step[1]] * b[j * b_step[0] + l * b_step[1]]).sum());
        }
    }
    out
}

fn one(checks: &mut Checks<'_>, form: Form, [m, n, k, before]: [usize; 4], tiles: Choice) -> Result<()> {
    let (a_along, b_along) = (form != Form::ColumnsByColumns, form == Form::RowsByRows);
    let (a, a_values) = checks.bf16(m * k)?;
    let (b, b_values) = checks.bf16(n * k)?;
    let (a1, a1_values) = checks.bf16(m * before)?;
    let (b1, b1_values) = checks.bf16(n * before)?;
    let (bias, bias_values) = checks.f32(n)?;
    let matrix = |values, along, outer, k| {
        let (rows, columns) = lies(along, outer, k);
        Matrix::of(values, rows, columns)
    };
    let mut product = Product::new(form, matrix(&a, a_along, m, k)?, matrix(&b, b_along, n, k)?);
    product.scale = 0.5;
    let whole = reference(form, [m, n, k], &a_values, &b_values);
    let mut first = reference(form, [m, n, before], &a1_values, &b1_values);
    if before > 0 {
        product.before = Some((matrix(&a1, a_along, m, before)?, matrix(&b1, b_along, n, before)?));
        if form == Form::RowsByColumns {
            let dropout = Dropout::keyed(0.3, &[m as u64]);
            product.dropout = Some(dropout);
            let kept = |(index, value): (usize, &mut f64)| {
                if dropout.factor(index as u64) == 0.0 {
                    *value = 0.0;
                }
            };
            first.iter_mut().enumerate().for_each(kept);
        }
    }
    let sums: Vec<f64> = whole.iter().zip(&first).map(|(whole, first)| 0.5 * (whole + first)).collect();

    let mut wide = checks.gpu.empty::<f32>(m * n)?;
    product.run_with(tiles, Out::F32(&mut wide))?;
    checks.compare("f32", &wide, &sums, F32)?;
    product.accumulate = Accumulate::Add;
    product.run_with(tiles, Out::F32(&mut wide))?;
    let twice: Vec<f64> = sums.iter().map(|sum| 2.0 * sum).collect();
    checks.compare("f32, added", &wide, &twice, F32)?;
    // Without a choice of tiles: by the vendor's library where there is one.
    product.run(Out::F32(&mut wide))?;
    let thrice: Vec<f64> = sums.iter().map(|sum| 3.0 * sum).collect();
    checks.compare("f32, added again", &wide, &thrice, F32)?;
    product.accumulate = Accumulate::Overwrite;
    let mut narrow = checks.gpu.empty::<bf16>(m * n)?;
    product.run(Out::Bf16(&mut narrow))?;
    checks.compare("bf16", &narrow, &sums, BF16)?;
    product.accumulate = Accumulate::Add;

    let with_bias: Vec<f64> = sums.iter().enumerate().map(|(index, sum)| sum + bias_values[index % n]).collect();
    product.bias = Some(&bias);
    let (mut narrow, old) = checks.bf16(m * n)?;
    product.run_with(tiles, Out::Bf16(&mut narrow))?;
    let added: Vec<f64> = with_bias.iter().zip(&old).map(|(sum, old)| sum + old).collect();
    checks.compare("bf16 with bias, added", &narrow, &added, BF16)?;
    product.accumulate = Accumulate::Overwrite;
    let mut narrow = checks.gpu.empty::<bf16>(m * n)?;
    product.run_with(tiles, Out::Bf16(&mut narrow))?;
    checks.compare("bf16 with bias", &narrow, &with_bias, BF16)
}

/// Columns out of the middle of a wider matrix, and a result that begins at an odd place.
fn gaps(checks: &mut Checks<'_>) -> Result<()> {
    let (m, n, k, stride) = (9, 6, 20, 48);
    for offset in [8, 5] {
        checks.case(format!("product of columns from {offset} on"));
        let (a, a_values) = checks.bf16(m * stride)?;
        let (b, b_values) = checks.bf16(n * k)?;
        let part = a.part(offset..m * stride)?;
        let product = Product::new(Form::RowsByRows, Matrix::with_stride(&part, m, k, stride)?, Matrix::of(&b, n, k)?);
        let a_values: Vec<f64> =
            (0..m).flat_map(|row| a_values[row * stride + offset..][..k].iter().copied()).collect();
        let all = checks.gpu.zeros::<bf16>(m * n + offset)?;
        let mut out = all.part(offset..m * n + offset)?;
        product.run(Out::Bf16(&mut out))?;
        checks.compare("bf16", &out, &reference(Form::RowsByRows, [m, n, k], &a_values, &b_values), BF16)?;
    }
    Ok(())
}
