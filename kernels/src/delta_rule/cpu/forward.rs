//! From the first chunk of a document to the last.

use rayon::prelude::*;

use super::super::Parameters;
use super::chunk::{Gates, Keys, columns, lower, product, scale, scale_rows, solve, surprise};
use super::{CHUNK, Chunk, Saved, Task, tasks};
use crate::Documents;
use crate::disjoint::Disjoint;
use crate::gemm::{
    Accumulate::{Add, Overwrite},
    MatMut, MatRef, Threads, gemm,
};

/// `[N, value_heads · value_dim]`, and what [`super::backward()`] needs when `save` is set.
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
    let parts = saved.as_mut().map(|s| (Disjoint::new(&mut s.states), Disjoint::new(&mut s.written)));
    let walk = Walk { parameters, qkv, ba, out: Disjoint::new(&mut out), saved: parts };
    list.par_iter().for_each(|task| {
        let mut states = vec![0.0; groups.values_per_key() * dk * dv];
        walk.run(*task, &mut states);
    });
    (out, saved)
}

/// `[tokens, value_heads · value_dim]` of the next tokens of one document; `states` goes from the one before them to the
/// one after them.
pub(crate) fn continued(
    parameters: &Parameters,
    qkv: &[f32],
    ba: &[f32],
    tokens: usize,
    states: &mut [f32],
) -> Vec<f32> {
    let groups = &parameters.groups;
    let mut out = vec![0.0; tokens * groups.value_width()];
    let walk = Walk { parameters, qkv, ba, out: Disjoint::new(&mut out), saved: None };
    let of_key_head = groups.values_per_key() * groups.key_dim * groups.value_dim;
    states.par_chunks_exact_mut(of_key_head).enumerate().for_each(|(key_head, states)| {
        walk.run(Task { start: 0, end: tokens, first_chunk: 0, key_head }, states);
    });
    out
}

struct Walk<'a> {
    parameters: &'a Parameters,
    qkv: &'a [f32],
    ba: &'a [f32],
    out: Disjoint<'a>,
    /// States and written values, as in [`Saved`].
    saved: Option<(Disjoint<'a>, Disjoint<'a>)>,
}

/// Buffers of one chunk, reused by the next.
struct Scratch {
    recalled: Vec<f32>,
    read: Vec<f32>,
}

// === impl Walk ===

impl Walk<'_> {
    /// `states` holds one state for each value head of the task, before it on entry and after it on exit.
    fn run(&self, task: Task, states: &mut [f32]) {
        let groups = &self.parameters.groups;
        let (dk, dv) = (groups.key_dim, groups.value_dim);
        let per_key = groups.values_per_key();
        let mut scratch = Scratch { recalled: vec![0.0; CHUNK * dv], read: vec![0.0; CHUNK * dv] };
        for chunk in task.chunks() {
            let keys = Keys::new(self.parameters, self.qkv, chunk, task.key_head);
            for (member, state) in states.chunks_exact_mut(dk * dv).enumerate() {
                self.head(&keys, state, &mut scratch, chunk, task.key_head * per_key + member);
            }
        }
    }

    /// One value head of one chunk; `state` is the one before the chunk on entry, after it on exit.
    fn head(&self, keys: &Keys, state: &mut [f32], scratch: &mut Scratch, chunk: Chunk, head: usize) {
        let (parameters, one) = (self.parameters, Threads::One);
        let (dk, dv, rows) = (parameters.groups.key_dim, parameters.groups.value_dim, chunk.rows());
        let gates = Gates::new(parameters, self.ba, chunk, head);
        let values = columns(self.qkv, parameters.qkv_width(), chunk, parameters.value_offset(head), dv);
        let x = surprise(&gates, keys, &values, state, &mut scratch.recalled[..rows * dv], (dk, dv));
        let mut written = scale_rows(&x, &gates.beta, dv);
        solve(&lower(&gates, &keys.kk), &mut written, rows, dv);
        let written_m = MatRef::new(&written, rows, dv);

        // O = (E ⊙ Q) S + P N
        let read = &mut scratch.read[..rows * dv];
        let decayed_q = scale_rows(&keys.q, &gates.decay, dk);
        let (decayed_q, state_m) = (MatRef::new(&decayed_q, rows, dk), MatRef::new(state, dk, dv));
        gemm(MatMut::new(read, rows, dv), Overwrite, 1.0, decayed_q, state_m, one);
        let weights = product(&keys.qk, &gates.between);
        gemm(MatMut::new(read, rows, dv), Add, 1.0, MatRef::new(&weights, rows, rows), written_m, one);
        self.store(read, &written, state, chunk, head);

        let kept = scale_rows(&keys.k, &gates.remaining, dk);
        scale(state, gates.whole);
        gemm(MatMut::new(state, dk, dv), Add, 1.0, MatRef::new(&kept, rows, dk).t(), written_m, one);
    }

    /// Writes the head's output and, where they are asked for, its written values and the state before the chunk.
    fn store(&self, read: &[f32], written: &[f32], state: &[f32], chunk: Chunk, head: usize) {
        let (dv, heads) = (self.parameters.groups.value_dim, self.parameters.groups.value_heads);
        let place = |row: usize| ((chunk.from + row) * heads + head) * dv;
        for (i, row) in read.chunks_exact(dv).enumerate() {
            // SAFETY: rows of this task's document, columns of this task's heads: no other task writes them.
            unsafe { self.out.slice(place(i), dv) }.copy_from_slice(row);
        }
        let Some((saved_states, saved_written)) = self.saved else { return };
        let start = (chunk.index * heads + head) * state.len();
        // SAFETY: (chunk, head) belongs to this task alone.
        unsafe { saved_states.slice(start, state.len()) }.copy_from_slice(state);
        for (i, row) in written.chunks_exact(dv).enumerate() {
            // SAFETY: as for `out`.
            unsafe { saved_written.slice(place(i), dv) }.copy_from_slice(row);
        }
    }
}
