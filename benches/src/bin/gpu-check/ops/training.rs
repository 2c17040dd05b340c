//! Head and loss, and what happens once a step: the optimiser and the norm of all gradients.

use brightrun_kernels::Result;
use brightrun_kernels::adamw::{GpuAdamW, GpuParameter, Gradients, Hyper, MomentKind};
use brightrun_kernels::cross_entropy::{GPU_CHUNK_ROWS, GpuHead, GpuLossGradients, GpuLosses, GpuTargets, gpu_fused};
use brightrun_kernels::gpu::Buffer;
use brightrun_kernels::grad_norm::GpuGradientNorm;

use super::{Cost, Draw, Op, Shapes, half};

/// Tensors that the values lie in.
const TENSORS: usize = 400;
/// More steps than are measured.
const STEPS: u64 = 1 << 20;
const HYPER: Hyper = Hyper { learning_rate: 1e-4, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 };

pub(super) fn ops(shapes: &Shapes) -> Vec<Op> {
    let mut ops = vec![loss(shapes, false), loss(shapes, true)];
    // Values and moments are read and written, gradients read, copies for products written.
    for (kind, name, moments) in [(MomentKind::Full, "32-bit", 16), (MomentKind::Blockwise, "8-bit", 4)] {
        ops.push(optimiser(shapes.parameters, kind, name, 14 + moments));
    }
    ops.push(norm(shapes.parameters));
    ops
}

fn loss(shapes: &Shapes, with_gradient: bool) -> Op {
    const ABOUT: &str = "head and cross entropy";
    let model = &shapes.models[0];
    let (rows, width, vocabulary) = (shapes.loss_rows, model.hidden, model.vocabulary);
    let product = 2 * rows * width * vocabulary;
    let (weight, hidden) = (half(vocabulary * width), half(rows * width));
    let name = format!("cross entropy:{rows} rows {}", if with_gradient { "with gradient" } else { "loss alone" });
    // The gradient is one more product; the head may be read once for both.
    let times = if with_gradient { 2 } else { 1 };
    Op::new(name, ABOUT, Cost::new(times * product, weight + times * hidden + 8 * rows), move |draw| {
        let weight = draw.bf16_within(0.05, vocabulary * width)?;
        let x = draw.bf16(rows * width)?;
        let word = |value: &f32| Some(((value.abs() * vocabulary as f32) as u32).min(vocabulary as u32 - 1));
        let targets: Vec<_> = draw.vector(rows).iter().map(word).collect();
        let targets = GpuTargets::new(draw.gpu, &targets, vocabulary)?;
        let (mut sum, mut each) = (draw.gpu.zeros::<u64>(1)?, draw.gpu.empty::<f32>(rows)?);
        let mut d_x = if with_gradient { Some(draw.room(rows * width)?) } else { None };
        Ok(Box::new(move || {
            let head = GpuHead { weight: &weight, vocabulary, width, lora: None };
            let losses = GpuLosses { sum: &mut sum, each: &mut each };
            let scale = 1.0 / rows as f32;
            let gradients = d_x.as_mut().map(|hidden| GpuLossGradients { scale, hidden, lora: None });
            gpu_fused(&head, &x, &targets, GPU_CHUNK_ROWS, losses, gradients)
        }))
    })
}

/// Random numbers in tensors of one size, but for the last one.
fn tensors(draw: &Draw<'_>, count: usize) -> Result<Vec<Buffer<f32>>> {
    let size = count.div_ceil(TENSORS);
    let all = draw.floats(0.05, count)?;
    (0..count).step_by(size).map(|from| all.part(from..count.min(from + size))).collect()
}

fn optimiser(count: usize, kind: MomentKind, name: &str, bytes: usize) -> Op {
    const ABOUT: &str = "a step of AdamW over many tensors";
    Op::new(format!("adamw:{name} {count} values"), ABOUT, Cost::bytes(bytes * count), move |draw| {
        let (values, gradients) = (tensors(draw, count)?, tensors(draw, count)?);
        let parameter = |(values, gradient): (Buffer<f32>, Buffer<f32>)| -> Result<_> {
            let copy = Some(draw.room(values.len())?);
            Ok(GpuParameter { values, gradient, copy, rate: 1.0, hits: None })
        };
        let parameters = values.into_iter().zip(gradients).map(parameter).collect::<Result<Vec<_>>>()?;
        let mut adamw = GpuAdamW::new(draw.gpu, kind, &HYPER, parameters, STEPS)?;
        let factor = draw.gpu.of(&[0.5f32])?;
        Ok(Box::new(move || adamw.step(&factor, Gradients::Keep)))
    })
}

fn norm(count: usize) -> Op {
    const ABOUT: &str = "the norm of all gradients";
    Op::new(format!("grad norm:{count} values"), ABOUT, Cost::bytes(4 * count), move |draw| {
        let mut norm = GpuGradientNorm::new(draw.gpu, tensors(draw, count)?, Some(1.0))?;
        Ok(Box::new(move || norm.measure()))
    })
}
