//! Chunked gated delta rule in `f32`: per chunk of [`CHUNK`] tokens everything is a small matrix product, only the
//! state is carried from chunk to chunk. Tasks are (document, key head); each owns its value heads.
//!
//! With `G` the running sum of `g` inside the chunk, `E = exp(G)`, `D_ij = exp(G_i − G_j)` and the state `S` at the
//! chunk's start:
//! ```text
//! L = strictly_lower(beta ⊙ K Kᵀ ⊙ D)        X = V − E ⊙ (K S)
//! N = (I + L)⁻¹ (beta ⊙ X)                   O = E ⊙ (Q S) + tril(Q Kᵀ ⊙ D) N
//! S ← exp(G_C) S + (exp(G_C − G) ⊙ K)ᵀ N
//! ```

use rayon::prelude::*;

use super::Parameters;
use crate::Documents;
use crate::disjoint::Disjoint;
use crate::gemm::{
    Accumulate::{Add, Overwrite},
    MatMut, MatRef, Threads, gemm,
};

/// Tokens per chunk. 64 keeps the triangular solve small beside the products and all of a chunk in the L2 cache.
pub(crate) const CHUNK: usize = 64;

/// What the backward pass needs of the forward pass.
pub(crate) struct Saved {
    /// State at the start of every chunk, `[chunk, value head, key_dim, value_dim]`.
    states: Vec<f32>,
    /// The values written to the state (`N` above), `[token, value head, value_dim]`.
    written: Vec<f32>,
}

/// One task: a key head (with its value heads) over one document.
#[derive(Clone, Copy)]
struct Task {
    start: usize,
    end: usize,
    first_chunk: usize,
    key_head: usize,
}

fn tasks(documents: &Documents, key_heads: usize) -> (Vec<Task>, usize) {
    let mut list = Vec::new();
    let mut first_chunk = 0;
    for document in documents.iter() {
        for key_head in 0..key_heads {
            list.push(Task { start: document.start, end: document.end, first_chunk, key_head });
        }
        first_chunk += document.len().div_ceil(CHUNK);
    }
    (list, first_chunk)
}

impl Task {
    fn chunks(self) -> impl DoubleEndedIterator<Item = (usize, usize, usize)> {
        let count = (self.end - self.start).div_ceil(CHUNK);
        (0..count).map(move |index| {
            let from = self.start + index * CHUNK;
            (self.first_chunk + index, from, self.end.min(from + CHUNK))
        })
    }
}

/// The gates of one value head in one chunk.
struct Gates {
    beta: Vec<f32>,
    /// `E`.
    decay: Vec<f32>,
    /// `exp(G_C − G)`.
    remaining: Vec<f32>,
    /// `D`, lower triangle, row-major `[rows, rows]`; zero above the diagonal.
    between: Vec<f32>,
    /// `exp(G_C)`.
    whole: f32,
}

impl Gates {
    fn new(parameters: &Parameters, ba: &[f32], from: usize, to: usize, head: usize) -> Self {
        let rows = to - from;
        let mut total = 0.0f32;
        let (mut beta, mut sums) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        for t in from..to {
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
struct Keys {
    q: Vec<f32>,
    k: Vec<f32>,
    q_inverse: Vec<f32>,
    k_inverse: Vec<f32>,
    kk: Vec<f32>,
    qk: Vec<f32>,
}

impl Keys {
    fn new(parameters: &Parameters, qkv: &[f32], from: usize, to: usize, key_head: usize) -> Self {
        let (dk, rows) = (parameters.groups.key_dim, to - from);
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
        for t in from..to {
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
fn surprise(
    gates: &Gates,
    keys: &Keys,
    values: &[f32],
    state: &[f32],
    recalled: &mut [f32],
    dk: usize,
    dv: usize,
) -> Vec<f32> {
    let rows = gates.beta.len();
    gemm(
        MatMut::new(recalled, rows, dv),
        Overwrite,
        1.0,
        MatRef::new(&keys.k, rows, dk),
        MatRef::new(state, dk, dv),
        Threads::One,
    );
    let mut x = values.to_vec();
    for i in 0..rows {
        for (x, r) in x[i * dv..][..dv].iter_mut().zip(&recalled[i * dv..][..dv]) {
            *x -= gates.decay[i] * r;
        }
    }
    x
}

/// `L`, strictly lower.
fn lower(gates: &Gates, kk: &[f32]) -> Vec<f32> {
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
fn solve(l: &[f32], x: &mut [f32], rows: usize, dv: usize) {
    for i in 1..rows {
        let (done, rest) = x.split_at_mut(i * dv);
        let row = &mut rest[..dv];
        for j in 0..i {
            subtract_scaled(row, &done[j * dv..][..dv], l[i * rows + j]);
        }
    }
}

/// `x ← (I + L)⁻ᵀ x`.
fn solve_transposed(l: &[f32], x: &mut [f32], rows: usize, dv: usize) {
    for i in (1..rows).rev() {
        let (rest, done) = x.split_at_mut(i * dv);
        let row = &done[..dv];
        for j in 0..i {
            subtract_scaled(&mut rest[j * dv..][..dv], row, l[i * rows + j]);
        }
    }
}

fn scale(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|v| *v *= factor);
}

#[inline]
fn subtract_scaled(target: &mut [f32], source: &[f32], factor: f32) {
    for (t, s) in target.iter_mut().zip(source) {
        *t -= factor * s;
    }
}

fn scale_rows(matrix: &[f32], factors: &[f32], width: usize) -> Vec<f32> {
    matrix.chunks_exact(width).zip(factors).flat_map(|(row, f)| row.iter().map(move |x| x * f)).collect()
}

fn product(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(x, y)| x * y).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Copies a head's columns of a strided matrix: rows `from..to`, `width` columns from `offset`.
fn columns(matrix: &[f32], stride: usize, from: usize, to: usize, offset: usize, width: usize) -> Vec<f32> {
    (from..to).flat_map(|t| matrix[t * stride + offset..][..width].iter().copied()).collect()
}

/// `[N, value_heads · value_dim]`, and what [`backward`] needs when `save` is set.
pub(crate) fn forward(
    parameters: &Parameters,
    qkv: &[f32],
    ba: &[f32],
    documents: &Documents,
    save: bool,
) -> (Vec<f32>, Option<Saved>) {
    let groups = &parameters.groups;
    let (dk, dv, heads) = (groups.key_dim, groups.value_dim, groups.value_heads);
    let (list, chunk_count) = tasks(documents, groups.key_heads);
    let mut out = vec![0.0; documents.tokens() * heads * dv];
    let mut saved = save.then(|| Saved {
        states: vec![0.0; chunk_count * heads * dk * dv],
        written: vec![0.0; documents.tokens() * heads * dv],
    });
    let out_parts = Disjoint::new(&mut out);
    let saved_parts = saved.as_mut().map(|s| (Disjoint::new(&mut s.states), Disjoint::new(&mut s.written)));
    list.par_iter().for_each(|task| forward_task(parameters, qkv, ba, *task, out_parts, saved_parts));
    (out, saved)
}

fn forward_task(
    parameters: &Parameters,
    qkv: &[f32],
    ba: &[f32],
    task: Task,
    out: Disjoint,
    saved: Option<(Disjoint, Disjoint)>,
) {
    let groups = &parameters.groups;
    let (dk, dv, heads) = (groups.key_dim, groups.value_dim, groups.value_heads);
    let per_key = heads / groups.key_heads;
    let mut states = vec![0.0; per_key * dk * dv];
    let mut recalled = vec![0.0; CHUNK * dv];
    let mut read = vec![0.0; CHUNK * dv];
    for (chunk, from, to) in task.chunks() {
        let rows = to - from;
        let keys = Keys::new(parameters, qkv, from, to, task.key_head);
        for j in 0..per_key {
            let head = task.key_head * per_key + j;
            let state = &mut states[j * dk * dv..][..dk * dv];
            let gates = Gates::new(parameters, ba, from, to, head);
            let values = columns(qkv, parameters.qkv_width(), from, to, parameters.value_offset(head), dv);
            let x = surprise(&gates, &keys, &values, state, &mut recalled[..rows * dv], dk, dv);
            let mut written = scale_rows(&x, &gates.beta, dv);
            solve(&lower(&gates, &keys.kk), &mut written, rows, dv);

            let read = &mut read[..rows * dv];
            gemm(
                MatMut::new(read, rows, dv),
                Overwrite,
                1.0,
                MatRef::new(&scale_rows(&keys.q, &gates.decay, dk), rows, dk),
                MatRef::new(state, dk, dv),
                Threads::One,
            );
            gemm(
                MatMut::new(read, rows, dv),
                Add,
                1.0,
                MatRef::new(&product(&keys.qk, &gates.between), rows, rows),
                MatRef::new(&written, rows, dv),
                Threads::One,
            );
            for (i, row) in read.chunks_exact(dv).enumerate() {
                // SAFETY: rows of this task's document, columns of this task's heads: no other task writes them.
                unsafe { out.slice(((from + i) * heads + head) * dv, dv) }.copy_from_slice(row);
            }
            if let Some((saved_states, saved_written)) = saved {
                // SAFETY: (chunk, head) belongs to this task alone.
                unsafe { saved_states.slice((chunk * heads + head) * dk * dv, dk * dv) }.copy_from_slice(state);
                for (i, row) in written.chunks_exact(dv).enumerate() {
                    // SAFETY: as for `out`.
                    unsafe { saved_written.slice(((from + i) * heads + head) * dv, dv) }.copy_from_slice(row);
                }
            }
            let kept = scale_rows(&keys.k, &gates.remaining, dk);
            scale(state, gates.whole);
            gemm(
                MatMut::new(state, dk, dv),
                Add,
                1.0,
                MatRef::new(&kept, rows, dk).t(),
                MatRef::new(&written, rows, dv),
                Threads::One,
            );
        }
    }
}

/// Gradients of `qkv` and `ba`.
pub(crate) fn backward(
    parameters: &Parameters,
    qkv: &[f32],
    ba: &[f32],
    documents: &Documents,
    saved: &Saved,
    dout: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let (list, _) = tasks(documents, parameters.groups.key_heads);
    let mut dqkv = vec![0.0; qkv.len()];
    let mut dba = vec![0.0; ba.len()];
    let (dqkv_parts, dba_parts) = (Disjoint::new(&mut dqkv), Disjoint::new(&mut dba));
    list.par_iter().for_each(|task| {
        let mut walk = Walk { parameters, qkv, ba, saved, dout, dqkv: dqkv_parts, dba: dba_parts };
        walk.run(*task);
    });
    (dqkv, dba)
}

struct Walk<'a> {
    parameters: &'a Parameters,
    qkv: &'a [f32],
    ba: &'a [f32],
    saved: &'a Saved,
    dout: &'a [f32],
    dqkv: Disjoint<'a>,
    dba: Disjoint<'a>,
}

/// Gradients of a chunk's normalised queries and keys, summed over the value heads of the key head.
struct KeyGradients {
    q: Vec<f32>,
    k: Vec<f32>,
}

impl Walk<'_> {
    fn run(&mut self, task: Task) {
        let groups = &self.parameters.groups;
        let (dk, dv) = (groups.key_dim, groups.value_dim);
        let per_key = groups.value_heads / groups.key_heads;
        let mut dstates = vec![0.0; per_key * dk * dv];
        for (chunk, from, to) in task.chunks().rev() {
            let keys = Keys::new(self.parameters, self.qkv, from, to, task.key_head);
            let mut dkeys = KeyGradients { q: vec![0.0; (to - from) * dk], k: vec![0.0; (to - from) * dk] };
            for j in 0..per_key {
                let head = task.key_head * per_key + j;
                let dstate = &mut dstates[j * dk * dv..][..dk * dv];
                self.head(&keys, &mut dkeys, dstate, chunk, from, to, head);
            }
            self.through_normalisation(&keys, &dkeys, from, to, task.key_head);
        }
    }

    /// One value head of one chunk; `dstate` is the gradient of the state after the chunk on entry, before it on exit.
    fn head(
        &mut self,
        keys: &Keys,
        dkeys: &mut KeyGradients,
        dstate: &mut [f32],
        chunk: usize,
        from: usize,
        to: usize,
        head: usize,
    ) {
        let groups = &self.parameters.groups;
        let (dk, dv, heads, rows) = (groups.key_dim, groups.value_dim, groups.value_heads, to - from);
        let gates = Gates::new(self.parameters, self.ba, from, to, head);
        let values = columns(self.qkv, self.parameters.qkv_width(), from, to, self.parameters.value_offset(head), dv);
        let state = &self.saved.states[(chunk * heads + head) * dk * dv..][..dk * dv];
        let written = columns(&self.saved.written, heads * dv, from, to, head * dv, dv);
        let dout = columns(self.dout, heads * dv, from, to, head * dv, dv);
        let mut recalled = vec![0.0; rows * dv];
        let x = surprise(&gates, keys, &values, state, &mut recalled, dk, dv);
        let l = lower(&gates, &keys.kk);
        let weights = product(&keys.qk, &gates.between);
        let mut dsums = vec![0.0f32; rows];
        let one = Threads::One;
        let (k, state_m) = (MatRef::new(&keys.k, rows, dk), MatRef::new(state, dk, dv));

        // dN = Pᵀ dO + (exp(G_C − G) ⊙ K) dS
        let kept = scale_rows(&keys.k, &gates.remaining, dk);
        let mut dwritten = vec![0.0; rows * dv];
        let dout_m = MatRef::new(&dout, rows, dv);
        gemm(MatMut::new(&mut dwritten, rows, dv), Overwrite, 1.0, MatRef::new(&weights, rows, rows).t(), dout_m, one);
        gemm(
            MatMut::new(&mut dwritten, rows, dv),
            Add,
            1.0,
            MatRef::new(&kept, rows, dk),
            MatRef::new(dstate, dk, dv),
            one,
        );

        // State update: gradients of the kept keys and of the chunk's whole decay.
        let mut dkept = vec![0.0; rows * dk];
        let written_m = MatRef::new(&written, rows, dv);
        gemm(MatMut::new(&mut dkept, rows, dk), Overwrite, 1.0, written_m, MatRef::new(dstate, dk, dv).t(), one);
        let mut dlast = gates.whole * dot(dstate, state);
        for i in 0..rows {
            let moved = dot(&dkept[i * dk..][..dk], &kept[i * dk..][..dk]);
            dlast += moved;
            dsums[i] -= moved;
            for (d, s) in dkeys.k[i * dk..][..dk].iter_mut().zip(&dkept[i * dk..][..dk]) {
                *d += gates.remaining[i] * s;
            }
        }
        dsums[rows - 1] += dlast;

        // dP, and through it the queries, keys and decays.
        let mut dweights = vec![0.0; rows * rows];
        gemm(MatMut::new(&mut dweights, rows, rows), Overwrite, 1.0, dout_m, written_m.t(), one);
        for i in 0..rows {
            for j in 0..=i {
                let through = dweights[i * rows + j] * weights[i * rows + j];
                dsums[i] += through;
                dsums[j] -= through;
            }
        }
        let dqk = product(&dweights, &gates.between);
        let dqk_m = MatRef::new(&dqk, rows, rows);
        gemm(MatMut::new(&mut dkeys.q, rows, dk), Add, 1.0, dqk_m, k, one);
        gemm(MatMut::new(&mut dkeys.k, rows, dk), Add, 1.0, dqk_m.t(), MatRef::new(&keys.q, rows, dk), one);

        // E ⊙ (Q S)
        let mut dread = vec![0.0; rows * dk];
        gemm(MatMut::new(&mut dread, rows, dk), Overwrite, 1.0, dout_m, state_m.t(), one);
        let decayed_q = scale_rows(&keys.q, &gates.decay, dk);
        for i in 0..rows {
            dsums[i] += dot(&dread[i * dk..][..dk], &decayed_q[i * dk..][..dk]);
            for (d, s) in dkeys.q[i * dk..][..dk].iter_mut().zip(&dread[i * dk..][..dk]) {
                *d += gates.decay[i] * s;
            }
        }
        scale(dstate, gates.whole);
        gemm(MatMut::new(dstate, dk, dv), Add, 1.0, MatRef::new(&decayed_q, rows, dk).t(), dout_m, one);

        // N = (I + L)⁻¹ R:  dR = (I + L)⁻ᵀ dN,  dL = −strictly_lower(dR Nᵀ)
        solve_transposed(&l, &mut dwritten, rows, dv);
        let dr = dwritten;
        let mut dl = vec![0.0; rows * rows];
        gemm(MatMut::new(&mut dl, rows, rows), Overwrite, -1.0, MatRef::new(&dr, rows, dv), written_m.t(), one);
        let mut dbeta = vec![0.0f32; rows];
        for i in 0..rows {
            for j in 0..rows {
                let ij = i * rows + j;
                if j >= i {
                    dl[ij] = 0.0;
                    continue;
                }
                let through = dl[ij] * l[ij];
                dsums[i] += through;
                dsums[j] -= through;
                let masked = dl[ij] * gates.between[ij];
                dbeta[i] += masked * keys.kk[ij];
                dl[ij] = masked * gates.beta[i];
            }
        }
        let dl_m = MatRef::new(&dl, rows, rows);
        gemm(MatMut::new(&mut dkeys.k, rows, dk), Add, 1.0, dl_m, k, one);
        gemm(MatMut::new(&mut dkeys.k, rows, dk), Add, 1.0, dl_m.t(), k, one);

        // R = beta ⊙ X,  X = V − E ⊙ (K S)
        for i in 0..rows {
            dbeta[i] += dot(&dr[i * dv..][..dv], &x[i * dv..][..dv]);
        }
        let dx = scale_rows(&dr, &gates.beta, dv);
        let drecalled = {
            let mut d = scale_rows(&dx, &gates.decay, dv);
            d.iter_mut().for_each(|v| *v = -*v);
            d
        };
        for i in 0..rows {
            dsums[i] += dot(&drecalled[i * dv..][..dv], &recalled[i * dv..][..dv]);
        }
        let drecalled_m = MatRef::new(&drecalled, rows, dv);
        gemm(MatMut::new(&mut dkeys.k, rows, dk), Add, 1.0, drecalled_m, state_m.t(), one);
        gemm(MatMut::new(dstate, dk, dv), Add, 1.0, k.t(), drecalled_m, one);

        self.store_head(&dx, &dbeta, &dsums, from, to, head);
    }

    /// Writes the gradients of the values and, through their activations, of the gates.
    fn store_head(&self, dvalues: &[f32], dbeta: &[f32], dsums: &[f32], from: usize, to: usize, head: usize) {
        let dv = self.parameters.groups.value_dim;
        let (width, offset) = (self.parameters.qkv_width(), self.parameters.value_offset(head));
        let mut running = 0.0;
        for t in (from..to).rev() {
            let i = t - from;
            running += dsums[i];
            // SAFETY: the value columns of `head` in rows of this task's document.
            unsafe { self.dqkv.slice(t * width + offset, dv) }.copy_from_slice(&dvalues[i * dv..][..dv]);
            let (at_b, at_a) = self.parameters.gate_offsets(t, head);
            let (db, da) = self.parameters.gate_gradients(self.ba, t, head, dbeta[i], running);
            // SAFETY: the two gate entries of `head` in row `t`: this task's alone.
            unsafe {
                self.dba.slice(at_b, 1)[0] = db;
                self.dba.slice(at_a, 1)[0] = da;
            }
        }
    }

    /// `y = x s`, `s = (Σx² + ε)^(−1/2)`: `dx = s (dy − y ⟨y, dy⟩)`; the queries also carry `key_dim^(−1/2)`.
    fn through_normalisation(&self, keys: &Keys, dkeys: &KeyGradients, from: usize, to: usize, key_head: usize) {
        let dk = self.parameters.groups.key_dim;
        let width = self.parameters.qkv_width();
        let key_offset = self.parameters.groups.key_heads * dk;
        let scale = (dk as f32).powf(-0.5);
        for t in from..to {
            let i = t - from;
            let parts =
                [(&keys.q, &dkeys.q, &keys.q_inverse, 0, scale), (&keys.k, &dkeys.k, &keys.k_inverse, key_offset, 1.0)];
            for (y, dy, inverse, offset, scale) in parts {
                let (y, dy) = (&y[i * dk..][..dk], &dy[i * dk..][..dk]);
                // `y` carries the scale once, so ⟨y, dy⟩ / scale² · scale = ⟨y, dy⟩ / scale.
                let along = dot(y, dy) / scale;
                // SAFETY: the query and key columns of this task's key head.
                let target = unsafe { self.dqkv.slice(t * width + offset + key_head * dk, dk) };
                for ((target, y), dy) in target.iter_mut().zip(y).zip(dy) {
                    *target = inverse[i] * (dy * scale - y * along);
                }
            }
        }
    }
}
