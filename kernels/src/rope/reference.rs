//! The definition of head preparation (norm, then rotation) and of the output gate, in `f64`.

use super::{HeadNormRope, HeadShape};
use crate::fast_math::reference::sigmoid;
use crate::norm;

/// Rotates one head by its position's angles times `direction` (1 forward, -1 back).
fn rotate(head: &mut [f64], rope: &HeadNormRope, row: usize, direction: f64) {
    let half = rope.table.rotary_dim() / 2;
    let (cosines, sines) = rope.table.at(rope.positions[row]);
    for i in 0..half {
        let (cosine, sine) = (f64::from(cosines[i]), direction * f64::from(sines[i]));
        let (a, b) = (head[i], head[half + i]);
        head[i] = a * cosine - b * sine;
        head[half + i] = b * cosine + a * sine;
    }
}

fn weight(norm: &super::HeadNorm) -> Vec<f64> {
    norm.weight.iter().map(|&w| f64::from(w)).collect()
}

/// `rotate(norm(x))` for every head; the result is dense, `[rows, heads · head_dim]`.
pub fn forward(x: &[f64], rope: &HeadNormRope) -> Vec<f64> {
    let HeadShape { heads, head_dim, source_stride } = rope.shape;
    let mut y = Vec::new();
    for (index, source) in x.chunks(source_stride).enumerate() {
        let mut head = source[..head_dim].to_vec();
        if let Some(norm) = &rope.norm {
            head = norm::reference::forward(&head, &weight(norm), norm.kind, f64::from(norm.epsilon));
        }
        rotate(&mut head, rope, index / heads, 1.0);
        y.extend(head);
    }
    y
}

/// Gradient of the source: the rotation undone, then back through the norm; zero outside of the heads.
pub fn backward(x: &[f64], rope: &HeadNormRope, dy: &[f64]) -> Vec<f64> {
    let HeadShape { heads, head_dim, source_stride } = rope.shape;
    let mut dx = vec![0.0; x.len()];
    for (index, upstream) in dy.chunks(head_dim).enumerate() {
        let place = index * source_stride..index * source_stride + head_dim;
        let mut head = upstream.to_vec();
        rotate(&mut head, rope, index / heads, -1.0);
        if let Some(norm) = &rope.norm {
            let source = &x[place.clone()];
            head = norm::reference::backward(source, &weight(norm), norm.kind, f64::from(norm.epsilon), &head);
        }
        dx[place].copy_from_slice(&head);
    }
    dx
}

/// `y = attention ⊙ σ(gate)`, the gate being the second half of each head of the raw projection.
pub fn gate_forward(attention: &[f64], raw: &[f64], head_dim: usize) -> Vec<f64> {
    attention.iter().enumerate().map(|(index, a)| a * sigmoid(raw[gate_place(index, head_dim)])).collect()
}

/// Gradients of `attention` and of the raw projection (zero in the query halves).
pub fn gate_backward(attention: &[f64], raw: &[f64], head_dim: usize, dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let mut d_attention = vec![0.0; attention.len()];
    let mut d_raw = vec![0.0; raw.len()];
    for index in 0..attention.len() {
        let place = gate_place(index, head_dim);
        let s = sigmoid(raw[place]);
        d_attention[index] = dy[index] * s;
        d_raw[place] = dy[index] * attention[index] * s * (1.0 - s);
    }
    (d_attention, d_raw)
}

fn gate_place(index: usize, head_dim: usize) -> usize {
    (index / head_dim) * 2 * head_dim + head_dim + index % head_dim
}
