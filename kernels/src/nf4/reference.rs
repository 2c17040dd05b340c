//! The rules of NF4, one value at a time. Rounding is part of the format, so this is `f32` throughout.

use super::{BLOCK, CODEBOOK, NESTED_BLOCK, SMALLEST_ABSMAX, dynamic_map};

/// Packed codes and the absmax of every block.
pub(crate) fn quantize(values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut indices = Vec::new();
    let mut scales = Vec::new();
    for block in values.chunks(BLOCK) {
        let absmax = block.iter().fold(0.0f32, |greatest, x| greatest.max(x.abs()));
        let divisor = absmax.max(SMALLEST_ABSMAX);
        for x in block {
            let scaled = if block.len() == BLOCK { x * (1.0 / divisor) } else { x / divisor };
            indices.push((0..15).filter(|&i| scaled > (CODEBOOK[i] + CODEBOOK[i + 1]) / 2.0).count() as u8);
        }
        scales.push(absmax);
    }
    if indices.len() % 2 == 1 {
        indices.push(7);
    }
    (indices.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect(), scales)
}

/// 8-bit codes and nested scales of the centred absmax values, by trying every entry of the map.
pub(crate) fn quantize_scales(absmax: &[f32], offset: f32) -> (Vec<u8>, Vec<f32>) {
    let mut codes = Vec::new();
    let mut nested = Vec::new();
    for block in absmax.chunks(NESTED_BLOCK) {
        let scale = block.iter().fold(0.0f32, |greatest, x| greatest.max((x - offset).abs()));
        for x in block {
            let value = if scale == 0.0 { -1.0 } else { (x - offset) * (1.0 / scale) };
            let distance = |index: usize| (f64::from(dynamic_map()[index]) - f64::from(value)).abs();
            let nearest = (1..256).fold(0, |best, index| if distance(index) < distance(best) { index } else { best });
            codes.push(nearest as u8);
        }
        nested.push(scale);
    }
    (codes, nested)
}

/// The first `count` values of packed codes.
pub(crate) fn dequantize(packed: &[u8], absmax: &[f32], count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| {
            let byte = packed[i / 2];
            let index = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
            CODEBOOK[usize::from(index)] * absmax[i / BLOCK]
        })
        .collect()
}
