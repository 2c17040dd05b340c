//! The tensors a checkpoint of a model must hold, by the official names (one tensor per expert and projection).

use crate::config::{Family, MixerKind, MlpKind, ModelConfig};

/// A tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its official name.
    pub name: String,
    /// Its shape; a linear's is `[out, in]`.
    pub shape: Vec<usize>,
    /// What it belongs to.
    pub kind: TensorKind,
}

// === impl TensorSpec ===

impl TensorSpec {
    /// The path of the module whose weight it is; nothing for biases and other parameters.
    pub(crate) fn module(&self) -> Option<&str> {
        self.name.strip_suffix(".weight")
    }
}

/// What a tensor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorKind {
    /// The weight of a linear: may be quantised, may carry LoRA.
    Linear,
    /// Anything else: embedding, norm, bias, convolution, decay.
    Other,
}

/// Every tensor of the model's checkpoint, in the order of the modules of transformers 4.57.
///
/// Without `mtp.*` (transformers does not load it either) and without `lm_head.weight` where the head is the embedding.
pub fn expected_tensors(config: &ModelConfig) -> Vec<TensorSpec> {
    let mut list = List { config, tensors: Vec::new() };
    let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
    list.other("model.embed_tokens.weight", &[vocabulary, hidden]);
    for (index, layer) in config.layers.iter().enumerate() {
        let prefix = format!("model.layers.{index}");
        match layer.mixer {
            MixerKind::Attention => list.attention(&format!("{prefix}.self_attn")),
            MixerKind::DeltaNet => list.delta_net(&format!("{prefix}.linear_attn")),
        }
        match layer.mlp {
            MlpKind::Dense => list.swiglu(&format!("{prefix}.mlp"), config.intermediate_size),
            MlpKind::Sparse => list.sparse(&format!("{prefix}.mlp")),
        }
        list.other(&format!("{prefix}.input_layernorm.weight"), &[hidden]);
        list.other(&format!("{prefix}.post_attention_layernorm.weight"), &[hidden]);
    }
    list.other("model.norm.weight", &[hidden]);
    if !config.tie_word_embeddings {
        list.linear("lm_head", vocabulary, hidden);
    }
    list.tensors
}

struct List<'a> {
    config: &'a ModelConfig,
    tensors: Vec<TensorSpec>,
}

// === impl List ===

impl List<'_> {
    fn push(&mut self, name: String, shape: &[usize], kind: TensorKind) {
        self.tensors.push(TensorSpec { name, shape: shape.to_vec(), kind });
    }

    fn linear(&mut self, path: &str, outputs: usize, inputs: usize) {
        self.push(format!("{path}.weight"), &[outputs, inputs], TensorKind::Linear);
    }

    fn other(&mut self, name: &str, shape: &[usize]) {
        self.push(name.to_owned(), shape, TensorKind::Other);
    }

    fn attention(&mut self, path: &str) {
        let attention = &self.config.attention;
        let hidden = self.config.hidden_size;
        let queries = attention.heads * attention.head_dim;
        let keys = attention.key_value_heads * attention.head_dim;
        // With the output gate, every head has a query and a gate.
        let query_rows = if attention.output_gate { 2 * queries } else { queries };
        for (name, outputs, inputs, bias) in [
            ("q_proj", query_rows, hidden, attention.qkv_bias),
            ("k_proj", keys, hidden, attention.qkv_bias),
            ("v_proj", keys, hidden, attention.qkv_bias),
            ("o_proj", hidden, queries, attention.output_bias),
        ] {
            self.linear(&format!("{path}.{name}"), outputs, inputs);
            if bias {
                self.other(&format!("{path}.{name}.bias"), &[outputs]);
            }
        }
        if attention.query_key_norm {
            self.other(&format!("{path}.q_norm.weight"), &[attention.head_dim]);
            self.other(&format!("{path}.k_norm.weight"), &[attention.head_dim]);
        }
    }

    fn delta_net(&mut self, path: &str) {
        // Only Qwen3-Next has such layers, and it always has their sizes.
        let Some(delta) = &self.config.delta_net else { return };
        let hidden = self.config.hidden_size;
        let (keys, values) = (delta.key_heads * delta.key_dim, delta.value_heads * delta.value_dim);
        self.other(&format!("{path}.dt_bias"), &[delta.value_heads]);
        self.other(&format!("{path}.A_log"), &[delta.value_heads]);
        self.other(&format!("{path}.conv1d.weight"), &[2 * keys + values, 1, delta.conv_kernel]);
        self.linear(&format!("{path}.in_proj_qkvz"), 2 * keys + 2 * values, hidden);
        self.linear(&format!("{path}.in_proj_ba"), 2 * delta.value_heads, hidden);
        self.other(&format!("{path}.norm.weight"), &[delta.value_dim]);
        self.linear(&format!("{path}.out_proj"), hidden, values);
    }

    fn sparse(&mut self, path: &str) {
        let moe = &self.config.moe;
        let hidden = self.config.hidden_size;
        self.linear(&format!("{path}.gate"), moe.experts, hidden);
        for expert in 0..moe.experts {
            self.swiglu(&format!("{path}.experts.{expert}"), moe.intermediate_size);
        }
        if let Some(width) = moe.shared_intermediate_size {
            self.swiglu(&format!("{path}.shared_expert"), width);
            self.linear(&format!("{path}.shared_expert_gate"), 1, hidden);
        }
    }

    fn swiglu(&mut self, path: &str, width: usize) {
        let hidden = self.config.hidden_size;
        self.linear(&format!("{path}.gate_proj"), width, hidden);
        self.linear(&format!("{path}.up_proj"), width, hidden);
        self.linear(&format!("{path}.down_proj"), hidden, width);
    }
}

/// Why a name that is not expected may stand in a checkpoint all the same: such tensors are not read.
pub(super) fn is_ignored(name: &str, config: &ModelConfig) -> bool {
    // Multi-token prediction, which only inference engines use.
    let prediction = config.family == Family::Qwen3Next && name.starts_with("mtp.");
    // A buffer that old versions saved; it follows from the configuration.
    let buffer = name.ends_with("rotary_emb.inv_freq");
    let tied = config.tie_word_embeddings && name == "lm_head.weight";
    prediction || buffer || tied
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    const QWEN3_NEXT_80B: &str = r#"{"model_type": "qwen3_next", "vocab_size": 151936, "hidden_size": 2048,
        "intermediate_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2,
        "head_dim": 256, "rope_theta": 10000000, "partial_rotary_factor": 0.25, "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "full_attention_interval": 4, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512, "num_experts": 512, "num_experts_per_tok": 10}"#;
    const QWEN3_30B: &str = r#"{"model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048,
        "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "rope_theta": 1000000, "moe_intermediate_size": 768, "num_experts": 128,
        "num_experts_per_tok": 8, "norm_topk_prob": true}"#;
    const QWEN15_MOE: &str = r#"{"model_type": "qwen2_moe", "vocab_size": 151936, "hidden_size": 2048,
        "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16,
        "rope_theta": 1000000, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
        "num_experts": 60, "num_experts_per_tok": 4}"#;

    fn tensors(text: &str) -> Vec<TensorSpec> {
        expected_tensors(&ModelConfig::parse(text, Path::new("config.json")).unwrap())
    }

    /// Numbers in a name replaced by `#`, with the shape.
    fn pattern(tensor: &TensorSpec) -> String {
        let parts: Vec<_> = tensor
            .name
            .split('.')
            .map(|part| if part.bytes().all(|byte| byte.is_ascii_digit()) { "#" } else { part })
            .collect();
        format!("{} {:?}", parts.join("."), tensor.shape)
    }

    fn check(text: &str, count: usize, parameters: usize) {
        let tensors = tensors(text);
        assert_eq!(tensors.len(), count);
        assert_eq!(tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum::<usize>(), parameters);
        let names: std::collections::HashSet<_> = tensors.iter().map(|tensor| &tensor.name).collect();
        assert_eq!(names.len(), count);
    }

    // Counts and totals as published with the checkpoints.
    #[test]
    fn qwen3_next_80b_has_the_published_tensors() {
        check(QWEN3_NEXT_80B, 74_391, 79_674_391_296);
    }

    #[test]
    fn qwen3_30b_has_the_published_tensors() {
        check(QWEN3_30B, 18_867, 30_532_122_624);
    }

    #[test]
    fn qwen15_moe_has_the_published_tensors() {
        check(QWEN15_MOE, 4_659, 14_315_784_192);
    }

    #[test]
    fn every_pattern_of_the_80b_has_its_published_shape_and_count() {
        let mut counts = BTreeMap::<String, usize>::new();
        for tensor in tensors(QWEN3_NEXT_80B) {
            *counts.entry(pattern(&tensor)).or_default() += 1;
        }
        let published = [
            ("lm_head.weight [151936, 2048]", 1),
            ("model.embed_tokens.weight [151936, 2048]", 1),
            ("model.norm.weight [2048]", 1),
            ("model.layers.#.input_layernorm.weight [2048]", 48),
            ("model.layers.#.post_attention_layernorm.weight [2048]", 48),
            ("model.layers.#.linear_attn.in_proj_qkvz.weight [12288, 2048]", 36),
            ("model.layers.#.linear_attn.in_proj_ba.weight [64, 2048]", 36),
            ("model.layers.#.linear_attn.conv1d.weight [8192, 1, 4]", 36),
            ("model.layers.#.linear_attn.A_log [32]", 36),
            ("model.layers.#.linear_attn.dt_bias [32]", 36),
            ("model.layers.#.linear_attn.norm.weight [128]", 36),
            ("model.layers.#.linear_attn.out_proj.weight [2048, 4096]", 36),
            ("model.layers.#.self_attn.q_proj.weight [8192, 2048]", 12),
            ("model.layers.#.self_attn.k_proj.weight [512, 2048]", 12),
            ("model.layers.#.self_attn.v_proj.weight [512, 2048]", 12),
            ("model.layers.#.self_attn.o_proj.weight [2048, 4096]", 12),
            ("model.layers.#.self_attn.q_norm.weight [256]", 12),
            ("model.layers.#.self_attn.k_norm.weight [256]", 12),
            ("model.layers.#.mlp.gate.weight [512, 2048]", 48),
            ("model.layers.#.mlp.experts.#.gate_proj.weight [512, 2048]", 24_576),
            ("model.layers.#.mlp.experts.#.up_proj.weight [512, 2048]", 24_576),
            ("model.layers.#.mlp.experts.#.down_proj.weight [2048, 512]", 24_576),
            ("model.layers.#.mlp.shared_expert.gate_proj.weight [512, 2048]", 48),
            ("model.layers.#.mlp.shared_expert.up_proj.weight [512, 2048]", 48),
            ("model.layers.#.mlp.shared_expert.down_proj.weight [2048, 512]", 48),
            ("model.layers.#.mlp.shared_expert_gate.weight [1, 2048]", 48),
        ];
        assert_eq!(counts, published.map(|(name, count)| (name.to_owned(), count)).into());
    }

    #[test]
    fn biases_are_where_each_family_has_them() {
        let biases = |text: &str| -> Vec<_> {
            let named = |tensor: TensorSpec| tensor.name.strip_prefix("model.layers.0.").map(str::to_owned);
            tensors(text).into_iter().filter_map(named).filter(|name| name.ends_with("_proj.bias")).collect()
        };
        let qkv = ["q_proj", "k_proj", "v_proj"].map(|name| format!("self_attn.{name}.bias"));
        assert_eq!(biases(QWEN15_MOE), qkv);
        assert!(biases(QWEN3_30B).is_empty());
        let biased = QWEN3_30B.replace("{", r#"{"attention_bias": true,"#);
        assert_eq!(biases(&biased).last().unwrap(), "self_attn.o_proj.bias");
        assert_eq!(biases(&biased).len(), 4);
    }
}
