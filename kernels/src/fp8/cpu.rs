//! FP8 on the CPU: a table of the 256 values, rows spread over the threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::VALUES;

/// Decoded values, or the index of the first code that is not a number. Shapes have been checked.
pub(super) fn dequantize_blocks(
    bytes: &[u8],
    columns: usize,
    scale_inv: &[f32],
    block: [usize; 2],
) -> Result<Vec<f32>, usize> {
    let mut values = vec![0.0; bytes.len()];
    if values.is_empty() {
        return Ok(values);
    }
    let table: &[f32; 256] = &VALUES;
    let bad = AtomicUsize::new(usize::MAX);
    let across = columns.div_ceil(block[1]);
    values.par_chunks_mut(columns).zip(bytes.par_chunks(columns)).enumerate().for_each(|(row, (values, bytes))| {
        let scales = &scale_inv[row / block[0] * across..][..across];
        let mut damaged = false;
        for ((values, bytes), scale) in values.chunks_mut(block[1]).zip(bytes.chunks(block[1])).zip(scales) {
            for (value, &byte) in values.iter_mut().zip(bytes) {
                *value = table[usize::from(byte)] * scale;
                damaged |= byte & 0x7f == 0x7f;
            }
        }
        if let (true, Some(column)) = (damaged, bytes.iter().position(|byte| byte & 0x7f == 0x7f)) {
            bad.fetch_min(row * columns + column, Ordering::Relaxed);
        }
    });
    match bad.into_inner() {
        usize::MAX => Ok(values),
        index => Err(index),
    }
}
