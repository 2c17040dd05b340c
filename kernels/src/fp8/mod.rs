//! FP8 weights with one scale for each block of a matrix, as the official FP8 checkpoints store them.
//!
//! ```text
//! w[r, c] = e4m3fn(bytes[r, c]) · scale_inv[r / block_rows, c / block_columns]
//! ```
//!
//! A multiplier in spite of its name. `e4m3fn`: sign, 4 exponent bits with bias 7, 3 mantissa bits; no infinities, the
//! codes 0x7f and 0xff are NaN, the greatest value is 448. Blocks at the lower and right edge may be partial.

mod cpu;
pub(crate) mod reference;

use std::sync::LazyLock;

use crate::{Error, Result};

const OP: &str = "fp8";

/// The greatest finite value of the format.
const GREATEST: f32 = 448.0;

static VALUES: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|code| reference::value(code as u8)));

/// Decodes a row-major matrix `[rows, columns]` with scales `[rows / block[0], columns / block[1]]` (rounded up).
///
/// A code that is not a number, or a scale that is not finite or so large that a weight could overflow, is refused.
pub fn dequantize_blocks(
    bytes: &[u8],
    rows: usize,
    columns: usize,
    scale_inv: &[f32],
    block: [usize; 2],
) -> Result<Vec<f32>> {
    if block.contains(&0) {
        return Err(Error::shape(OP, "block", "sides of at least 1", block));
    }
    if rows.checked_mul(columns) != Some(bytes.len()) {
        return Err(Error::shape(OP, "bytes", (rows, columns), bytes.len()));
    }
    let grid = (rows.div_ceil(block[0]), columns.div_ceil(block[1]));
    if grid.0.checked_mul(grid.1) != Some(scale_inv.len()) {
        return Err(Error::shape(OP, "scale_inv", grid, scale_inv.len()));
    }
    let usable = |scale: f32| scale.abs() <= f32::MAX / GREATEST;
    if let Some(index) = scale_inv.iter().position(|&scale| !usable(scale)) {
        let (row, column) = (index / grid.1, index % grid.1);
        return Err(Error::invalid(OP, format!("scale_inv row {row}, column {column} is {}", scale_inv[index])));
    }
    cpu::dequantize_blocks(bytes, columns, scale_inv, block).map_err(|index| {
        let (row, column) = (index / columns, index % columns);
        Error::invalid(OP, format!("row {row}, column {column} is the code of NaN (0x{:02x})", bytes[index]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_codes_have_their_value() {
        // 2^(e-7) · (1 + m/8), and 2^-6 · m/8 where e is 0: some values worked out by hand.
        let known = [(0x00, 0.0), (0x01, 0.001953125), (0x07, 0.013671875), (0x08, 0.015625), (0x38, 1.0)];
        for (code, value) in known.into_iter().chain([(0x39, 1.125), (0x40, 2.0), (0x7e, 448.0)]) {
            for (code, value) in [(code, value), (code | 0x80, -value)] {
                let decoded = dequantize_blocks(&[code], 1, 1, &[1.0], [128, 128]).unwrap()[0];
                assert_eq!(decoded.to_bits(), f32::to_bits(value), "0x{code:02x}");
            }
        }
        let values: Vec<f32> = (0..=0x7e).map(|code| VALUES[code]).collect();
        assert!(values.windows(2).all(|pair| pair[0] < pair[1]), "positive codes ascend");
        for code in 0..=255u8 {
            let decoded = dequantize_blocks(&[code], 1, 1, &[0.37], [1, 1]);
            assert_eq!(decoded.is_err(), code & 0x7f == 0x7f, "0x{code:02x}");
            if let Ok(decoded) = decoded {
                assert_eq!(decoded[0].to_bits(), (reference::value(code) * 0.37).to_bits(), "0x{code:02x}");
            }
        }
    }

    #[test]
    fn whole_and_partial_blocks_follow_the_reference() {
        let cases: [(usize, usize, [usize; 2]); 5] =
            [(1, 1, [128, 128]), (5, 7, [2, 3]), (256, 128, [128, 128]), (130, 257, [128, 128]), (3, 300, [1, 128])];
        for (rows, columns, block) in cases {
            let bytes: Vec<u8> =
                (0..rows * columns).map(|i| ((i * 37 + i / 11) % 127) as u8 | ((i % 2) << 7) as u8).collect();
            let blocks = rows.div_ceil(block[0]) * columns.div_ceil(block[1]);
            let scales: Vec<f32> = (0..blocks).map(|i| 0.001 + i as f32 * 0.37).collect();
            let ours = dequantize_blocks(&bytes, rows, columns, &scales, block).unwrap();
            let expected = reference::dequantize_blocks(&bytes, rows, columns, &scales, block);
            for index in 0..ours.len() {
                assert_eq!(ours[index].to_bits(), expected[index].to_bits(), "{rows}x{columns} at {index}");
            }
        }
    }

    #[test]
    fn damaged_weights_are_named() {
        let mut bytes = vec![0x38; 6 * 50];
        bytes[2 * 50 + 49] = 0xff;
        bytes[5 * 50] = 0x7f;
        let error = dequantize_blocks(&bytes, 6, 50, &[1.0; 4], [3, 25]).unwrap_err().to_string();
        assert!(error.contains("row 2, column 49") && error.contains("0xff"), "{error}");
        for scale in [f32::NAN, f32::INFINITY, 1e37] {
            let error = dequantize_blocks(&[0x38; 4], 2, 2, &[1.0, 1.0, 1.0, scale], [1, 1]).unwrap_err().to_string();
            assert!(error.contains("row 1, column 1"), "{error}");
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        assert!(dequantize_blocks(&[0; 6], 2, 3, &[1.0; 2], [1, 128]).is_ok());
        assert!(dequantize_blocks(&[0; 6], 2, 3, &[1.0; 3], [1, 128]).is_err());
        assert!(dequantize_blocks(&[0; 5], 2, 3, &[1.0; 2], [1, 128]).is_err());
        assert!(dequantize_blocks(&[0; 6], 2, 3, &[1.0; 2], [0, 128]).is_err());
        assert!(dequantize_blocks(&[], usize::MAX, 2, &[], [1, 1]).is_err());
        assert!(dequantize_blocks(&[], 0, 3, &[], [1, 1]).unwrap().is_empty());
    }
}
