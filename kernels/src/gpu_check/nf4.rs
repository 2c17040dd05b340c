//! NF4: what is decoded is the reference's value, rounded to bf16.

use half::bf16;

use super::{Checks, EXACT, Sizes};
use crate::Result;
use crate::nf4::{BLOCK, GpuNf4, Nf4Matrix};
use crate::self_test::values::narrow;

const SMALL: [(usize, usize); 9] = [(1, 1), (1, 7), (3, 5), (1, 64), (7, 9), (2, 65), (33, 100), (300, 64), (129, 257)];
const REAL: [(usize, usize); 2] = [(2048, 4096), (513, 2049)];

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    let shapes: &[_] = if checks.sizes == Sizes::Small { &SMALL } else { &REAL };
    for &(rows, columns) in shapes {
        for double_quant in [false, true] {
            checks.case(format!("nf4 {rows} x {columns}{}", if double_quant { ", double" } else { "" }));
            let mut values = narrow(&checks.random.values(rows * columns));
            // Blocks of many sizes, and some of zeros.
            for (block, values) in values.chunks_mut(BLOCK).enumerate() {
                let factor = if block % 97 == 7 { 0.0 } else { 0.01 * (1 + block % 13) as f32 };
                values.iter_mut().for_each(|value| *value *= factor);
            }
            let matrix = Nf4Matrix::quantize(&values, rows, columns, double_quant)?;
            let expected: Vec<f64> = matrix.dequantize().iter().map(|value| bf16::from_f32(*value).to_f64()).collect();
            let mut found = checks.gpu.empty::<bf16>(rows * columns)?;
            GpuNf4::of(checks.gpu, &matrix)?.decode(&mut found)?;
            checks.compare("decoded", &found, &expected, EXACT)?;
        }
    }
    Ok(())
}
