//! Experts on the CPU: one task per expert. A task gathers its rows once, runs one product per projection over all of
//! them and writes to its own contiguous part of buffers sorted by expert; tokens then sum their rows in the order of
//! their choices, so the result does not depend on which thread finished first.

mod backward;
mod forward;

use rayon::prelude::*;

pub(crate) use backward::{Backward, backward};
pub(crate) use forward::forward;

use super::Routing;
use crate::dropout::Dropout;
use crate::gemm::MatRef;
use crate::swiglu::cpu as swiglu;

/// What the backward pass needs of the forward pass, sorted by expert.
#[derive(Default)]
pub(crate) struct Saved {
    /// Gate and up outputs, `[slots, 2 · intermediate]`.
    gate_up: Vec<f32>,
    /// `drop(x) Aᵀ` of gate, up and down, per expert.
    low: Vec<[Vec<f32>; 3]>,
}

#[derive(Default)]
struct Scratch {
    weight: Vec<f32>,
    x: Vec<f32>,
    hidden: Vec<f32>,
    dropped: Vec<f32>,
}

/// Splits a buffer of `width` values per slot into the parts of the experts.
fn parts<'a>(mut values: &'a mut [f32], routing: &Routing, width: usize) -> Vec<&'a mut [f32]> {
    routing
        .counts()
        .map(|rows| {
            let (part, rest) = std::mem::take(&mut values).split_at_mut(rows * width);
            values = rest;
            part
        })
        .collect()
}

/// Copies the rows of an expert's tokens.
fn gather(source: &[f32], width: usize, slots: &[u32], per_token: usize, out: &mut Vec<f32>) {
    out.clear();
    for &slot in slots {
        out.extend_from_slice(&source[slot as usize / per_token * width..][..width]);
    }
}

/// Applies an expert's dropout to rows: a row's mask belongs to its slot, not to its place.
fn drop_rows(dropout: &Dropout, slots: &[u32], width: usize, rows: &mut [f32]) {
    for (row, &slot) in rows.chunks_exact_mut(width).zip(slots) {
        dropout.apply(row, u64::from(slot) * width as u64);
    }
}

/// `rows` with dropout applied, in `buffer` when there is any.
fn dropped<'a>(
    rows: &'a [f32],
    width: usize,
    dropout: Option<&Dropout>,
    slots: &[u32],
    buffer: &'a mut Vec<f32>,
) -> MatRef<'a> {
    let Some(dropout) = dropout else { return MatRef::new(rows, slots.len(), width) };
    buffer.clear();
    buffer.extend_from_slice(rows);
    drop_rows(dropout, slots, width, buffer);
    MatRef::new(buffer, slots.len(), width)
}

/// `silu(gate) ⊙ up` of rows `gate | up` of twice `inner` values.
fn activate(gate_up: &[f32], inner: usize, hidden: &mut Vec<f32>) {
    hidden.resize(gate_up.len() / 2, 0.0);
    for (row, out) in gate_up.chunks_exact(2 * inner).zip(hidden.chunks_exact_mut(inner)) {
        swiglu::forward_into(&row[..inner], &row[inner..], out);
    }
}

/// `out_t = Σ_j w_tj · rows[position(t, j)]`, all weights one when there are none.
fn combine(routing: &Routing, rows: &[f32], width: usize, weights: Option<&[f32]>) -> Vec<f32> {
    let k = routing.per_token();
    let mut out = vec![0.0; routing.tokens() * width];
    out.par_chunks_mut(width).enumerate().with_min_len(16).for_each(|(token, out)| {
        for slot in token * k..(token + 1) * k {
            let weight = weights.map_or(1.0, |w| w[slot]);
            let row = &rows[routing.position(slot) * width..][..width];
            out.iter_mut().zip(row).for_each(|(o, r)| *o += weight * r);
        }
    });
    out
}
