//! What a `config.json` says about a model, in one form for all three families and both dialects.

mod checkpoint;
pub(crate) mod fields;
pub(crate) mod json;
mod limits;
mod parse;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use checkpoint::CheckpointFormat;

use crate::{Error, Result};

/// The supported architectures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `qwen3_next`
    Qwen3Next,
    /// `qwen3_moe`
    Qwen3Moe,
    /// `qwen2_moe`
    Qwen2Moe,
}

/// A model, fully described; every field was read from the file or is the family's documented default.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which architecture.
    pub family: Family,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// One entry per decoder layer.
    pub layers: Vec<LayerConfig>,
    /// `eps` of every norm.
    pub rms_norm_eps: f64,
    /// The head is the embedding.
    pub tie_word_embeddings: bool,
    /// Softmax attention (every family has some).
    pub attention: AttentionConfig,
    /// Gated DeltaNet, where the family has it.
    pub delta_net: Option<DeltaNetConfig>,
    /// Width of dense MLP layers.
    pub intermediate_size: usize,
    /// The sparse blocks.
    pub moe: MoeConfig,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// How the weights lie on disk (`quantization_config`).
    pub checkpoint: CheckpointFormat,
}

// === impl Family ===

impl Family {
    /// Every family, in the order documents list them.
    pub const ALL: [Self; 3] = [Self::Qwen3Next, Self::Qwen3Moe, Self::Qwen2Moe];

    /// The `model_type` of its files.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Qwen3Next => "qwen3_next",
            Self::Qwen3Moe => "qwen3_moe",
            Self::Qwen2Moe => "qwen2_moe",
        }
    }
}

// === impl ModelConfig ===

impl ModelConfig {
    /// Reads `config.json` in a model's folder.
    pub fn read(model_dir: &Path) -> Result<Self> {
        let path = model_dir.join("config.json");
        let object = json::read_object(&path, limits::MAX_FILE_BYTES)?;
        parse::model(&object).map_err(|problems| Error::problems(path, &problems))
    }

    /// Reads the text of a `config.json`; `path` is named in errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        if text.len() as u64 > limits::MAX_FILE_BYTES {
            return Err(Error::file(path, format!("larger than {} bytes", limits::MAX_FILE_BYTES)));
        }
        let object = json::parse_object(text, path)?;
        parse::model(&object).map_err(|problems| Error::problems(path, &problems))
    }
}

/// What one decoder layer is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerConfig {
    /// The token mixer.
    pub mixer: MixerKind,
    /// The feed-forward part.
    pub mlp: MlpKind,
}

/// Token mixers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MixerKind {
    /// Softmax attention.
    Attention,
    /// Gated DeltaNet.
    DeltaNet,
}

/// Feed-forward parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlpKind {
    /// Dense SwiGLU.
    Dense,
    /// Mixture of experts.
    Sparse,
}

/// Softmax attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// How many of a head's dimensions rotate.
    pub rotary_dim: usize,
    /// RoPE's base.
    pub rope_theta: f64,
    /// Bias on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub output_bias: bool,
    /// RMS norm on queries and keys, per head.
    pub query_key_norm: bool,
    /// `q_proj` also yields a sigmoid gate for the output.
    pub output_gate: bool,
}

/// Gated DeltaNet.
#[derive(Debug, Clone, PartialEq)]
pub struct DeltaNetConfig {
    /// Query and key heads.
    pub key_heads: usize,
    /// Value heads, a multiple of the key heads.
    pub value_heads: usize,
    /// Width of a query or key head.
    pub key_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Taps of the causal convolution.
    pub conv_kernel: usize,
}

/// The sparse blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeConfig {
    /// Experts per layer.
    pub experts: usize,
    /// Experts chosen per token.
    pub per_token: usize,
    /// Width of an expert.
    pub intermediate_size: usize,
    /// The chosen weights are scaled to sum to one.
    pub normalise_top_k: bool,
    /// Width of the shared expert, where there is one.
    pub shared_intermediate_size: Option<usize>,
    /// Weight of the load-balancing loss when it is on.
    pub aux_loss_coefficient: f64,
}
