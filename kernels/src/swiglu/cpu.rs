//! The gated activation on `f32`. `forward_into` and `backward_into` work on one piece of any length, so that
//! another op can call them for rows that lie inside a larger buffer.

use rayon::prelude::*;

use crate::fast_math::{dot, rows_per_task, sigmoid, silu, silu_and_slope, vectorised};

/// `out = silu(gate) ⊙ up`. All slices have one length.
pub(crate) fn forward_into(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == out.len() && up.len() == out.len(), "swiglu on pieces of different lengths");
    vectorised(
        #[inline(always)]
        || {
            for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                *out = silu(gate) * up;
            }
        },
    );
}

/// `d_gate = dy ⊙ up ⊙ silu'(gate)`, `d_up = dy ⊙ silu(gate)`. All slices have one length.
pub(crate) fn backward_into(gate: &[f32], up: &[f32], dy: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    let lengths = [gate.len(), up.len(), d_gate.len(), d_up.len()];
    assert!(lengths.iter().all(|&length| length == dy.len()), "swiglu on pieces of different lengths");
    vectorised(
        #[inline(always)]
        || {
            let outputs = d_gate.iter_mut().zip(d_up.iter_mut());
            for (((d_gate, d_up), (&gate, &up)), &dy) in outputs.zip(gate.iter().zip(up)).zip(dy) {
                let (value, slope) = silu_and_slope(gate);
                *d_gate = dy * up * slope;
                *d_up = dy * value;
            }
        },
    );
}

/// `silu(gate) ⊙ up`.
pub(crate) fn forward(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; gate.len()];
    let block = rows_per_task(1);
    let tasks = out.par_chunks_mut(block).zip(gate.par_chunks(block)).zip(up.par_chunks(block));
    tasks.for_each(|((out, gate), up)| forward_into(gate, up, out));
    out
}

/// Gradients of `gate` and `up`.
pub(crate) fn backward(gate: &[f32], up: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut d_gate, mut d_up) = (vec![0.0; gate.len()], vec![0.0; up.len()]);
    let block = rows_per_task(1);
    let outputs = d_gate.par_chunks_mut(block).zip(d_up.par_chunks_mut(block));
    let inputs = gate.par_chunks(block).zip(up.par_chunks(block)).zip(dy.par_chunks(block));
    outputs.zip(inputs).for_each(|((d_gate, d_up), ((gate, up), dy))| backward_into(gate, up, dy, d_gate, d_up));
    (d_gate, d_up)
}

/// `σ(g_row) · y_row`; `y` has `g.len()` rows of `width` values.
pub(crate) fn scale_forward(y: &[f32], g: &[f32], width: usize) -> Vec<f32> {
    let mut out = vec![0.0; y.len()];
    let rows = rows_per_task(width);
    let tasks = out.par_chunks_mut(rows * width).zip(y.par_chunks(rows * width)).zip(g.par_chunks(rows));
    tasks.for_each(|((out, y), g)| {
        vectorised(
            #[inline(always)]
            || {
                for ((out, y), &g) in out.chunks_exact_mut(width).zip(y.chunks_exact(width)).zip(g) {
                    let s = sigmoid(g);
                    for (out, &y) in out.iter_mut().zip(y) {
                        *out = s * y;
                    }
                }
            },
        );
    });
    out
}

/// Gradients of `y` and `g`.
pub(crate) fn scale_backward(y: &[f32], g: &[f32], upstream: &[f32], width: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut d_y, mut d_g) = (vec![0.0; y.len()], vec![0.0; g.len()]);
    let rows = rows_per_task(width);
    let outputs = d_y.par_chunks_mut(rows * width).zip(d_g.par_chunks_mut(rows));
    let inputs = y.par_chunks(rows * width).zip(g.par_chunks(rows)).zip(upstream.par_chunks(rows * width));
    outputs.zip(inputs).for_each(|((d_y, d_g), ((y, g), upstream))| {
        vectorised(
            #[inline(always)]
            || {
                let outputs = d_y.chunks_exact_mut(width).zip(d_g);
                let inputs = y.chunks_exact(width).zip(g).zip(upstream.chunks_exact(width));
                for ((d_y, d_g), ((y, &g), upstream)) in outputs.zip(inputs) {
                    let s = sigmoid(g);
                    for (d, &u) in d_y.iter_mut().zip(upstream) {
                        *d = s * u;
                    }
                    *d_g = dot(y, upstream) * s * (1.0 - s);
                }
            },
        );
    });
    (d_y, d_g)
}
