//! What both passes compute of one chunk: gates, keys and the parts of the formulas.

use super::super::Parameters;
use super::Chunk;
use crate::gemm::{Accumulate::Overwrite, MatMut, MatRef, Threads, gemm};

/// The gates of one value head in one chunk.
pub(super) struct Gates {
    pub(super) beta: Vec<f32>,
    /// `E`.
    pub(super) decay: Vec<f32>,
    /// `exp(G_C − G)`.
    pub(super) remaining: Vec<f32>,
    /// `D`, lower triangle, row-major `[rows, rows]`; zero above the diagonal.
    pub(super) between: Vec<f32>,
    /// `exp(G_C)`.
    pub(super) whole: f32,
}

impl Gates {
    pub(super) fn new(parameters: &Parameters, ba: &[f32], chunk: Chunk, head: usize) -> Self {
        let rows = chunk.rows();
        let mut total = 0.0f32;
        let (mut beta, mut sums) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        for t in chunk.from..chunk.to {
            let (b, g) = parameters.gates(ba, t, head);
            beta.push(b);
            total += g;
            sums.push(total);
        }
        let mut between = vec![0.0; rows * rows];
        for i in 0..rows {
            for j in 0..=i {
                between[i * rows + j] = (sums[i] - sums[j]).exp();
            }
        }
        Self {
            beta,
            decay: sums.iter().map(|g| g.exp()).collect(),
            remaining: sums.iter().map(|g| (total - g).exp()).collect(),
            between,
            whole: total.exp(),
        }
    }
}

/// Normalised queries and keys of one key head in one chunk, and their products.
pub(super) struct Keys {
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) q_inverse: Vec<f32>,
    pub(super) k_inverse: Vec<f32>,
    /// `K Kᵀ`.
    pub(super) kk: Vec<f32>,
    /// `Q Kᵀ`.
    pub(super) qk: Vec<f32>,
}

impl Keys {
    pub(super) fn new(parameters: &Parameters, qkv: &[f32], chunk: Chunk, key_head: usize) -> Self {
        let (dk, rows) = (parameters.groups.key_dim, chunk.rows());
        let width = parameters.qkv_width();
        let key_offset = parameters.groups.key_heads * dk;
        let mut keys = Self {
            q: Vec::with_capacity(rows * dk),
            k: Vec::with_capacity(rows * dk),
            q_inverse: Vec::with_capacity(rows),
            k_inverse: Vec::with_capacity(rows),
            kk: vec![0.0; rows * rows],
            qk: vec![0.0; rows * rows],
        };
        let scale = (dk as f32).powf(-0.5);
        for t in chunk.from..chunk.to {
            let row = &qkv[t * width..][..width];
            let (q, k) = (&row[key_head * dk..][..dk], &row[key_offset + key_head * dk..][..dk]);
            let (qi, ki) = (inverse_length(q), inverse_length(k));
            keys.q.extend(q.iter().map(|x| x * qi * scale));
            keys.k.extend(k.iter().map(|x| x * ki));
            keys.q_inverse.push(qi);
            keys.k_inverse.push(ki);
        }
        let (q, k) = (MatRef::new(&keys.q, rows, dk), MatRef::new(&keys.k, rows, dk));
        gemm(MatMut::new(&mut keys.kk, rows, rows), Overwrite, 1.0, k, k.t(), Threads::One);
        gemm(MatMut::new(&mut keys.qk, rows, rows), Overwrite, 1.0, q, k.t(), Threads::One);
        keys
    }
}

/// `1 / sqrt(Σx² + 1e-6)`: the constant of the reference's `l2norm`.
fn inverse_length(x: &[f32]) -> f32 {
    (x.iter().map(|v| v * v).sum::<f32>() + 1e-6).sqrt().recip()
}

/// `X = V − E ⊙ (K S)`, with the recalled `K S` left in `recalled`.
pub(super) fn surprise(
    gates: &Gates,
    keys: &Keys,
    values: &[f32],
    state: &[f32],
    recalled: &mut [f32],
    (dk, dv): (usize, usize),
) -> Vec<f32> {
    let rows = gates.beta.len();
    let (k, state) = (MatRef::new(&keys.k, rows, dk), MatRef::new(state, dk, dv));
    gemm(MatMut::new(recalled, rows, dv), Overwrite, 1.0, k, state, Threads::One);
    let mut x = values.to_vec();
    for i in 0..rows {
        for (x, r) in x[i * dv..][..dv].iter_mut().zip(&recalled[i * dv..][..dv]) {
            *x -= gates.decay[i] * r;
        }
    }
    x
}

/// `L`, strictly lower.
pub(super) fn lower(gates: &Gates, kk: &[f32]) -> Vec<f32> {
    let rows = gates.beta.len();
    let mut l = vec![0.0; rows * rows];
    for i in 0..rows {
        for j in 0..i {
            l[i * rows + j] = gates.beta[i] * kk[i * rows + j] * gates.between[i * rows + j];
        }
    }
    l
}

/// `x ← (I + L)⁻¹ x`, rows of width `dv`.
pub(super) fn solve(l: &[f32], x: &mut [f32], rows: usize, dv: usize) {
    for i in 1..rows {
        let (done, rest) = x.split_at_mut(i * dv);
        let row = &mut rest[..dv];
        for j in 0..i {
            subtract_scaled(row, &done[j * dv..][..dv], l[i * rows + j]);
        }
    }
}

/// `x ← (I + L)⁻ᵀ x`.
pub(super) fn solve_transposed(l: &[f32], x: &mut [f32], rows: usize, dv: usize) {
    for i in (1..rows).rev() {
        let (rest, done) = x.split_at_mut(i * dv);
        let row = &done[..dv];
        for j in 0..i {
            subtract_scaled(&mut rest[j * dv..][..dv], row, l[i * rows + j]);
        }
    }
}

#[inline]
fn subtract_scaled(target: &mut [f32], source: &[f32], factor: f32) {
    for (t, s) in target.iter_mut().zip(source) {
        *t -= factor * s;
    }
}

pub(super) fn scale(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|v| *v *= factor);
}

pub(super) fn scale_rows(matrix: &[f32], factors: &[f32], width: usize) -> Vec<f32> {
    matrix.chunks_exact(width).zip(factors).flat_map(|(row, f)| row.iter().map(move |x| x * f)).collect()
}

/// Element by element.
pub(super) fn product(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(x, y)| x * y).collect()
}

/// Copies a head's columns of a strided matrix: `width` columns from `offset`.
pub(super) fn columns(matrix: &[f32], stride: usize, chunk: Chunk, offset: usize, width: usize) -> Vec<f32> {
    (chunk.from..chunk.to).flat_map(|t| matrix[t * stride + offset..][..width].iter().copied()).collect()
}
