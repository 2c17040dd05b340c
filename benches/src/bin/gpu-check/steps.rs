//! Whole training steps at the sizes of real models, with weights made on the GPU: how many tokens a second, of which share of
//! what the card can do, in how much memory, and which kernels take the time.

use std::time::Instant;

use anyhow::Result;
use brightrun_kernels::Documents;
use brightrun_kernels::dropout::splitmix;
use brightrun_kernels::gpu::Gpu;
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::batch::MicroBatch;
use brightrun_trainer::clock::Still;
use brightrun_trainer::config::ModelConfig;
use brightrun_trainer::gpu::{GpuModel, GpuOptimizer, Offload, Source};
use brightrun_trainer::lora::{LoraOptions, LoraPlan, TargetSet, plan};
use brightrun_trainer::optim::{OptimizerKind, OptimizerOptions};
use brightrun_trainer::plan::{Again, operations_of_token};
use brightrun_trainer::step::{Position, Recompute, StepOptions};
use brightrun_trainer::weights::BasePrecision;
use serde_json::{Value, json};

use super::Part;
use super::report::Report;

const QWEN3_NEXT_80B: &str = include_str!("../../../../worker/tests/fixtures/qwen3_next_80b/config.json");
const QWEN3_30B: &str = r#"{
    "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "hidden_act": "silu",
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000, "attention_bias": false,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 768, "num_experts": 128,
    "num_experts_per_tok": 8, "norm_topk_prob": true, "tie_word_embeddings": false, "torch_dtype": "bfloat16"
}"#;

/// Tokens of a document: those of a row are cut into such.
const DOCUMENT: usize = 2048;
/// Steps that are measured, after one that is not.
const STEPS: u64 = 3;
/// Kernels that are told by name.
const TOLD: usize = 12;

/// A model, and how many tokens a micro-batch has.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    config: &'static str,
    tokens: &'static [usize],
    skewed: bool,
    offload: Offload,
    /// What it may take of a card, in bytes: cards of 80 and of 32 GB are meant, with room for the driver.
    memory: u64,
}

const NEXT: Case = Case {
    name: "80B",
    config: QWEN3_NEXT_80B,
    tokens: &[4096, 8192, 16384],
    skewed: false,
    offload: Offload::Nothing,
    memory: 75_000_000_000,
};
const CASES: [Case; 4] = [
    NEXT,
    // Beside the last one of those: the same numbers at the same rate, if the copies are hidden.
    Case { name: "80B offload", tokens: &[16384], offload: Offload::LayerInputs, ..NEXT },
    Case { name: "80B skewed", tokens: &[8192], skewed: true, ..NEXT },
    Case { name: "30B", config: QWEN3_30B, tokens: &[4096, 16384], memory: 30_000_000_000, ..NEXT },
];

pub(super) fn parts(small: bool) -> Vec<Part> {
    let part = |case: Case| Part {
        name: format!("step:{}", case.name),
        about: "whole training steps, rank 8 everywhere, routed experts too",
        run: Box::new(move |gpu, seed, report| run(case, small, gpu, seed, report)),
    };
    CASES.into_iter().map(part).collect()
}

/// The configuration; where it is to be small, of few narrow layers.
fn config(case: Case, small: bool) -> Result<ModelConfig> {
    let mut config: Value = serde_json::from_str(case.config)?;
    if small {
        let sizes = [
            ("num_hidden_layers", 4),
            ("hidden_size", 64),
            ("vocab_size", 128),
            ("num_experts", 8),
            ("num_experts_per_tok", 2),
            ("moe_intermediate_size", 32),
            ("shared_expert_intermediate_size", 32),
            ("num_attention_heads", 2),
            ("num_key_value_heads", 1),
            ("head_dim", 32),
            ("linear_key_head_dim", 16),
            ("linear_value_head_dim", 16),
            ("linear_num_key_heads", 1),
            ("linear_num_value_heads", 2),
        ];
        for (name, size) in sizes {
            if let Some(value) = config.get_mut(name) {
                *value = size.into();
            }
        }
    }
    Ok(ModelConfig::parse(&config.to_string(), case.name.as_ref())?)
}

fn lora(config: &ModelConfig) -> Result<LoraPlan> {
    let options = LoraOptions {
        rank: 8,
        alpha: 16.0,
        dropout: 0.0,
        use_rslora: false,
        targets: TargetSet::All,
        expert_rank: Some(8),
    };
    Ok(plan(config, &options)?)
}

fn batch(config: &ModelConfig, tokens: usize, seed: u64) -> Result<MicroBatch> {
    let word = |place: usize| (splitmix(seed ^ splitmix(place as u64)) % config.vocab_size as u64) as u32;
    let ids: Vec<u32> = (0..=tokens).map(word).collect();
    let lengths: Vec<usize> =
        (0..tokens.div_ceil(DOCUMENT)).map(|index| DOCUMENT.min(tokens - index * DOCUMENT)).collect();
    let targets = ids[1..].iter().copied().map(Some).collect();
    Ok(MicroBatch { tokens: ids[..tokens].to_vec(), targets, documents: Documents::from_lengths(&lengths)? })
}

fn run(case: Case, small: bool, gpu: &Gpu, seed: u64, report: &mut Report) -> Result<()> {
    let config = config(case, small)?;
    let plan = lora(&config)?;
    let before = gpu.usage().now;
    let begin = Instant::now();
    let adapters = Adapters::new(&config, &plan, seed)?;
    let precision = BasePrecision::nf4();
    let source = Source::Random { seed, skewed: case.skewed };
    let mut model = GpuModel::load(gpu, &config, source, &precision, &adapters)?;
    model.set_offload(case.offload);
    gpu.synchronize()?;
    let loaded = gpu.usage().now - before;
    let options = OptimizerOptions { kind: OptimizerKind::AdamW8bit, ..OptimizerOptions::default() };
    let mut optimizer = GpuOptimizer::new(gpu, model.adapters(), &options, 1000)?;
    let moments = gpu.usage().now - before - loaded;
    println!(
        "{}: base and adapters {:.1} GB, {:.2} B trained, moments {:.1} GB, made in {:.0} s",
        case.name,
        loaded as f64 / 1e9,
        adapters.parameter_count() as f64 / 1e9,
        moments as f64 / 1e9,
        begin.elapsed().as_secs_f64()
    );
    let sizes: &[usize] = if small { &[100] } else { case.tokens };
    for &tokens in sizes {
        let measured = step(&config, &plan, &mut model, &mut optimizer, gpu, tokens, seed)?;
        println!("{} {measured}", case.name);
        if !small {
            report.memory(&format!("{} {tokens} tokens", case.name), measured.peak, case.memory);
        }
        report.note(&format!("step {} {tokens}", case.name), measured.json(loaded, moments));
    }
    Ok(())
}

/// What was measured of a step.
struct Measured {
    tokens: usize,
    seconds: Vec<f64>,
    loss: f64,
    operations: f64,
    peak: u64,
    pinned: u64,
    kernels: Vec<(&'static str, u64, f64)>,
}

fn step(
    config: &ModelConfig,
    plan: &LoraPlan,
    model: &mut GpuModel,
    optimizer: &mut GpuOptimizer,
    gpu: &Gpu,
    tokens: usize,
    seed: u64,
) -> Result<Measured> {
    let batch = batch(config, tokens, seed)?;
    let options =
        StepOptions { recompute: Recompute::Layers, dropout: 0.0, seed, neftune_alpha: 0.0, aux_coefficient: None };
    let mut take = |step: u64| -> Result<f64> {
        let position = Position { step, micro_batch: 0, micro_batches: 1 };
        let report = model.accumulate(&batch, &options, position, tokens, &Still)?;
        optimizer.step(model.adapters_mut(), 1e-4)?;
        model.refresh()?;
        gpu.synchronize()?;
        Ok(report.loss_sum / tokens as f64)
    };
    gpu.forget_peak();
    let mut loss = take(0)?;
    let mut seconds = Vec::new();
    for number in 1..=STEPS {
        let begin = Instant::now();
        loss = take(number)?;
        seconds.push(begin.elapsed().as_secs_f64());
    }
    let (peak, pinned) = (gpu.usage().peak, gpu.usage().pinned);
    // By itself, since each kernel waits for the one before then.
    let mut taken = Ok(());
    let profile = gpu.profiled(|| {
        taken = take(STEPS + 1).map(|_| ());
        Ok(())
    })?;
    taken?;
    let mut kernels: Vec<_> = profile.iter().map(|(name, time)| (*name, time.launches, time.seconds)).collect();
    kernels.sort_by(|one, other| other.2.total_cmp(&one.2));
    seconds.sort_by(f64::total_cmp);
    let operations = operations_of_token(config, plan, Again::LayersButDown, DOCUMENT.min(tokens)).total;
    anyhow::ensure!(loss.is_finite(), "the loss is {loss}");
    Ok(Measured { tokens, seconds, loss, operations, peak, pinned, kernels })
}

// === impl Measured ===

impl Measured {
    fn median(&self) -> f64 {
        self.seconds[self.seconds.len() / 2]
    }

    fn json(&self, loaded: u64, moments: u64) -> Value {
        let kernels: Vec<Value> = self
            .kernels
            .iter()
            .map(|(name, launches, seconds)| json!({"kernel": name, "launches": launches, "seconds": seconds}))
            .collect();
        json!({
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens as f64 / self.median(),
            "operations_per_second": self.tokens as f64 / self.median() * self.operations,
            "loss": self.loss,
            "base_and_adapters_bytes": loaded,
            "moments_bytes": moments,
            "peak_bytes": self.peak,
            "pinned_bytes": self.pinned,
            "kernels": kernels,
        })
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = self.tokens as f64 / self.median();
        writeln!(
            f,
            "{} tokens: {:.0} tokens/s ({:.3} s, {:.3} to {:.3}), {:.0} TFLOP/s, peak {:.1} GB, pinned {:.1} GB, loss {:.2}",
            self.tokens,
            rate,
            self.median(),
            self.seconds[0],
            self.seconds[self.seconds.len() - 1],
            rate * self.operations / 1e12,
            self.peak as f64 / 1e9,
            self.pinned as f64 / 1e9,
            self.loss
        )?;
        let all: f64 = self.kernels.iter().map(|(_, _, seconds)| seconds).sum();
        let launches: u64 = self.kernels.iter().map(|(_, launches, _)| launches).sum();
        writeln!(f, "  {launches} launches, {all:.3} s one by one; the longest:")?;
        for (name, launches, seconds) in self.kernels.iter().take(TOLD) {
            writeln!(f, "  {name:<36} {launches:>6} {:>9.2} ms {:>5.1} %", seconds * 1e3, 100.0 * seconds / all)?;
        }
        Ok(())
    }
}
