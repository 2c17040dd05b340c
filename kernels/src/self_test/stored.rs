//! The formats that weights are stored in. Their roundings are defined, so all comparisons are exact but one: the mean
//! that double quantisation subtracts is defined by an order of additions, and compared with the mean in `f64`.

use super::values::{Random, narrow, wide};
use super::{Comparison, Sink};
use crate::nf4::{self, BLOCK, NESTED_BLOCK, Nf4Matrix, Scales};
use crate::{Error, Result, fp8};

/// More than one nested block of scales, and neither rows nor the whole are whole blocks.
const ROWS: usize = 133;
const COLUMNS: usize = 131;
const MEAN: f64 = 1e-6;

fn exact(op: &'static str, what: &'static str, found: &[f64], expected: &[f64], sink: &mut Sink<'_>) {
    sink(&Comparison { op, what, found, expected, tolerance: 0.0 });
}

pub(super) fn compare_nf4(random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let op = "nf4";
    let mut values = narrow(&random.values(ROWS * COLUMNS));
    // Blocks of many sizes, and one of zeros.
    for (block, values) in values.chunks_mut(BLOCK).enumerate() {
        let factor = if block == 7 { 0.0 } else { 0.01 * (1 + block % 13) as f32 };
        values.iter_mut().for_each(|value| *value *= factor);
    }
    let (packed, absmax) = nf4::reference::quantize(&values);
    let decoded = nf4::reference::dequantize(&packed, &absmax, values.len());
    let matrix = Nf4Matrix::quantize(&values, ROWS, COLUMNS, false)?;
    exact(op, "codes", &wide(matrix.packed()), &wide(&packed), sink);
    exact(op, "scales", &wide(&matrix.absmax()), &wide(&absmax), sink);
    exact(op, "decoded", &wide(&matrix.dequantize()), &wide(&decoded), sink);

    let op = "nf4, double quantisation";
    let matrix = Nf4Matrix::quantize(&values, ROWS, COLUMNS, true)?;
    let Scales::Double { codes, nested, offset } = matrix.scales() else {
        return Err(Error::invalid(op, "double quantisation was asked for, and left plain scales"));
    };
    let mean = wide(&absmax).iter().sum::<f64>() / absmax.len() as f64;
    sink(&Comparison { op, what: "mean scale", found: &[f64::from(*offset)], expected: &[mean], tolerance: MEAN });
    let (expected_codes, expected_nested) = nf4::reference::quantize_scales(&absmax, *offset);
    exact(op, "codes of the scales", &wide(codes), &wide(&expected_codes), sink);
    exact(op, "nested scales", &wide(nested), &wide(&expected_nested), sink);
    let scale = |(block, code): (usize, &u8)| {
        nf4::dynamic_map()[usize::from(*code)] * expected_nested[block / NESTED_BLOCK] + offset
    };
    let absmax: Vec<f32> = expected_codes.iter().enumerate().map(scale).collect();
    let decoded = nf4::reference::dequantize(&packed, &absmax, values.len());
    exact(op, "decoded", &wide(&matrix.dequantize()), &wide(&decoded), sink);
    // Rows that begin and end inside of blocks.
    let rows = 5..48;
    let mut found = vec![0.0; rows.len() * COLUMNS];
    matrix.dequantize_rows_into(rows.clone(), &mut found);
    exact(op, "decoded rows", &wide(&found), &wide(&decoded[rows.start * COLUMNS..rows.end * COLUMNS]), sink);
    Ok(())
}

pub(super) fn compare_fp8(random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    const SIDES: [usize; 2] = [128, 48];
    // All codes but those of NaN.
    let code = |value: &f64| ((value.abs() * 127.0) as u8).min(0x7e) | if *value < 0.0 { 0x80 } else { 0 };
    let bytes: Vec<u8> = random.values(ROWS * COLUMNS).iter().map(code).collect();
    let blocks = ROWS.div_ceil(SIDES[0]) * COLUMNS.div_ceil(SIDES[1]);
    let scales = narrow(&random.values(blocks));
    let found = fp8::dequantize_blocks(&bytes, ROWS, COLUMNS, &scales, SIDES)?;
    let expected = fp8::reference::dequantize_blocks(&bytes, ROWS, COLUMNS, &scales, SIDES);
    exact("fp8", "decoded", &wide(&found), &wide(&expected), sink);
    Ok(())
}
