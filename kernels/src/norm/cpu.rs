//! The norms on rows of `f32`. The reciprocal root is recomputed in the backward pass: it costs one read of a row that
//! is needed anyway.

use rayon::prelude::*;

use super::Kind;
use crate::conv::HeadGroups;
use crate::fast_math::{dot, dot3, rows_per_task, silu, silu_and_slope, vectorised};

/// The scale is `offset + weight`.
fn offset(kind: Kind) -> f32 {
    match kind {
        Kind::Plain => 0.0,
        Kind::ZeroCentred => 1.0,
    }
}

#[inline(always)]
fn inverse_root(row: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot(row, row) / row.len() as f32 + epsilon).sqrt()
}

/// One row: `y_i = (offset + w_i)·x_i·ρ`.
#[inline(always)]
pub(crate) fn forward_row(x: &[f32], weight: &[f32], kind: Kind, epsilon: f32, y: &mut [f32]) {
    let (inverse, offset) = (inverse_root(x, epsilon), offset(kind));
    for ((out, &value), &w) in y.iter_mut().zip(x).zip(weight) {
        *out = value * inverse * (offset + w);
    }
}

/// One row: `dx = ρ·(s ⊙ dy) - x·ρ³·mean(s ⊙ dy ⊙ x)`.
#[inline(always)]
pub(crate) fn backward_row(x: &[f32], weight: &[f32], kind: Kind, epsilon: f32, dy: &[f32], dx: &mut [f32]) {
    let (inverse, offset) = (inverse_root(x, epsilon), offset(kind));
    // Σ (offset + w)·dy·x
    let product = dot3(dy, weight, x) + if offset == 0.0 { 0.0 } else { offset * dot(dy, x) };
    let shared = product / x.len() as f32 * inverse * inverse * inverse;
    for (((d, &value), &w), &dy) in dx.iter_mut().zip(x).zip(weight).zip(dy) {
        *d = dy * (offset + w) * inverse - value * shared;
    }
}

/// All rows of `x`, each as long as `weight`.
pub(crate) fn forward(x: &[f32], weight: &[f32], kind: Kind, epsilon: f32) -> Vec<f32> {
    let width = weight.len();
    let mut y = vec![0.0; x.len()];
    let block = rows_per_task(width) * width;
    y.par_chunks_mut(block).zip(x.par_chunks(block)).for_each(|(y, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    forward_row(x, weight, kind, epsilon, y);
                }
            },
        );
    });
    y
}

/// Gradient of the input.
pub(crate) fn backward(x: &[f32], weight: &[f32], kind: Kind, epsilon: f32, dy: &[f32]) -> Vec<f32> {
    let width = weight.len();
    let mut dx = vec![0.0; x.len()];
    let block = rows_per_task(width) * width;
    dx.par_chunks_mut(block).zip(x.par_chunks(block)).zip(dy.par_chunks(block)).for_each(|((dx, x), dy)| {
        vectorised(
            #[inline(always)]
            || {
                let inputs = x.chunks_exact(width).zip(dy.chunks_exact(width));
                for (dx, (x, dy)) in dx.chunks_exact_mut(width).zip(inputs) {
                    backward_row(x, weight, kind, epsilon, dy, dx);
                }
            },
        );
    });
    dx
}

/// `w ⊙ normalised(o) ⊙ silu(z)` per value head, z read in place from the grouped projection.
pub(crate) fn gated_forward(o: &[f32], qkvz: &[f32], weight: &[f32], groups: &HeadGroups, epsilon: f32) -> Vec<f32> {
    let (width, projection, head) = (groups.value_width(), groups.projection_width(), groups.value_dim);
    let mut y = vec![0.0; o.len()];
    let rows = rows_per_task(width);
    let tasks = y.par_chunks_mut(rows * width).zip(o.par_chunks(rows * width)).zip(qkvz.par_chunks(rows * projection));
    tasks.for_each(|((y, o), qkvz)| {
        vectorised(
            #[inline(always)]
            || {
                for ((y, o), qkvz) in
                    y.chunks_exact_mut(width).zip(o.chunks_exact(width)).zip(qkvz.chunks_exact(projection))
                {
                    for (index, (y, o)) in y.chunks_exact_mut(head).zip(o.chunks_exact(head)).enumerate() {
                        let inverse = inverse_root(o, epsilon);
                        let z = &qkvz[groups.gate_range(index)];
                        for (((y, &o), &w), &z) in y.iter_mut().zip(o).zip(weight).zip(z) {
                            *y = o * inverse * w * silu(z);
                        }
                    }
                }
            },
        );
    });
    y
}

/// Gradients of `o` and of the whole projection (zero outside of z).
pub(crate) fn gated_backward(
    o: &[f32],
    qkvz: &[f32],
    weight: &[f32],
    groups: &HeadGroups,
    epsilon: f32,
    dy: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let (width, projection) = (groups.value_width(), groups.projection_width());
    let (mut d_o, mut d_qkvz) = (vec![0.0; o.len()], vec![0.0; qkvz.len()]);
    let rows = rows_per_task(width);
    let outputs = d_o.par_chunks_mut(rows * width).zip(d_qkvz.par_chunks_mut(rows * projection));
    let inputs = o.par_chunks(rows * width).zip(qkvz.par_chunks(rows * projection)).zip(dy.par_chunks(rows * width));
    outputs.zip(inputs).for_each(|((d_o, d_qkvz), ((o, qkvz), dy))| {
        vectorised(
            #[inline(always)]
            || {
                for row in 0..o.len() / width {
                    let narrow = row * width..(row + 1) * width;
                    let wide = row * projection..(row + 1) * projection;
                    gated_backward_row(
                        (&o[narrow.clone()], &qkvz[wide.clone()], &dy[narrow.clone()]),
                        (weight, groups, epsilon),
                        (&mut d_o[narrow], &mut d_qkvz[wide]),
                    );
                }
            },
        );
    });
    (d_o, d_qkvz)
}

#[inline(always)]
fn gated_backward_row(
    (o, qkvz, dy): (&[f32], &[f32], &[f32]),
    (weight, groups, epsilon): (&[f32], &HeadGroups, f32),
    (d_o, d_qkvz): (&mut [f32], &mut [f32]),
) {
    let head = groups.value_dim;
    for index in 0..groups.value_heads {
        let place = index * head..(index + 1) * head;
        let (o, dy, d_o) = (&o[place.clone()], &dy[place.clone()], &mut d_o[place]);
        let gate = groups.gate_range(index);
        let (z, dz) = (&qkvz[gate.clone()], &mut d_qkvz[gate]);
        let inverse = inverse_root(o, epsilon);
        for i in 0..head {
            let (value, slope) = silu_and_slope(z[i]);
            let weighted = dy[i] * weight[i];
            dz[i] = weighted * o[i] * inverse * slope;
            d_o[i] = weighted * value;
        }
        let shared = dot(d_o, o) / head as f32 * inverse * inverse * inverse;
        for (d, &value) in d_o.iter_mut().zip(o) {
            *d = *d * inverse - value * shared;
        }
    }
}
