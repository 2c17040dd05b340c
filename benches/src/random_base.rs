//! A checkpoint of random weights of any shape, written as the official ones are: for timing, where values do not
//! matter as long as they stay in a sane range.

use std::path::Path;

use anyhow::{Context, Result};
use brightrun_kernels::dropout::splitmix;
use brightrun_trainer::config::ModelConfig;
use brightrun_trainer::weights::expected_tensors;
use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// Sizes of a model.
#[derive(Debug, Clone)]
pub struct Shape {
    /// `qwen3_next`, `qwen3_moe` or `qwen2_moe`.
    pub arch: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Experts per layer.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Width of an expert.
    pub moe_intermediate: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl Shape {
    /// The shape's `config.json`.
    pub fn config(&self) -> Value {
        let mut config = json!({
            "model_type": self.arch, "vocab_size": self.vocab, "hidden_size": self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "intermediate_size": 3 * self.hidden,
            "moe_intermediate_size": self.moe_intermediate, "num_experts": self.experts,
            "num_experts_per_tok": self.top_k, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
            "tie_word_embeddings": false, "hidden_act": "silu", "norm_topk_prob": self.arch != "qwen2_moe",
            "rope_theta": 1e6, "torch_dtype": "bfloat16", "decoder_sparse_step": 1, "mlp_only_layers": [],
        });
        let more = match self.arch.as_str() {
            "qwen3_next" => json!({
                "head_dim": self.head_dim, "partial_rotary_factor": 0.25, "full_attention_interval": 4,
                "shared_expert_intermediate_size": self.moe_intermediate, "linear_num_key_heads": 4,
                "linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
                "linear_conv_kernel_dim": 4,
            }),
            "qwen3_moe" => json!({ "head_dim": self.head_dim }),
            _ => json!({ "shared_expert_intermediate_size": self.moe_intermediate }),
        };
        if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
            config.extend(more);
        }
        config
    }

    /// Writes `config.json` and `model.safetensors`.
    pub fn write(&self, dir: &Path) -> Result<ModelConfig> {
        std::fs::write(dir.join("config.json"), serde_json::to_vec_pretty(&self.config())?)?;
        let config = ModelConfig::read(dir)?;
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = expected_tensors(&config)
            .into_iter()
            .enumerate()
            .map(|(index, spec)| {
                let values = values(&spec.name, &spec.shape, index as u64);
                (spec.name, spec.shape, values)
            })
            .collect();
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>>>()?;
        safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).context("cannot write the base")?;
        Ok(config)
    }
}

/// Uniform values of a spread that keeps activations and routing lively.
fn values(name: &str, shape: &[usize], seed: u64) -> Vec<u8> {
    let count: usize = shape.iter().product();
    let (centre, spread) = match name {
        _ if name.ends_with("A_log") => (-0.5, 2.5),
        _ if name.contains("conv1d") => (0.0, 0.8),
        _ if name.contains("embed_tokens") => (0.0, 0.8),
        _ if shape.len() == 1 => (if name.contains("layernorm") { 0.1 } else { 0.5 }, 0.3),
        _ => (0.0, 1.5 / (shape[shape.len() - 1] as f64).sqrt()),
    };
    let draw = |index: usize| (splitmix(splitmix(seed) ^ index as u64) >> 11) as f64 / (1u64 << 53) as f64;
    (0..count).flat_map(|index| bf16::from_f64(centre + spread * (2.0 * draw(index) - 1.0)).to_le_bytes()).collect()
}
