//! From the tokens' rows to their sums.

use rayon::prelude::*;

use super::super::{Call, ExpertProjection};
use super::{Saved, Scratch, activate, combine, dropped, gather, parts};
use crate::gemm::{
    Accumulate::{Add, Overwrite},
    MatMut, MatRef, Threads, gemm,
};

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
    let (expert, rows) = (&call.experts[index], slots.len());
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
    activate(gate_up, inner, &mut scratch.hidden);
    let rows_in = MatRef::new(&scratch.hidden, rows, inner);
    let weight = expert.down(&mut scratch.weight);
    gemm(MatMut::new(output, rows, hidden), Overwrite, 1.0, rows_in, weight.t(), Threads::One);
    if let Some(projection) = &adapted.down {
        let x = dropped(&scratch.hidden, inner, call.dropout(2), slots, &mut scratch.dropped);
        low[2] = add_low_rank(MatMut::new(output, rows, hidden), x, projection, lora);
    }
    low
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
