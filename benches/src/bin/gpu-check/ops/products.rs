//! Products of matrices: dense ones, NF4, and linear layers with frozen weights in NF4.

use brightrun_kernels::Result;
use brightrun_kernels::gemm::Accumulate;
use brightrun_kernels::gemm::gpu::{Form, Out};
use brightrun_kernels::lora_linear::gpu::{GpuLinear, GpuLora, GpuLoraGradients, GpuWeight};
use brightrun_kernels::nf4::{BLOCK, GpuNf4, GpuValues, NESTED_BLOCK, Reading};

use super::super::ceilings::square;
use super::{Cost, Draw, Op, Shapes, half};

/// Rank of an adapter.
const RANK: usize = 16;
/// Size of random weights.
const LIMIT: f32 = 0.05;

pub(super) fn ops(shapes: &Shapes) -> Vec<Op> {
    let mut ops = Vec::new();
    for &side in &shapes.sides {
        ops.extend(dense(side));
    }
    ops.extend(nf4(shapes));
    for &rows in &shapes.linear_rows {
        for reading in [Reading::Copied, Reading::Fused] {
            ops.extend(linear(shapes, rows, reading, 0));
            ops.extend(linear(shapes, rows, reading, RANK));
        }
    }
    ops
}

fn dense(side: usize) -> Vec<Op> {
    const ABOUT: &str = "a square product of bf16";
    let cost = Cost::new(2 * side.pow(3), half(3 * side * side));
    let forms = [
        (Form::RowsByRows, "rows by rows"),
        (Form::RowsByColumns, "rows by columns"),
        (Form::ColumnsByColumns, "columns by columns"),
    ];
    let mut ops: Vec<Op> = forms
        .into_iter()
        .map(|(form, name)| {
            Op::new(format!("product:{side} {name}"), ABOUT, cost, move |draw| {
                square(draw.gpu, form, side, draw.key(), |product, out| product.by_kernel(out))
            })
        })
        .collect();
    // By the vendor's library, where the machine has it.
    ops.push(Op::new(format!("product:{side} rows by rows by default"), ABOUT, cost, move |draw| {
        square(draw.gpu, Form::RowsByRows, side, draw.key(), |product, out| product.run(out))
    }));
    ops
}

/// Bytes of so many values in NF4.
pub(super) fn nf4_bytes(values: usize, double: bool) -> usize {
    let blocks = values.div_ceil(BLOCK);
    values / 2 + if double { blocks + 4 * blocks.div_ceil(NESTED_BLOCK) } else { 4 * blocks }
}

fn nf4(shapes: &Shapes) -> Vec<Op> {
    const ABOUT: &str = "a weight to NF4 and back";
    let model = &shapes.models[0];
    // As many as those of 64 experts.
    let (rows, columns) = (192 * model.width.min(model.hidden), model.hidden);
    let count = rows * columns;
    let mut ops = Vec::new();
    for (double, name) in [(false, "plain"), (true, "double")] {
        let cost = Cost::bytes(nf4_bytes(count, double) + half(count));
        ops.push(Op::new(format!("nf4:decode {name}"), ABOUT, cost, move |draw| {
            let matrix = GpuNf4::random(draw.gpu, rows, columns, double, LIMIT, draw.key())?;
            let mut out = draw.room(count)?;
            Ok(Box::new(move || matrix.decode(&mut out)))
        }));
        ops.push(Op::new(format!("nf4:quantise {name}"), ABOUT, cost, move |draw| {
            let (values, mut damaged) = (draw.bf16_within(LIMIT, count)?, draw.gpu.zeros(1)?);
            Ok(Box::new(move || {
                GpuNf4::quantize(GpuValues::Bf16(&values), rows, columns, double, &mut damaged).map(drop)
            }))
        }));
    }
    ops
}

/// The input projection of linear attention, the largest dense weight of a layer: both directions.
fn linear(shapes: &Shapes, rows: usize, reading: Reading, rank: usize) -> [Op; 2] {
    const ABOUT: &str = "a linear layer with a weight in NF4, doubly quantised";
    let model = &shapes.models[0];
    let inputs = model.hidden;
    let outputs = model.delta_net.map_or(inputs, |groups| groups.projection_width());
    let way = if reading == Reading::Fused { "fused" } else { "copied" };
    let name = |direction: &str| {
        let lora = if rank > 0 { format!(" r{rank}") } else { String::new() };
        format!("linear:{rows} rows {way}{lora} {direction}")
    };
    let (product, update) = (2 * rows * inputs * outputs, 2 * rows * rank * (inputs + outputs));
    let weights = nf4_bytes(inputs * outputs, true) + half(rank * (inputs + outputs));
    let moved = weights + half(rows * (inputs + outputs));
    // Gradients of A and B need the argument as well.
    let (more, added) = if rank > 0 { (half(rows * inputs), 8 * rank * (inputs + outputs)) } else { (0, 0) };
    let layer = move |draw: &Draw<'_>| Layer::new(draw, inputs, outputs, rank);
    [
        Op::new(name("forward"), ABOUT, Cost::new(product + update, moved), move |draw| {
            let (layer, x, mut y) = (layer(draw)?, draw.bf16(rows * inputs)?, draw.room(rows * outputs)?);
            Ok(Box::new(move || {
                let (linear, lora) = (&layer.linear, layer.lora.as_ref());
                linear.forward_by(reading, &x, rows, lora, Out::Bf16(&mut y)).map(drop)
            }))
        }),
        Op::new(name("backward"), ABOUT, Cost::new(product + 2 * update, moved + more + added), move |draw| {
            let (mut layer, x, dy) = (layer(draw)?, draw.bf16(rows * inputs)?, draw.bf16(rows * outputs)?);
            let (mut y, mut dx) = (draw.room(rows * outputs)?, draw.room(rows * inputs)?);
            let down = layer.linear.forward_by(reading, &x, rows, layer.lora.as_ref(), Out::Bf16(&mut y))?;
            drop(y);
            Ok(Box::new(move || {
                let lora = match (&layer.lora, &down, &mut layer.gradients) {
                    (Some(lora), Some(down), Some(gradients)) => Some((lora, down, gradients)),
                    _ => None,
                };
                let dx = Some((&mut dx, Accumulate::Overwrite));
                layer.linear.backward_by(reading, &x, &dy, rows, lora, dx)
            }))
        }),
    ]
}

struct Layer {
    linear: GpuLinear,
    lora: Option<GpuLora>,
    gradients: Option<GpuLoraGradients>,
}

// === impl Layer ===

impl Layer {
    fn new(draw: &Draw<'_>, inputs: usize, outputs: usize, rank: usize) -> Result<Self> {
        let weight = GpuWeight::Nf4(GpuNf4::random(draw.gpu, outputs, inputs, true, LIMIT, draw.key())?);
        let linear = GpuLinear { weight, bias: None };
        if rank == 0 {
            return Ok(Self { linear, lora: None, gradients: None });
        }
        let (a, b) = (draw.bf16_within(LIMIT, rank * inputs)?, draw.bf16_within(LIMIT, outputs * rank)?);
        let lora = Some(GpuLora { a, b, rank, scale: 2.0, dropout: None });
        let gradients =
            Some(GpuLoraGradients { a: draw.gpu.zeros(rank * inputs)?, b: draw.gpu.zeros(outputs * rank)? });
        Ok(Self { linear, lora, gradients })
    }
}
