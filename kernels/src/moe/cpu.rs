//! Experts on the CPU: one task per expert. A task gathers its rows once, runs one product per projection over all of
//! them and writes to its own contiguous part of buffers sorted by expert; tokens then sum their rows in the order of
//! their choices, so the result does not depend on which thread finished first.

use rayon::prelude::*;

use super::{Call, Expert, ExpertProjection, Routing};
use crate::dropout::Dropout;
use crate::gemm::{
    Accumulate::{Add, Overwrite},
    MatMut, MatRef, Threads, gemm,
};
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

/// Adds `scale · x Aᵀ Bᵀ` to `y`; returns `x Aᵀ`.
fn add_low_rank(mut y: MatMut, x: MatRef, projection: &ExpertProjection, lora: &[f32]) -> Vec<f32> {
    let (rows, rank) = (x.rows(), projection.rank);
    let mut low = vec![0.0; rows * rank];
    let a = MatRef::new(&lora[projection.a.clone()], rank, x.columns());
    gemm(MatMut::new(&mut low, rows, rank), Overwrite, 1.0, x, a.t(), Threads::One);
    let b = MatRef::new(&lora[projection.b.clone()], y.columns(), rank);
    gemm(y.reborrow(), Add, projection.scale, MatRef::new(&low, rows, rank), b.t(), Threads::One);
    low
}

/// `[tokens, hidden]`, and the saved intermediates when `save` is set.
pub(crate) fn forward(call: &Call, x: &[f32], weights: &[f32], lora: &[f32], save: bool) -> (Vec<f32>, Saved) {
    let routing = &call.routing;
    let (hidden, inner, slots) = (call.hidden(), call.intermediate(), routing.chosen().len());
    let mut outputs = vec![0.0; slots * hidden];
    let mut gate_up = vec![0.0; slots * 2 * inner];
    let tasks: Vec<_> =
        parts(&mut outputs, routing, hidden).into_iter().zip(parts(&mut gate_up, routing, 2 * inner)).collect();
    let low = tasks
        .into_par_iter()
        .enumerate()
        .with_max_len(1)
        .map_init(Scratch::default, |scratch, (expert, (output, gate_up))| {
            forward_expert(call, expert, x, lora, output, gate_up, scratch)
        })
        .collect();
    let out = combine(routing, &outputs, hidden, Some(weights));
    (out, if save { Saved { gate_up, low } } else { Saved::default() })
}

fn forward_expert(
    call: &Call,
    index: usize,
    x: &[f32],
    lora: &[f32],
    output: &mut [f32],
    gate_up: &mut [f32],
    scratch: &mut Scratch,
) -> [Vec<f32>; 3] {
    let mut low: [Vec<f32>; 3] = Default::default();
    let slots = call.routing.slots(index);
    if slots.is_empty() {
        return low;
    }
    let (expert, rows): (&Expert, usize) = (&call.experts[index], slots.len());
    let (hidden, inner) = (expert.hidden(), expert.intermediate());
    let adapted = call.lora.expert(index);
    gather(x, hidden, slots, call.routing.per_token(), &mut scratch.x);
    let rows_in = MatRef::new(&scratch.x, rows, hidden);
    let weight = expert.gate_up(&mut scratch.weight);
    gemm(MatMut::new(gate_up, rows, 2 * inner), Overwrite, 1.0, rows_in, weight.t(), Threads::One);
    for (which, projection) in [&adapted.gate, &adapted.up].into_iter().enumerate() {
        let Some(projection) = projection else { continue };
        let x = dropped(&scratch.x, hidden, call.dropout(which), slots, &mut scratch.dropped);
        let half = MatMut::new(gate_up, rows, 2 * inner).columns_range(which * inner..(which + 1) * inner);
        low[which] = add_low_rank(half, x, projection, lora);
    }
    scratch.hidden.resize(rows * inner, 0.0);
    for (row, out) in gate_up.chunks_exact(2 * inner).zip(scratch.hidden.chunks_exact_mut(inner)) {
        swiglu::forward_into(&row[..inner], &row[inner..], out);
    }
    let rows_in = MatRef::new(&scratch.hidden, rows, inner);
    let weight = expert.down(&mut scratch.weight);
    gemm(MatMut::new(output, rows, hidden), Overwrite, 1.0, rows_in, weight.t(), Threads::One);
    if let Some(projection) = &adapted.down {
        let x = dropped(&scratch.hidden, inner, call.dropout(2), slots, &mut scratch.dropped);
        low[2] = add_low_rank(MatMut::new(output, rows, hidden), x, projection, lora);
    }
    low
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

/// The reverse of [`forward`].
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

fn backward_expert(call: &Call, pass: &Backward, task: ExpertTask, scratch: &mut Scratch, own: &mut BackwardScratch) {
    let slots = call.routing.slots(task.index);
    if slots.is_empty() {
        return;
    }
    let (expert, rows) = (&call.experts[task.index], slots.len());
    let (hidden, inner) = (expert.hidden(), expert.intermediate());
    let adapted = call.lora.expert(task.index);
    let start = call.lora.range(task.index).start;
    let [low_gate, low_up, low_down] = &pass.saved.low[task.index];
    let (lora, one) = (pass.lora, Threads::One);

    // Down: everything before `weighted` is the gradient per unit of routing weight.
    gather(pass.dout, hidden, slots, call.routing.per_token(), &mut own.dout);
    scratch.hidden.resize(rows * inner, 0.0);
    for (row, out) in task.gate_up.chunks_exact(2 * inner).zip(scratch.hidden.chunks_exact_mut(inner)) {
        swiglu::forward_into(&row[..inner], &row[inner..], out);
    }
    own.dhidden.resize(rows * inner, 0.0);
    let weight = expert.down(&mut scratch.weight);
    let dout = MatRef::new(&own.dout, rows, hidden);
    gemm(MatMut::new(&mut own.dhidden, rows, inner), Overwrite, 1.0, dout, weight, one);
    let dlow_down = adapted.down.as_ref().map(|projection| {
        let dlow = low_gradient(dout, projection, lora);
        add_through(&mut own.dhidden, &dlow, projection, lora, call.dropout(2), slots, &mut own.through);
        (projection, dlow)
    });
    // y = W h (+ update): ∂loss/∂w = ⟨dout, y⟩ = ⟨Wᵀ dout, h⟩, so the expert's output is not needed.
    for ((dweight, dh), h) in
        task.dweights.iter_mut().zip(own.dhidden.chunks_exact(inner)).zip(scratch.hidden.chunks_exact(inner))
    {
        *dweight = dh.iter().zip(h).map(|(a, b)| a * b).sum();
    }
    scale_rows(&mut own.dhidden, inner, slots, pass.weights);
    if let Some((projection, mut dlow)) = dlow_down {
        scale_rows(&mut dlow, projection.rank, slots, pass.weights);
        let mut low = low_down.clone();
        scale_rows(&mut low, projection.rank, slots, pass.weights);
        let x = dropped(&scratch.hidden, inner, call.dropout(2), slots, &mut scratch.dropped);
        store_lora(task.dlora, start, projection, &dlow, x, dout, &low);
    }

    // Gate and up.
    own.dgate_up.resize(rows * 2 * inner, 0.0);
    for ((dh, row), d) in own
        .dhidden
        .chunks_exact(inner)
        .zip(task.gate_up.chunks_exact(2 * inner))
        .zip(own.dgate_up.chunks_exact_mut(2 * inner))
    {
        let (dgate, dup) = d.split_at_mut(inner);
        swiglu::backward_into(&row[..inner], &row[inner..], dh, dgate, dup);
    }
    let dgate_up = MatRef::new(&own.dgate_up, rows, 2 * inner);
    let mut dx = task.dx;
    if let Some(dx) = dx.as_deref_mut() {
        let weight = expert.gate_up(&mut scratch.weight);
        gemm(MatMut::new(dx, rows, hidden), Overwrite, 1.0, dgate_up, weight, one);
    }
    if adapted.gate.is_some() || adapted.up.is_some() {
        gather(pass.x, hidden, slots, call.routing.per_token(), &mut scratch.x);
    }
    for (which, (projection, low)) in [(&adapted.gate, low_gate), (&adapted.up, low_up)].into_iter().enumerate() {
        let Some(projection) = projection else { continue };
        let dy = dgate_up.columns_range(which * inner..(which + 1) * inner);
        let dlow = low_gradient(dy, projection, lora);
        if let Some(dx) = dx.as_deref_mut() {
            add_through(dx, &dlow, projection, lora, call.dropout(which), slots, &mut own.through);
        }
        let x = dropped(&scratch.x, hidden, call.dropout(which), slots, &mut scratch.dropped);
        store_lora(task.dlora, start, projection, &dlow, x, dy, low);
    }
}
