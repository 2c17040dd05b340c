//! The router, and the routed experts with weights in NF4, doubly quantised.

use brightrun_kernels::Result;
use brightrun_kernels::gpu::{Buffer, Gpu};
use brightrun_kernels::lora_linear::gpu::{GpuLinear, GpuWeight};
use brightrun_kernels::moe::{
    Cores, ExpertLoraLayout, ExpertsCall, GpuExpertLora, GpuExperts, GpuRouting, Gradients, Kept,
};
use brightrun_kernels::nf4::Reading;
use half::bf16;

use super::models::Model;
use super::products::nf4_bytes;
use super::{Cost, Draw, Op, Shapes, each, half};

/// Rank of every expert's adapters.
const RANK: usize = 8;
/// Size of random weights.
const LIMIT: f32 = 0.05;
/// Where routing is skewed, every sixteenth expert's logit is raised by 1.5 standard deviations: then these have 9 times the
/// mean rows of Qwen3-Next's experts and 6 times that of Qwen3-30B's, the others about half of it.
const HOT: usize = 16;
const RAISED: f32 = 1.5;

/// Who gets the rows.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Load {
    Uniform,
    Skewed,
}

/// A layer's experts at some load.
#[derive(Debug, Clone, Copy)]
struct Case {
    model: Model,
    tokens: usize,
    load: Load,
    rank: usize,
    reading: Reading,
    cores: Cores,
}

/// What all calls of a case need.
struct Layer {
    experts: GpuExperts,
    lora: Option<GpuExpertLora>,
    routing: GpuRouting,
    x: Buffer<bf16>,
}

pub(super) fn ops(shapes: &Shapes) -> Vec<Op> {
    let mut ops = Vec::new();
    each(shapes, |model, tokens| ops.extend(router(*model, tokens)));
    for model in &shapes.models {
        for &rows in &shapes.expert_rows {
            for load in [Load::Uniform, Load::Skewed] {
                for rank in [0, RANK] {
                    let ways =
                        [Reading::Copied, Reading::Fused].map(|reading| Cores::ALL.map(|cores| (reading, cores)));
                    for (reading, cores) in ways.into_iter().flatten() {
                        let tokens = rows * model.experts / model.per_token;
                        ops.extend(Case { model: *model, tokens, load, rank, reading, cores }.ops(rows));
                    }
                }
            }
        }
    }
    ops
}

/// Logits as a router makes them, of standard deviation 1.
fn logits(draw: &Draw<'_>, model: &Model, tokens: usize, load: Load, x: &Buffer<bf16>) -> Result<Buffer<f32>> {
    let (experts, hidden) = (model.experts, model.hidden);
    // A product of two numbers in -1..1 has a variance of 1/9.
    let weight = draw.bf16_within(3.0 / (hidden as f32).sqrt(), experts * hidden)?;
    let raised = |expert: usize| if load == Load::Skewed && expert % HOT == 1 { RAISED } else { 0.0 };
    let bias = draw.gpu.of(&(0..experts).map(raised).collect::<Vec<_>>())?;
    let linear = GpuLinear { weight: GpuWeight::bf16(weight, experts, hidden)?, bias: Some(bias) };
    let mut logits = draw.gpu.empty(tokens * experts)?;
    linear.forward_wide(x, tokens, None, &mut logits)?;
    Ok(logits)
}

fn router(model: Model, tokens: usize) -> [Op; 2] {
    const ABOUT: &str = "the choice of experts, and the order of their rows";
    let (count, slots) = (tokens * model.experts, tokens * model.per_token);
    let name = |direction: &str| format!("router:{} {tokens} tokens {direction}", model.name);
    let given = move |draw: &Draw<'_>| logits(draw, &model, tokens, Load::Uniform, &draw.bf16(tokens * model.hidden)?);
    [
        // Logits; of each choice its expert, weight, slot and row.
        Op::new(name("forward"), ABOUT, Cost::bytes(4 * count + 16 * slots), move |draw| {
            let logits = given(draw)?;
            Ok(Box::new(move || GpuRouting::from_logits(&logits, model.experts, model.per_token, true).map(drop)))
        }),
        // Logits and their gradients; of each choice its expert and the gradient of its weight.
        Op::new(name("backward"), ABOUT, Cost::bytes(4 * count + half(count) + 8 * slots), move |draw| {
            let (logits, d_weights) = (given(draw)?, draw.floats(1.0, slots)?);
            let routing = GpuRouting::from_logits(&logits, model.experts, model.per_token, true)?;
            let mut d_logits = draw.room(count)?;
            Ok(Box::new(move || routing.backward(&logits, &d_weights, None, None, Some(&mut d_logits))))
        }),
    ]
}

// === impl Case ===

impl Case {
    fn ops(self, rows: usize) -> [Op; 2] {
        const ABOUT: &str = "the routed experts of a layer";
        let name = |direction: &str| {
            let load = if self.load == Load::Skewed { "skewed" } else { "uniform" };
            let lora = if self.rank > 0 { format!("r{}", self.rank) } else { "frozen".to_owned() };
            let way = if self.reading == Reading::Fused { "fused" } else { "copied" };
            let cores = if self.cores == Cores::Warpgroup { "wgmma" } else { "mma" };
            format!("experts:{} {rows} rows {load} {lora} {way} {cores} {direction}", self.model.name)
        };
        let possible = match self.cores {
            Cores::Warp => |gpu: &Gpu| Cores::Warp.are_on(gpu),
            Cores::Warpgroup => |gpu: &Gpu| Cores::Warpgroup.are_on(gpu),
        };
        let [forward, backward] = self.costs();
        [
            Op::new(name("forward"), ABOUT, forward, move |draw| {
                let layer = self.layer(draw)?;
                let mut out = draw.room(layer.x.len())?;
                Ok(Box::new(move || layer.forward(&mut out).map(drop)))
            }),
            Op::new(name("backward"), ABOUT, backward, move |draw| {
                let layer = self.layer(draw)?;
                let mut d_x = draw.room(layer.x.len())?;
                let kept = layer.forward(&mut d_x)?;
                let d_out = draw.bf16(layer.x.len())?;
                let mut d_weights = draw.gpu.empty(layer.routing.slots().len())?;
                let mut d_lora = layer.lora.as_ref().map(|lora| draw.gpu.zeros(lora.len())).transpose()?;
                Ok(Box::new(move || {
                    let (x, weights) = (Some((&mut d_x, false)), &mut d_weights);
                    layer.backward(&kept, &d_out, Gradients { x, weights, lora: d_lora.as_mut() })
                }))
            }),
        ]
        .map(|op| op.only_where(possible))
    }

    /// Forward: tokens, weights, gate and up for the way back, and sums of tokens. Backward: these and the gradients.
    fn costs(&self) -> [Cost; 2] {
        let Model { hidden, width, experts, .. } = self.model;
        let rows = self.tokens * self.model.per_token;
        let products = 6 * rows * hidden * width;
        let updates = 6 * rows * self.rank * (hidden + width);
        let adapters = 3 * experts * self.rank * (hidden + width);
        let weights = nf4_bytes(3 * experts * hidden * width, true) + half(adapters);
        let (tokens, kept) = (half(self.tokens * hidden), half(2 * rows * width));
        let (mut back, mut learned) = (weights + 2 * tokens + kept, 0);
        if self.rank > 0 {
            // The tokens themselves; gradients are added to what is there.
            (back, learned) = (back + tokens + 8 * adapters, 2 * updates);
        }
        [Cost::new(products + updates, weights + 2 * tokens + kept), Cost::new(products + learned, back)]
    }

    fn layer(&self, draw: &Draw<'_>) -> Result<Layer> {
        let Model { hidden, width, experts, per_token, .. } = self.model;
        let x = draw.bf16(self.tokens * hidden)?;
        let logits = logits(draw, &self.model, self.tokens, self.load, &x)?;
        let routing = GpuRouting::from_logits(&logits, experts, per_token, true)?;
        let mut frozen = GpuExperts::random(draw.gpu, [experts, hidden, width], Some(true), LIMIT, draw.key())?;
        frozen.read_by(self.reading);
        frozen.multiply_by(self.cores)?;
        let mut lora = None;
        if self.rank > 0 {
            let layout = ExpertLoraLayout::new(hidden, width, &vec![[Some((self.rank, 2.0)); 3]; experts]);
            let parameter = draw.floats(LIMIT, layout.len())?;
            let adapters: &mut GpuExpertLora = lora.insert(GpuExpertLora::new(draw.gpu, &layout, hidden, width)?);
            adapters.refresh(&parameter)?;
        }
        Ok(Layer { experts: frozen, lora, routing, x })
    }
}

// === impl Layer ===

impl Layer {
    fn call(&self) -> ExpertsCall<'_> {
        ExpertsCall { experts: &self.experts, routing: &self.routing, lora: self.lora.as_ref(), dropout: None }
    }

    fn forward(&self, out: &mut Buffer<bf16>) -> Result<Kept> {
        self.call().forward(&self.x, out, false)
    }

    fn backward(&self, kept: &Kept, d_out: &Buffer<bf16>, gradients: Gradients<'_>) -> Result<()> {
        self.call().backward(&self.x, kept, d_out, gradients)
    }
}
