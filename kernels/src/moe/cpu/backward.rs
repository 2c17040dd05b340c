//! From the gradient of the tokens' sums to those of their rows, their weights and the LoRA matrices.

use rayon::prelude::*;

use super::super::{Call, ExpertProjection};
use super::{Saved, Scratch, activate, combine, drop_rows, dropped, gather, parts, swiglu};
use crate::dropout::Dropout;
use crate::gemm::{
    Accumulate::{Add, Overwrite},
    MatMut, MatRef, Threads, gemm,
};

/// Tasks share out experts, so a product stays on its thread.
const ONE: Threads = Threads::One;

/// Gradients of `x` (when wanted), the routing weights and the flat LoRA parameter.
pub(crate) struct Gradients {
    pub(crate) x: Option<Vec<f32>>,
    pub(crate) weights: Vec<f32>,
    pub(crate) lora: Vec<f32>,
}

/// Arguments of the forward pass, with the output's gradient.
pub(crate) struct Backward<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) weights: &'a [f32],
    pub(crate) lora: &'a [f32],
    pub(crate) saved: &'a Saved,
    pub(crate) dout: &'a [f32],
}

/// The reverse of [`super::forward()`].
pub(crate) fn backward(call: &Call, pass: &Backward, want_x: bool) -> Gradients {
    let routing = &call.routing;
    let (hidden, inner, slots) = (call.hidden(), call.intermediate(), routing.chosen().len());
    let mut dx = vec![0.0; if want_x { slots * hidden } else { 0 }];
    let mut dlora = vec![0.0; call.lora.len()];
    let mut dweights = vec![0.0; slots];
    let mut lora_rest = dlora.as_mut_slice();
    let mut saved_rest = pass.saved.gate_up.as_slice();
    let tasks: Vec<_> = parts(&mut dx, routing, if want_x { hidden } else { 0 })
        .into_iter()
        .zip(parts(&mut dweights, routing, 1))
        .enumerate()
        .map(|(index, (dx, dweights))| {
            let (dlora, rest) = std::mem::take(&mut lora_rest).split_at_mut(call.lora.range(index).len());
            lora_rest = rest;
            let (gate_up, rest) = saved_rest.split_at(dweights.len() * 2 * inner);
            saved_rest = rest;
            ExpertTask { index, gate_up, dx: want_x.then_some(dx), dweights, dlora }
        })
        .collect();
    tasks.into_par_iter().with_max_len(1).for_each_init(
        || (Scratch::default(), BackwardScratch::default()),
        |(scratch, own), task| {
            backward_expert(call, pass, task, scratch, own);
        },
    );
    let mut by_slot = vec![0.0; slots];
    (0..slots).for_each(|slot| by_slot[slot] = dweights[routing.position(slot)]);
    Gradients { x: want_x.then(|| combine(routing, &dx, hidden, None)), weights: by_slot, lora: dlora }
}

struct ExpertTask<'a> {
    index: usize,
    gate_up: &'a [f32],
    dx: Option<&'a mut [f32]>,
    dweights: &'a mut [f32],
    dlora: &'a mut [f32],
}

#[derive(Default)]
struct BackwardScratch {
    dout: Vec<f32>,
    dhidden: Vec<f32>,
    dgate_up: Vec<f32>,
    through: Vec<f32>,
}

fn backward_expert(
    call: &Call,
    pass: &Backward,
    mut task: ExpertTask,
    scratch: &mut Scratch,
    own: &mut BackwardScratch,
) {
    if call.routing.slots(task.index).is_empty() {
        return;
    }
    through_down(call, pass, &mut task, scratch, own);
    through_activation(call, &task, own);
    through_gate_up(call, pass, &mut task, scratch, own);
}

/// The down projection: leaves the gradient of its input in `own.dhidden` and writes those of the routing weights.
fn through_down(call: &Call, pass: &Backward, task: &mut ExpertTask, scratch: &mut Scratch, own: &mut BackwardScratch) {
    let slots = call.routing.slots(task.index);
    let (expert, rows) = (&call.experts[task.index], slots.len());
    let (hidden, inner) = (expert.hidden(), expert.intermediate());
    // Until the rows are scaled, everything is the gradient per unit of routing weight.
    gather(pass.dout, hidden, slots, call.routing.per_token(), &mut own.dout);
    activate(task.gate_up, inner, &mut scratch.hidden);
    own.dhidden.resize(rows * inner, 0.0);
    let dout = MatRef::new(&own.dout, rows, hidden);
    let weight = expert.down(&mut scratch.weight);
    gemm(MatMut::new(&mut own.dhidden, rows, inner), Overwrite, 1.0, dout, weight, ONE);
    let dlow = call.lora.expert(task.index).down.as_ref().map(|projection| {
        let dlow = low_gradient(dout, projection, pass.lora);
        add_through(&mut own.dhidden, &dlow, projection, pass.lora, call.dropout(2), slots, &mut own.through);
        (projection, dlow)
    });
    // y = W h (+ update): ∂loss/∂w = ⟨dout, y⟩ = ⟨Wᵀ dout, h⟩, so the expert's output is not needed.
    for ((dweight, dh), h) in
        task.dweights.iter_mut().zip(own.dhidden.chunks_exact(inner)).zip(scratch.hidden.chunks_exact(inner))
    {
        *dweight = dh.iter().zip(h).map(|(a, b)| a * b).sum();
    }
    scale_rows(&mut own.dhidden, inner, slots, pass.weights);
    if let Some((projection, mut dlow)) = dlow {
        scale_rows(&mut dlow, projection.rank, slots, pass.weights);
        let mut low = pass.saved.low[task.index][2].clone();
        scale_rows(&mut low, projection.rank, slots, pass.weights);
        let x = dropped(&scratch.hidden, inner, call.dropout(2), slots, &mut scratch.dropped);
        let start = call.lora.range(task.index).start;
        store_lora(task.dlora, start, projection, &dlow, x, dout, &low);
    }
}

/// From `own.dhidden` to `own.dgate_up`.
fn through_activation(call: &Call, task: &ExpertTask, own: &mut BackwardScratch) {
    let inner = call.intermediate();
    own.dgate_up.resize(task.gate_up.len(), 0.0);
    let rows = own.dhidden.chunks_exact(inner).zip(task.gate_up.chunks_exact(2 * inner));
    for ((dh, row), d) in rows.zip(own.dgate_up.chunks_exact_mut(2 * inner)) {
        let (dgate, dup) = d.split_at_mut(inner);
        swiglu::backward_into(&row[..inner], &row[inner..], dh, dgate, dup);
    }
}

/// The gate and up projections, from `own.dgate_up` on.
fn through_gate_up(
    call: &Call,
    pass: &Backward,
    task: &mut ExpertTask,
    scratch: &mut Scratch,
    own: &mut BackwardScratch,
) {
    let slots = call.routing.slots(task.index);
    let (expert, rows) = (&call.experts[task.index], slots.len());
    let (hidden, inner) = (expert.hidden(), expert.intermediate());
    let adapted = call.lora.expert(task.index);
    let start = call.lora.range(task.index).start;
    let [low_gate, low_up, _] = &pass.saved.low[task.index];
    let dgate_up = MatRef::new(&own.dgate_up, rows, 2 * inner);
    if let Some(dx) = task.dx.as_deref_mut() {
        let weight = expert.gate_up(&mut scratch.weight);
        gemm(MatMut::new(dx, rows, hidden), Overwrite, 1.0, dgate_up, weight, ONE);
    }
    if adapted.gate.is_some() || adapted.up.is_some() {
        gather(pass.x, hidden, slots, call.routing.per_token(), &mut scratch.x);
    }
    for (which, (projection, low)) in [(&adapted.gate, low_gate), (&adapted.up, low_up)].into_iter().enumerate() {
        let Some(projection) = projection else { continue };
        let dy = dgate_up.columns_range(which * inner..(which + 1) * inner);
        let dlow = low_gradient(dy, projection, pass.lora);
        if let Some(dx) = task.dx.as_deref_mut() {
            add_through(dx, &dlow, projection, pass.lora, call.dropout(which), slots, &mut own.through);
        }
        let x = dropped(&scratch.x, hidden, call.dropout(which), slots, &mut scratch.dropped);
        store_lora(task.dlora, start, projection, &dlow, x, dy, low);
    }
}

/// `scale · dy B`: the gradient of a projection's low-rank rows.
fn low_gradient(dy: MatRef, projection: &ExpertProjection, lora: &[f32]) -> Vec<f32> {
    let mut dlow = vec![0.0; dy.rows() * projection.rank];
    let b = MatRef::new(&lora[projection.b.clone()], dy.columns(), projection.rank);
    gemm(MatMut::new(&mut dlow, dy.rows(), projection.rank), Overwrite, projection.scale, dy, b, Threads::One);
    dlow
}

/// Adds `drop(dlow A)` to `dx`.
fn add_through(
    dx: &mut [f32],
    dlow: &[f32],
    projection: &ExpertProjection,
    lora: &[f32],
    dropout: Option<&Dropout>,
    slots: &[u32],
    buffer: &mut Vec<f32>,
) {
    let (rows, rank) = (slots.len(), projection.rank);
    let width = projection.a.len() / rank;
    let (dlow, a) = (MatRef::new(dlow, rows, rank), MatRef::new(&lora[projection.a.clone()], rank, width));
    match dropout {
        None => gemm(MatMut::new(dx, rows, width), Add, 1.0, dlow, a, Threads::One),
        Some(dropout) => {
            buffer.resize(rows * width, 0.0);
            gemm(MatMut::new(buffer, rows, width), Overwrite, 1.0, dlow, a, Threads::One);
            drop_rows(dropout, slots, width, buffer);
            dx.iter_mut().zip(buffer.iter()).for_each(|(d, b)| *d += b);
        }
    }
}

/// Writes `dA = dlowᵀ x` and `dB = scale · dyᵀ low` to the expert's part of the flat gradient.
fn store_lora(
    dlora: &mut [f32],
    start: usize,
    projection: &ExpertProjection,
    dlow: &[f32],
    x: MatRef,
    dy: MatRef,
    low: &[f32],
) {
    let (rows, rank) = (x.rows(), projection.rank);
    let range = |r: &std::ops::Range<usize>| r.start - start..r.end - start;
    let da = MatMut::new(&mut dlora[range(&projection.a)], rank, x.columns());
    gemm(da, Overwrite, 1.0, MatRef::new(dlow, rows, rank).t(), x, Threads::One);
    let db = MatMut::new(&mut dlora[range(&projection.b)], dy.columns(), rank);
    gemm(db, Overwrite, projection.scale, dy.t(), MatRef::new(low, rows, rank), Threads::One);
}

fn scale_rows(rows: &mut [f32], width: usize, slots: &[u32], weights: &[f32]) {
    for (row, &slot) in rows.chunks_exact_mut(width).zip(slots) {
        row.iter_mut().for_each(|v| *v *= weights[slot as usize]);
    }
}
