//! Small random models and batches: a real checkpoint on disk of any family, as the product loads one.

use std::path::Path;

use anyhow::{Context, Result};
use brightrun_kernels::dropout::splitmix;
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::batch::{IGNORED, Sequence};
use brightrun_trainer::config::{Family, ModelConfig};
use brightrun_trainer::lora::{self, Adapter, AdapterTensors, LoraOptions, LoraPlan, Matrix, TargetSet};
use brightrun_trainer::model::Model;
use brightrun_trainer::weights::{BasePrecision, Checkpoint, TensorKind, TensorSpec, expected_tensors};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

/// Which token mixers a toy of Qwen3-Next has; the other families know attention only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mixers {
    /// DeltaNet, and attention in every second layer.
    Both,
    /// DeltaNet only.
    DeltaNet,
    /// Attention only.
    Attention,
}

/// The sizes of a toy.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Which architecture.
    pub family: Family,
    /// Which mixers.
    pub mixers: Mixers,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream; a multiple of 16.
    pub hidden: usize,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Experts per layer, of which each token meets two.
    pub experts: usize,
    /// Width of an expert.
    pub expert_width: usize,
}

/// A checkpoint on disk, opened.
#[derive(Debug)]
pub struct Toy {
    /// What it is.
    pub config: ModelConfig,
    /// Its weights.
    pub checkpoint: Checkpoint,
}

/// Deterministic random numbers, the same on every machine.
#[derive(Debug, Clone)]
pub struct Random(u64);

// === impl Random ===

impl Random {
    /// A stream of its own for every seed.
    pub fn new(seed: u64) -> Self {
        Self(splitmix(seed))
    }

    /// Even in `0..1`.
    pub fn unit(&mut self) -> f64 {
        self.0 = splitmix(self.0);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Even in `-bound..bound`.
    pub fn even(&mut self, bound: f64) -> f64 {
        bound * (2.0 * self.unit() - 1.0)
    }

    /// Even in `0..end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.unit() * end as f64) as usize
    }
}

// === impl Shape ===

impl Shape {
    /// Two layers of width 32 with six experts.
    pub fn tiny(family: Family) -> Self {
        let mixers = if family == Family::Qwen3Next { Mixers::Both } else { Mixers::Attention };
        Self { family, mixers, layers: 2, hidden: 32, vocabulary: 96, experts: 6, expert_width: 16 }
    }

    fn config(&self) -> Value {
        let head = self.hidden / 4;
        let mut config = json!({
            "model_type": self.family.model_type(),
            "hidden_size": self.hidden,
            "intermediate_size": 2 * self.hidden,
            "max_position_embeddings": 4096,
            "moe_intermediate_size": self.expert_width,
            "norm_topk_prob": self.family != Family::Qwen2Moe,
            "num_attention_heads": 4,
            "num_experts": self.experts,
            "num_experts_per_tok": 2,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10_000.0,
            "shared_expert_intermediate_size": self.expert_width,
            "vocab_size": self.vocabulary,
        });
        if self.family != Family::Qwen2Moe {
            config["head_dim"] = json!(head);
        }
        if self.family == Family::Qwen3Next {
            let mixer = |layer: usize| match (self.mixers, layer % 2) {
                (Mixers::DeltaNet, _) | (Mixers::Both, 0) => "linear_attention",
                _ => "full_attention",
            };
            config["layer_types"] = (0..self.layers).map(mixer).collect();
            config["linear_conv_kernel_dim"] = json!(4);
            config["linear_key_head_dim"] = json!(head);
            config["linear_value_head_dim"] = json!(head);
            config["linear_num_key_heads"] = json!(2);
            config["linear_num_value_heads"] = json!(4);
            config["partial_rotary_factor"] = json!(0.5);
        }
        config
    }
}

/// Values that keep every layer's output of the size of its input, so that nothing vanishes or saturates.
fn values(config: &ModelConfig, tensor: &TensorSpec, random: &mut Random) -> Vec<f32> {
    let count = tensor.shape.iter().product::<usize>();
    let name = tensor.name.as_str();
    let (centre, bound) = match tensor.kind {
        TensorKind::Linear => (0.0, 1.5 / (tensor.shape[1] as f64).sqrt()),
        TensorKind::Other if name.ends_with("embed_tokens.weight") => (0.0, 1.0),
        // exp(A_log) from 0.05 to 2.7: heads that forget at once, and heads that remember across a boundary.
        TensorKind::Other if name.ends_with("A_log") => (-1.0, 2.0),
        TensorKind::Other if name.ends_with("conv1d.weight") => (0.0, 0.8),
        TensorKind::Other if name.ends_with("dt_bias") || name.ends_with("bias") => (0.0, 0.3),
        // Norms; those of Qwen3-Next are stored less one, except DeltaNet's own.
        TensorKind::Other if config.family == Family::Qwen3Next && !name.ends_with("linear_attn.norm.weight") => {
            (0.0, 0.2)
        }
        TensorKind::Other => (1.0, 0.2),
    };
    (0..count).map(|_| (centre + random.even(bound)) as f32).collect()
}

// === impl Toy ===

impl Toy {
    /// Writes a checkpoint into `dir` and opens it.
    pub fn write(dir: &Path, shape: &Shape, seed: u64) -> Result<Self> {
        Self::write_nudged(dir, shape, seed, 0.0, 0)
    }

    /// The same with embeddings that are off by up to this share of themselves: how much everything else changes then is how
    /// well it is determined at all. `nudge` draws what they are off by.
    pub fn write_nudged(dir: &Path, shape: &Shape, seed: u64, share: f64, nudge: u64) -> Result<Self> {
        let text = format!("{:#}\n", shape.config());
        std::fs::write(dir.join("config.json"), text).context("cannot write the toy's config.json")?;
        let config = ModelConfig::read(dir)?;
        let (mut random, mut nudges) = (Random::new(seed), Random::new(!nudge));
        let tensors: Vec<(TensorSpec, Vec<u8>)> = expected_tensors(&config)
            .into_iter()
            .map(|tensor| {
                let mut values = values(&config, &tensor, &mut random);
                if tensor.name.ends_with("embed_tokens.weight") {
                    values.iter_mut().for_each(|value| *value *= (1.0 + nudges.even(share)) as f32);
                }
                (tensor, values.into_iter().flat_map(f32::to_le_bytes).collect())
            })
            .collect();
        let views = tensors
            .iter()
            .map(|(tensor, bytes)| Ok((&tensor.name, TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>>>()?;
        safetensors::serialize_to_file(views, None, &dir.join("model.safetensors"))?;
        let checkpoint = Checkpoint::open(dir, &config)?;
        Ok(Self { config, checkpoint })
    }

    /// The adapted linears for a set of targets, with rank 4 (routed experts: 2) and a scale of 2.
    pub fn plan(&self, targets: TargetSet) -> Result<LoraPlan> {
        let options =
            LoraOptions { rank: 4, alpha: 8.0, dropout: 0.0, use_rslora: false, targets, expert_rank: Some(2) };
        Ok(lora::plan(&self.config, &options)?)
    }

    /// Adapters whose `A` and `B` are both random, so that no gradient is zero by construction.
    pub fn adapters(&self, plan: &LoraPlan, seed: u64) -> Result<Adapters> {
        let mut random = Random::new(seed);
        let mut matrix = |rows: usize, columns: usize, bound: f64| Matrix {
            rows,
            columns,
            values: (0..rows * columns).map(|_| random.even(bound) as f32).collect(),
        };
        let tensors: AdapterTensors = plan
            .modules
            .iter()
            .map(|module| {
                let a = matrix(module.rank, module.inputs, (module.inputs as f64).powf(-0.5));
                let b = matrix(module.outputs, module.rank, 0.3);
                (module.path.clone(), Adapter { a, b })
            })
            .collect();
        Ok(Adapters::from_tensors(&self.config, plan, &tensors)?)
    }

    /// The model in full precision with these adapters.
    pub fn model(&self, adapters: &Adapters) -> Result<Model> {
        Ok(Model::load(&self.config, &self.checkpoint, &BasePrecision::Full, adapters)?)
    }

    /// The names of all linears of the model, as an explicit list of targets: router, gates and head included.
    pub fn every_linear(&self) -> TargetSet {
        let linears = expected_tensors(&self.config).into_iter().filter(|tensor| tensor.kind == TensorKind::Linear);
        TargetSet::Named(linears.filter_map(|tensor| tensor.name.strip_suffix(".weight").map(str::to_owned)).collect())
    }

    /// Random documents of these lengths, in which about `trained` of the labels are trained on.
    pub fn sequences(&self, lengths: &[usize], trained: f64, seed: u64) -> Vec<Sequence> {
        let mut random = Random::new(seed);
        lengths
            .iter()
            .map(|&length| {
                let tokens: Vec<u32> = (0..length).map(|_| random.below(self.config.vocab_size) as u32).collect();
                let label = |token: &u32| if random.unit() < trained { i64::from(*token) } else { IGNORED };
                Sequence { labels: tokens.iter().map(label).collect(), tokens, valid: length }
            })
            .collect()
    }
}
