//! From the last chunk of a document to the first. The forward pass left the state before every chunk and what was
//! written to it; everything else of a chunk is computed again.

use rayon::prelude::*;

use super::super::Parameters;
use super::chunk::{Gates, Keys, columns, lower, product, scale_rows, surprise};
use super::head::{GateGradients, HeadChunk, KeyGradients, dot};
use super::{Chunk, Saved, Task, tasks};
use crate::Documents;
use crate::disjoint::Disjoint;

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
    let walk = Walk { parameters, qkv, ba, saved, dout, dqkv: dqkv_parts, dba: dba_parts };
    list.par_iter().for_each(|task| walk.run(*task));
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

// === impl Walk ===

impl Walk<'_> {
    fn run(&self, task: Task) {
        let groups = &self.parameters.groups;
        let (dk, dv) = (groups.key_dim, groups.value_dim);
        let per_key = groups.values_per_key();
        let mut dstates = vec![0.0; per_key * dk * dv];
        for chunk in task.chunks().rev() {
            let rows = chunk.rows();
            let keys = Keys::new(self.parameters, self.qkv, chunk, task.key_head);
            let mut dkeys = KeyGradients { q: vec![0.0; rows * dk], k: vec![0.0; rows * dk] };
            for (member, dstate) in dstates.chunks_exact_mut(dk * dv).enumerate() {
                self.head(&keys, &mut dkeys, dstate, chunk, task.key_head * per_key + member);
            }
            self.store_keys(&keys, &dkeys, chunk, task.key_head);
        }
    }

    /// One value head of one chunk; `dstate` is the gradient of the state after the chunk on entry, before it on exit.
    fn head(&self, keys: &Keys, dkeys: &mut KeyGradients, dstate: &mut [f32], chunk: Chunk, head: usize) {
        let part = self.again(keys, chunk, head);
        let mut dgates = GateGradients { sums: vec![0.0; part.rows], beta: vec![0.0; part.rows] };
        let mut dwritten = part.written_gradient(dstate);
        part.through_update(dstate, dkeys, &mut dgates);
        part.through_weights(dkeys, &mut dgates);
        part.through_read(dstate, dkeys, &mut dgates);
        part.through_solve(&mut dwritten, dkeys, &mut dgates);
        let dvalues = part.through_surprise(&dwritten, dstate, dkeys, &mut dgates);
        self.store_head(&dvalues, &dgates, chunk, head);
    }

    /// What the forward pass had.
    fn again<'k>(&'k self, keys: &'k Keys, chunk: Chunk, head: usize) -> HeadChunk<'k> {
        let groups = &self.parameters.groups;
        let (dk, dv, heads) = (groups.key_dim, groups.value_dim, groups.value_heads);
        let gates = Gates::new(self.parameters, self.ba, chunk, head);
        let offset = self.parameters.value_offset(head);
        let values = columns(self.qkv, self.parameters.qkv_width(), chunk, offset, dv);
        let state = &self.saved.states[(chunk.index * heads + head) * dk * dv..][..dk * dv];
        let mut recalled = vec![0.0; chunk.rows() * dv];
        HeadChunk {
            dk,
            dv,
            rows: chunk.rows(),
            x: surprise(&gates, keys, &values, state, &mut recalled, (dk, dv)),
            l: lower(&gates, &keys.kk),
            written: columns(&self.saved.written, heads * dv, chunk, head * dv, dv),
            weights: product(&keys.qk, &gates.between),
            kept: scale_rows(&keys.k, &gates.remaining, dk),
            dout: columns(self.dout, heads * dv, chunk, head * dv, dv),
            recalled,
            state,
            gates,
            keys,
        }
    }

    /// Writes the gradients of the values and, through their activations, of the gates.
    fn store_head(&self, dvalues: &[f32], dgates: &GateGradients, chunk: Chunk, head: usize) {
        let dv = self.parameters.groups.value_dim;
        let (width, offset) = (self.parameters.qkv_width(), self.parameters.value_offset(head));
        let mut running = 0.0;
        for t in (chunk.from..chunk.to).rev() {
            let i = t - chunk.from;
            running += dgates.sums[i];
            // SAFETY: the value columns of `head` in rows of this task's document.
            unsafe { self.dqkv.slice(t * width + offset, dv) }.copy_from_slice(&dvalues[i * dv..][..dv]);
            let (at_b, at_a) = self.parameters.gate_offsets(t, head);
            let (db, da) = self.parameters.gate_gradients(self.ba, t, head, dgates.beta[i], running);
            // SAFETY: the two gate entries of `head` in row `t`: this task's alone.
            unsafe {
                self.dba.slice(at_b, 1)[0] = db;
                self.dba.slice(at_a, 1)[0] = da;
            }
        }
    }

    /// Writes the gradients of queries and keys, through their normalisation.
    ///
    /// `y = x s`, `s = (Σx² + ε)^(−1/2)`: `dx = s (dy − y ⟨y, dy⟩)`; the queries also carry `key_dim^(−1/2)`.
    fn store_keys(&self, keys: &Keys, dkeys: &KeyGradients, chunk: Chunk, key_head: usize) {
        let dk = self.parameters.groups.key_dim;
        let width = self.parameters.qkv_width();
        let key_offset = self.parameters.groups.key_heads * dk;
        let scale = (dk as f32).powf(-0.5);
        for t in chunk.from..chunk.to {
            let i = t - chunk.from;
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
