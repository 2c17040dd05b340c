//! Head preparation and the output gate on rows of `f32`: one read and one write of every value.

use rayon::prelude::*;

use super::{HeadNormRope, HeadShape};
use crate::fast_math::{rows_per_task, sigmoid, vectorised};
use crate::norm::cpu::{backward_row, forward_row};

/// `[a, b] -> [a·cos - b·sin, b·cos + a·sin]` on the halves of the rotated part.
#[inline(always)]
fn rotate(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let (first, second) = head[..2 * cosines.len()].split_at_mut(cosines.len());
    for (((a, b), &cosine), &sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
        (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
    }
}

/// The inverse of [`rotate`], which is also its transpose.
#[inline(always)]
fn rotate_back(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let (first, second) = head[..2 * cosines.len()].split_at_mut(cosines.len());
    for (((a, b), &cosine), &sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
        (*a, *b) = (*a * cosine + *b * sine, *b * cosine - *a * sine);
    }
}

/// `rotate(norm(x))` for every head; the result is dense, `[rows, heads · head_dim]`.
pub(crate) fn forward(x: &[f32], rope: &HeadNormRope) -> Vec<f32> {
    let HeadShape { heads, head_dim, source_stride } = rope.shape;
    let (width, source_width) = (heads * head_dim, heads * source_stride);
    let mut y = vec![0.0; rope.positions.len() * width];
    let rows = rows_per_task(width);
    let outputs = y.par_chunks_mut(rows * width);
    let inputs = x.par_chunks(rows * source_width).zip(rope.positions.par_chunks(rows));
    outputs.zip(inputs).for_each(|(y, (x, positions))| {
        vectorised(
            #[inline(always)]
            || {
                let rows = y.chunks_exact_mut(width).zip(x.chunks_exact(source_width)).zip(positions);
                for ((y, x), &position) in rows {
                    let (cosines, sines) = rope.table.at(position);
                    for (y, x) in y.chunks_exact_mut(head_dim).zip(x.chunks_exact(source_stride)) {
                        match &rope.norm {
                            Some(norm) => forward_row(&x[..head_dim], &norm.weight, norm.kind, norm.epsilon, y),
                            None => y.copy_from_slice(&x[..head_dim]),
                        }
                        rotate(y, cosines, sines);
                    }
                }
            },
        );
    });
    y
}

/// Gradient of the source; zero outside of the heads.
pub(crate) fn backward(x: &[f32], rope: &HeadNormRope, dy: &[f32]) -> Vec<f32> {
    let HeadShape { heads, head_dim, source_stride } = rope.shape;
    let (width, source_width) = (heads * head_dim, heads * source_stride);
    let mut dx = vec![0.0; x.len()];
    let rows = rows_per_task(width);
    let outputs = dx.par_chunks_mut(rows * source_width);
    let inputs =
        x.par_chunks(rows * source_width).zip(dy.par_chunks(rows * width)).zip(rope.positions.par_chunks(rows));
    outputs.zip(inputs).for_each(|(dx, ((x, dy), positions))| {
        let mut turned = vec![0.0; head_dim];
        vectorised(
            #[inline(always)]
            || {
                let sources = dx.chunks_exact_mut(source_width).zip(x.chunks_exact(source_width));
                for ((dx, x), (dy, &position)) in sources.zip(dy.chunks_exact(width).zip(positions)) {
                    let (cosines, sines) = rope.table.at(position);
                    let heads = dx.chunks_exact_mut(source_stride).zip(x.chunks_exact(source_stride));
                    for ((dx, x), dy) in heads.zip(dy.chunks_exact(head_dim)) {
                        let (dx, x) = (&mut dx[..head_dim], &x[..head_dim]);
                        match &rope.norm {
                            Some(norm) => {
                                turned.copy_from_slice(dy);
                                rotate_back(&mut turned, cosines, sines);
                                backward_row(x, &norm.weight, norm.kind, norm.epsilon, &turned, dx);
                            }
                            None => {
                                dx.copy_from_slice(dy);
                                rotate_back(dx, cosines, sines);
                            }
                        }
                    }
                }
            },
        );
    });
    dx
}

/// `attention ⊙ σ(gate)`, the gate being the second half of each head of the raw projection.
pub(crate) fn gate_forward(attention: &[f32], raw: &[f32], head_dim: usize) -> Vec<f32> {
    let mut y = vec![0.0; attention.len()];
    let block = rows_per_task(head_dim) * head_dim;
    let tasks = y.par_chunks_mut(block).zip(attention.par_chunks(block)).zip(raw.par_chunks(2 * block));
    tasks.for_each(|((y, attention), raw)| {
        vectorised(
            #[inline(always)]
            || {
                let heads = y.chunks_exact_mut(head_dim).zip(attention.chunks_exact(head_dim));
                for ((y, attention), raw) in heads.zip(raw.chunks_exact(2 * head_dim)) {
                    for ((y, &a), &gate) in y.iter_mut().zip(attention).zip(&raw[head_dim..]) {
                        *y = a * sigmoid(gate);
                    }
                }
            },
        );
    });
    y
}

/// Gradients of `attention` and of the raw projection (zero in the query halves).
pub(crate) fn gate_backward(attention: &[f32], raw: &[f32], head_dim: usize, dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut d_attention, mut d_raw) = (vec![0.0; attention.len()], vec![0.0; raw.len()]);
    let block = rows_per_task(head_dim) * head_dim;
    let outputs = d_attention.par_chunks_mut(block).zip(d_raw.par_chunks_mut(2 * block));
    let inputs = attention.par_chunks(block).zip(raw.par_chunks(2 * block)).zip(dy.par_chunks(block));
    outputs.zip(inputs).for_each(|((d_attention, d_raw), ((attention, raw), dy))| {
        vectorised(
            #[inline(always)]
            || {
                let outputs = d_attention.chunks_exact_mut(head_dim).zip(d_raw.chunks_exact_mut(2 * head_dim));
                let inputs = attention.chunks_exact(head_dim).zip(raw.chunks_exact(2 * head_dim));
                for (((d_attention, d_raw), (attention, raw)), dy) in outputs.zip(inputs).zip(dy.chunks_exact(head_dim))
                {
                    let gates = raw[head_dim..].iter().zip(&mut d_raw[head_dim..]);
                    for (((d, &a), &dy), (&gate, d_gate)) in d_attention.iter_mut().zip(attention).zip(dy).zip(gates) {
                        let s = sigmoid(gate);
                        *d = dy * s;
                        *d_gate = dy * a * s * (1.0 - s);
                    }
                }
            },
        );
    });
    (d_attention, d_raw)
}
