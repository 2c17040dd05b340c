//! Attention in blocks of query rows: a block's scores against all keys before it are one matrix product, its softmax
//! is exact (no running rescale needed, a block's row of scores is held whole), and the backward pass recomputes the
//! weights from the stored log-sum-exp. Tasks are (document, key head), so that a task owns its `dk` and `dv`.

use rayon::prelude::*;

use super::reference::Heads;
use crate::disjoint::Disjoint;
use crate::gemm::{
    Accumulate::{Add, Overwrite},
    MatMut, MatRef, Threads, gemm,
};
use crate::{Document, Documents};

/// Query rows per block: scores of a block stay in the L2 cache up to a few thousand keys.
const BLOCK: usize = 64;

#[derive(Clone, Copy)]
struct Task {
    document: Document,
    key_head: usize,
}

fn tasks(documents: &Documents, key_heads: usize) -> Vec<Task> {
    documents.iter().flat_map(|&document| (0..key_heads).map(move |key_head| Task { document, key_head })).collect()
}

/// One block of query rows of one query head.
struct Block {
    from: usize,
    rows: usize,
    /// Number of keys any of its rows may see, from the document's start.
    keys: usize,
}

impl Task {
    fn blocks(self) -> impl Iterator<Item = Block> {
        let Document { start, end, valid_end } = self.document;
        (start..end).step_by(BLOCK).map(move |from| {
            let to = end.min(from + BLOCK);
            Block { from, rows: to - from, keys: to.min(valid_end) - start }
        })
    }

    /// Keys that row `t` may see.
    fn seen(self, t: usize) -> usize {
        (t + 1).min(self.document.valid_end) - self.document.start
    }
}

/// A head's rows of a `[N, heads · width]` matrix.
fn head_view<'a>(values: &'a [f32], heads: usize, width: usize, head: usize, from: usize, rows: usize) -> MatRef<'a> {
    let stride = heads * width;
    MatRef::with_stride(&values[from * stride + head * width..], rows, width, stride)
}

/// Scores of a block, scaled; entries a row may not see are left as they come.
fn scores(heads: &Heads, q: &[f32], k: &[f32], task: Task, block: &Block, head: usize, out: &mut Vec<f32>) {
    out.resize(block.rows * block.keys, 0.0);
    let q = head_view(q, heads.query, heads.width, head, block.from, block.rows);
    let k = head_view(k, heads.key_value, heads.width, task.key_head, task.document.start, block.keys);
    let scale = (heads.width as f32).powf(-0.5);
    gemm(MatMut::new(out, block.rows, block.keys), Overwrite, scale, q, k.t(), Threads::One);
}

/// The output `[N, query · width]` and the log-sum-exp of every row and head (`[N, query]`, empty unless `save`).
pub(crate) fn forward(
    heads: &Heads,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    documents: &Documents,
    save: bool,
) -> (Vec<f32>, Vec<f32>) {
    let mut out = vec![0.0; q.len()];
    let mut log_sums = vec![0.0; if save { documents.tokens() * heads.query } else { 0 }];
    let (out_parts, log_parts) = (Disjoint::new(&mut out), Disjoint::new(&mut log_sums));
    tasks(documents, heads.key_value).par_iter().for_each(|&task| {
        let per_key = heads.query / heads.key_value;
        let (mut weights, mut rows) = (Vec::new(), Vec::new());
        for head in task.key_head * per_key..(task.key_head + 1) * per_key {
            for block in task.blocks() {
                scores(heads, q, k, task, &block, head, &mut weights);
                for i in 0..block.rows {
                    let row = &mut weights[i * block.keys..][..block.keys];
                    let log_sum = softmax(row, task.seen(block.from + i));
                    if save {
                        // SAFETY: one entry per (row, query head): this task's alone.
                        unsafe { log_parts.slice((block.from + i) * heads.query + head, 1)[0] = log_sum };
                    }
                }
                rows.resize(block.rows * heads.width, 0.0);
                let v = head_view(v, heads.key_value, heads.width, task.key_head, task.document.start, block.keys);
                gemm(
                    MatMut::new(&mut rows, block.rows, heads.width),
                    Overwrite,
                    1.0,
                    MatRef::new(&weights, block.rows, block.keys),
                    v,
                    Threads::One,
                );
                store(out_parts, heads, head, block.from, &rows);
            }
        }
    });
    (out, log_sums)
}

/// The outputs of the last `new` of `tokens` rows of one document; `q` holds those alone.
pub(crate) fn last_rows(heads: &Heads, q: &[f32], k: &[f32], v: &[f32], new: usize, tokens: usize) -> Vec<f32> {
    let (width, past, per_key) = (heads.width, tokens - new, heads.query / heads.key_value);
    let mut out = vec![0.0; q.len()];
    let parts = Disjoint::new(&mut out);
    (0..heads.key_value).into_par_iter().for_each(|key_head| {
        let (mut weights, mut rows) = (Vec::new(), Vec::new());
        for head in key_head * per_key..(key_head + 1) * per_key {
            for from in (0..new).step_by(BLOCK) {
                let count = BLOCK.min(new - from);
                let keys = past + from + count;
                let view = |values| head_view(values, heads.key_value, width, key_head, 0, keys);
                weights.resize(count * keys, 0.0);
                let scores = MatMut::new(&mut weights, count, keys);
                let scale = (width as f32).powf(-0.5);
                let q = head_view(q, heads.query, width, head, from, count);
                gemm(scores, Overwrite, scale, q, view(k).t(), Threads::One);
                for (i, row) in weights.chunks_exact_mut(keys).enumerate() {
                    softmax(row, past + from + i + 1);
                }
                rows.resize(count * width, 0.0);
                let weights = MatRef::new(&weights, count, keys);
                gemm(MatMut::new(&mut rows, count, width), Overwrite, 1.0, weights, view(v), Threads::One);
                store(parts, heads, head, from, &rows);
            }
        }
    });
    out
}

/// Softmax over the first `seen` entries, zero elsewhere; returns the log of the sum.
fn softmax(row: &mut [f32], seen: usize) -> f32 {
    let (visible, hidden) = row.split_at_mut(seen);
    let top = visible.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    visible.iter_mut().for_each(|x| *x = (*x - top).exp());
    let sum: f32 = visible.iter().sum();
    let inverse = 1.0 / sum;
    visible.iter_mut().for_each(|x| *x *= inverse);
    hidden.fill(0.0);
    top + sum.ln()
}

fn store(target: Disjoint, heads: &Heads, head: usize, from: usize, rows: &[f32]) {
    for (i, row) in rows.chunks_exact(heads.width).enumerate() {
        // SAFETY: rows of the task's document (or of its only one), columns of a query head of the task's key head.
        unsafe { target.slice(((from + i) * heads.query + head) * heads.width, heads.width) }.copy_from_slice(row);
    }
}

/// What [`backward`] reads.
pub(crate) struct Forward<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    pub(crate) out: &'a [f32],
    pub(crate) log_sums: &'a [f32],
}

/// Gradients of `q`, `k`, `v`.
pub(crate) fn backward(
    heads: &Heads,
    pass: &Forward,
    documents: &Documents,
    dout: &[f32],
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (mut dq, mut dk, mut dv) = (vec![0.0; pass.q.len()], vec![0.0; pass.k.len()], vec![0.0; pass.v.len()]);
    let parts = (Disjoint::new(&mut dq), Disjoint::new(&mut dk), Disjoint::new(&mut dv));
    tasks(documents, heads.key_value).par_iter().for_each(|&task| {
        let length = task.document.valid_end - task.document.start;
        let (mut own_dk, mut own_dv) = (vec![0.0; length * heads.width], vec![0.0; length * heads.width]);
        let per_key = heads.query / heads.key_value;
        let mut scratch = Scratch::default();
        for head in task.key_head * per_key..(task.key_head + 1) * per_key {
            for block in task.blocks() {
                backward_block(heads, pass, dout, task, &block, head, &mut scratch, &mut own_dk, &mut own_dv);
                store(parts.0, heads, head, block.from, &scratch.dq);
            }
        }
        for (target, own) in [(parts.1, &own_dk), (parts.2, &own_dv)] {
            for (i, row) in own.chunks_exact(heads.width).enumerate() {
                let at = ((task.document.start + i) * heads.key_value + task.key_head) * heads.width;
                // SAFETY: rows of the task's document, columns of its key head.
                unsafe { target.slice(at, heads.width) }.copy_from_slice(row);
            }
        }
    });
    (dq, dk, dv)
}

#[derive(Default)]
struct Scratch {
    weights: Vec<f32>,
    dweights: Vec<f32>,
    dq: Vec<f32>,
}

fn backward_block(
    heads: &Heads,
    pass: &Forward,
    dout: &[f32],
    task: Task,
    block: &Block,
    head: usize,
    scratch: &mut Scratch,
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let d = heads.width;
    let (rows, keys) = (block.rows, block.keys);
    scores(heads, pass.q, pass.k, task, block, head, &mut scratch.weights);
    for i in 0..rows {
        let row = &mut scratch.weights[i * keys..][..keys];
        let seen = task.seen(block.from + i);
        let log_sum = pass.log_sums[(block.from + i) * heads.query + head];
        row[..seen].iter_mut().for_each(|x| *x = (*x - log_sum).exp());
        row[seen..].fill(0.0);
    }
    let dout_m = head_view(dout, heads.query, d, head, block.from, rows);
    let q_m = head_view(pass.q, heads.query, d, head, block.from, rows);
    let k_m = head_view(pass.k, heads.key_value, d, task.key_head, task.document.start, keys);
    let v_m = head_view(pass.v, heads.key_value, d, task.key_head, task.document.start, keys);
    let one = Threads::One;
    gemm(
        MatMut::new(&mut dv[..keys * d], keys, d),
        Add,
        1.0,
        MatRef::new(&scratch.weights, rows, keys).t(),
        dout_m,
        one,
    );
    scratch.dweights.resize(rows * keys, 0.0);
    gemm(MatMut::new(&mut scratch.dweights, rows, keys), Overwrite, 1.0, dout_m, v_m.t(), one);
    let scale = (d as f32).powf(-0.5);
    for i in 0..rows {
        let at = ((block.from + i) * heads.query + head) * d;
        // Σ_s p_s dp_s = ⟨dout, out⟩
        let mean: f32 = dout[at..at + d].iter().zip(&pass.out[at..at + d]).map(|(a, b)| a * b).sum();
        let weights = &scratch.weights[i * keys..][..keys];
        for (dp, p) in scratch.dweights[i * keys..][..keys].iter_mut().zip(weights) {
            *dp = scale * p * (*dp - mean);
        }
    }
    scratch.dq.resize(rows * d, 0.0);
    let dscores = MatRef::new(&scratch.dweights, rows, keys);
    gemm(MatMut::new(&mut scratch.dq, rows, d), Overwrite, 1.0, dscores, k_m, one);
    gemm(MatMut::new(&mut dk[..keys * d], keys, d), Add, 1.0, dscores.t(), q_m, one);
}
