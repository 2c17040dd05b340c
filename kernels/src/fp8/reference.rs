//! The format by its definition.

/// Value of an `e4m3fn` code; the codes 0x7f and 0xff are not numbers.
pub(super) fn value(code: u8) -> f32 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    match code & 0x7f {
        0x7f => f32::NAN,
        0..=7 => sign * (mantissa / 8.0) * 2f32.powi(-6),
        _ => sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    }
}

/// Every weight on its own.
pub(crate) fn dequantize_blocks(
    bytes: &[u8],
    rows: usize,
    columns: usize,
    scale_inv: &[f32],
    block: [usize; 2],
) -> Vec<f32> {
    let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    let scale = |row, column| scale_inv[row / block[0] * columns.div_ceil(block[1]) + column / block[1]];
    places.map(|(row, column)| value(bytes[row * columns + column]) * scale(row, column)).collect()
}
