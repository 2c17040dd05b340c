//! What happens to every row or value by itself: bounded by bytes, all of it.

use brightrun_kernels::Result;
use brightrun_kernels::conv::{ConvWeight, GpuConv, HeadGroups};
use brightrun_kernels::embedding::{GpuEmbedding, TokenIds};
use brightrun_kernels::gpu::Buffer;
use brightrun_kernels::norm::{GpuGatedNorm, GpuNorm, Kind};
use brightrun_kernels::rope::gpu::{sigmoid_gate, sigmoid_gate_backward};
use brightrun_kernels::rope::{GpuHeadNormRope, GpuRopeTable, HeadNorm, HeadShape, RopeTable};
use brightrun_kernels::{elements, swiglu};
use half::bf16;

use super::models::Model;
use super::{Cost, Draw, Op, Shapes, each, half, split};

const EPSILON: f32 = 1e-6;
/// Base of the angles, for no more than their range.
const THETA: f64 = 1e7;
/// Lists of tokens whose rows are gathered in turn.
const GATHERED: usize = 8;
/// Taps of the convolution.
const TAPS: usize = 4;

pub(super) fn ops(shapes: &Shapes) -> Vec<Op> {
    let mut ops = Vec::new();
    each(shapes, |model, tokens| {
        ops.extend(heads(*model, tokens));
        if let Some(groups) = model.delta_net {
            // Once for both models, whose rows are alike.
            ops.extend(norms(*model, tokens));
            ops.extend(activations(*model, tokens));
            ops.extend(values(*model, tokens));
            ops.extend(convolution(groups, tokens, shapes.document));
            ops.extend(gated_norm(groups, tokens));
        }
    });
    ops
}

/// An op of bytes alone. `moved` are values of bf16.
fn op(name: String, moved: usize, set_up: impl Fn(&Draw<'_>) -> Result<super::Work> + 'static) -> Op {
    Op::new(name, "rows and values by themselves", Cost::bytes(half(moved)), set_up)
}

fn norms(model: Model, tokens: usize) -> [Op; 2] {
    let (count, width) = (tokens * model.hidden, model.hidden);
    let norm = move |draw: &Draw<'_>| GpuNorm::of(draw.gpu, &draw.vector(width), Kind::ZeroCentred, EPSILON);
    [
        op(format!("norm:{tokens} rows sum and norm"), 4 * count, move |draw| {
            let (norm, x, delta) = (norm(draw)?, draw.bf16(count)?, draw.bf16(count)?);
            let (mut h, mut y) = (draw.room(count)?, draw.room(count)?);
            Ok(Box::new(move || norm.forward_sum(&x, &delta, &mut h, &mut y)))
        }),
        op(format!("norm:{tokens} rows backward with residual"), 4 * count, move |draw| {
            let (norm, [h, dy, residual]) = (norm(draw)?, three(draw, count)?);
            let mut dx = draw.room(count)?;
            Ok(Box::new(move || norm.backward(&h, &dy, Some(&residual), &mut dx)))
        }),
    ]
}

fn three(draw: &Draw<'_>, count: usize) -> Result<[Buffer<bf16>; 3]> {
    Ok([draw.bf16(count)?, draw.bf16(count)?, draw.bf16(count)?])
}

/// Norm and rotation of queries and keys, and the gate behind attention.
fn heads(model: Model, tokens: usize) -> Vec<Op> {
    let (query, key, dim) = (model.heads.query, model.heads.key_value, model.heads.width);
    let stride = if model.gated { 2 * dim } else { dim };
    let mut ops = Vec::new();
    for (name, heads, source_stride) in [("queries", query, stride), ("keys", key, dim)] {
        let (count, raw) = (tokens * heads * dim, tokens * heads * source_stride);
        let name = |direction: &str| format!("rope:{} {tokens} tokens {name} {direction}", model.name);
        let arguments = move |draw: &Draw<'_>| -> Result<_> {
            let norm = HeadNorm { weight: draw.vector(dim).into(), kind: Kind::Plain, epsilon: EPSILON };
            let shape = HeadShape { heads, head_dim: dim, source_stride };
            let rope = GpuHeadNormRope::of(draw.gpu, shape, Some(&norm))?;
            let table = GpuRopeTable::of(draw.gpu, &RopeTable::new(model.rotary, THETA, tokens)?)?;
            Ok((rope, table, draw.documents(&[tokens])?, draw.bf16(raw)?))
        };
        ops.push(op(name("forward"), 2 * count, move |draw| {
            let (rope, table, documents, x) = arguments(draw)?;
            let mut y = draw.room(count)?;
            Ok(Box::new(move || rope.forward(&x, &table, &documents, &mut y)))
        }));
        ops.push(op(name("backward"), 3 * count, move |draw| {
            let (rope, table, documents, x) = arguments(draw)?;
            let (dy, mut dx) = (draw.bf16(count)?, draw.room(raw)?);
            Ok(Box::new(move || rope.backward(&x, &table, &documents, &dy, &mut dx)))
        }));
    }
    if model.gated {
        let count = tokens * query * dim;
        ops.push(op(format!("gate:{tokens} tokens forward"), 3 * count, move |draw| {
            let (attention, raw, mut y) = (draw.bf16(count)?, draw.bf16(2 * count)?, draw.room(count)?);
            Ok(Box::new(move || sigmoid_gate(&attention, &raw, dim, &mut y)))
        }));
        ops.push(op(format!("gate:{tokens} tokens backward"), 5 * count, move |draw| {
            let (attention, raw, dy) = (draw.bf16(count)?, draw.bf16(2 * count)?, draw.bf16(count)?);
            let (mut d_attention, mut d_raw) = (draw.room(count)?, draw.room(2 * count)?);
            Ok(Box::new(move || sigmoid_gate_backward(&attention, &raw, dim, &dy, &mut d_attention, &mut d_raw)))
        }));
    }
    ops
}

/// Those of the shared expert, and its gate.
fn activations(model: Model, tokens: usize) -> [Op; 4] {
    let (inner, count) = (tokens * model.width, tokens * model.hidden);
    [
        op(format!("swiglu:{tokens} rows forward"), 3 * inner, move |draw| {
            let (gate, up, mut y) = (draw.bf16(inner)?, draw.bf16(inner)?, draw.room(inner)?);
            Ok(Box::new(move || swiglu::gpu::forward(&gate, &up, &mut y)))
        }),
        op(format!("swiglu:{tokens} rows backward"), 5 * inner, move |draw| {
            let ([gate, up, dy], mut d_gate, mut d_up) = (three(draw, inner)?, draw.room(inner)?, draw.room(inner)?);
            Ok(Box::new(move || swiglu::gpu::backward(&gate, &up, &dy, &mut d_gate, &mut d_up)))
        }),
        op(format!("shared gate:{tokens} rows forward"), 3 * count + tokens, move |draw| {
            let (y, gates, mut out) = (draw.bf16(count)?, draw.bf16(tokens)?, draw.room(count)?);
            Ok(Box::new(move || swiglu::gpu::scale_rows(&y, &gates, &mut out)))
        }),
        op(format!("shared gate:{tokens} rows backward"), 3 * count + 2 * tokens, move |draw| {
            let (y, gates, d_out) = (draw.bf16(count)?, draw.bf16(tokens)?, draw.bf16(count)?);
            let (mut d_y, mut d_gates) = (draw.room(count)?, draw.room(tokens)?);
            Ok(Box::new(move || swiglu::gpu::scale_rows_backward(&y, &gates, &d_out, &mut d_y, &mut d_gates)))
        }),
    ]
}

/// The embedding's rows, and every value by itself.
fn values(model: Model, tokens: usize) -> [Op; 3] {
    let Model { hidden, vocabulary, .. } = model;
    let count = tokens * hidden;
    [
        op(format!("embedding:{tokens} rows"), 2 * count + 2 * tokens, move |draw| {
            let embedding = GpuEmbedding::new(draw.bf16(vocabulary * hidden)?, vocabulary)?;
            let number = |value: &f32| ((value.abs() * vocabulary as f32) as u32).min(vocabulary as u32 - 1);
            // The table is large, but not what is read of it: other rows each time.
            let rows = |_| -> Result<_> {
                let ids: Vec<u32> = draw.vector(tokens).iter().map(number).collect();
                Ok((TokenIds::of(draw.gpu, &ids, vocabulary)?, draw.room(count)?))
            };
            let mut rows = (0..GATHERED).map(rows).collect::<Result<Vec<_>>>()?;
            let mut next = 0;
            Ok(Box::new(move || {
                next = (next + 1) % GATHERED;
                let (ids, out) = &mut rows[next];
                embedding.forward(ids, out)
            }))
        }),
        op(format!("elements:{tokens} rows add"), 3 * count, move |draw| {
            let (x, mut y) = (draw.bf16(count)?, draw.bf16(count)?);
            Ok(Box::new(move || elements::add(&x, &mut y)))
        }),
        op(format!("elements:{tokens} rows to bf16"), 3 * count, move |draw| {
            let (x, mut y) = (draw.floats(1.0, count)?, draw.room(count)?);
            Ok(Box::new(move || elements::to_bf16(&x, &mut y)))
        }),
    ]
}

fn convolution(groups: HeadGroups, tokens: usize, document: usize) -> [Op; 2] {
    let (channels, projected) = (groups.convolved_width(), tokens * groups.projection_width());
    let count = tokens * channels;
    let arguments = move |draw: &Draw<'_>| -> Result<_> {
        let weight = ConvWeight::new(&draw.vector(channels * TAPS), channels, TAPS)?;
        let conv = GpuConv::of(draw.gpu, &weight, &groups)?;
        Ok((conv, draw.documents(&split(tokens, document))?, draw.bf16(projected)?))
    };
    [
        op(format!("conv:{tokens} tokens forward"), 2 * count, move |draw| {
            let ((conv, documents, qkvz), mut y) = (arguments(draw)?, draw.room(count)?);
            Ok(Box::new(move || conv.forward(&qkvz, &documents, &mut y)))
        }),
        op(format!("conv:{tokens} tokens backward"), 3 * count, move |draw| {
            let ((conv, documents, qkvz), dy) = (arguments(draw)?, draw.bf16(count)?);
            let mut d_qkvz = draw.room(projected)?;
            Ok(Box::new(move || conv.backward(&qkvz, &documents, &dy, &mut d_qkvz)))
        }),
    ]
}

fn gated_norm(groups: HeadGroups, tokens: usize) -> [Op; 2] {
    let (count, projected) = (tokens * groups.value_width(), tokens * groups.projection_width());
    let norm = move |draw: &Draw<'_>| GpuGatedNorm::of(draw.gpu, &draw.vector(groups.value_dim), &groups, EPSILON);
    [
        op(format!("gated norm:{tokens} tokens forward"), 3 * count, move |draw| {
            let (norm, o, qkvz, mut y) = (norm(draw)?, draw.bf16(count)?, draw.bf16(projected)?, draw.room(count)?);
            Ok(Box::new(move || norm.forward(&o, &qkvz, &mut y)))
        }),
        op(format!("gated norm:{tokens} tokens backward"), 5 * count, move |draw| {
            let (norm, o, qkvz, dy) = (norm(draw)?, draw.bf16(count)?, draw.bf16(projected)?, draw.bf16(count)?);
            let (mut d_o, mut d_qkvz) = (draw.room(count)?, draw.room(projected)?);
            Ok(Box::new(move || norm.backward(&o, &qkvz, &dy, &mut d_o, &mut d_qkvz)))
        }),
    ]
}
