//! Files of all families and both dialects.

mod refusals;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn valid(family: Family) -> Value {
    let path = fixtures().join(format!("{}_s1/base/config.json", family.model_type()));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn parse(value: &Value) -> Result<ModelConfig> {
    ModelConfig::parse(&value.to_string(), Path::new("model/config.json"))
}

/// A valid Qwen3-Next file with some fields replaced (`null` removes one).
fn changed(changes: Value) -> Result<ModelConfig> {
    changed_in(Family::Qwen3Next, changes)
}

fn changed_in(family: Family, changes: Value) -> Result<ModelConfig> {
    let mut value = valid(family);
    for (name, change) in changes.as_object().unwrap() {
        value[name] = change.clone();
    }
    parse(&value)
}

/// The file is refused with an error that names it and contains every text.
#[track_caller]
fn refused(changes: Value, texts: &[&str]) {
    refused_in(Family::Qwen3Next, changes, texts);
}

#[track_caller]
fn refused_in(family: Family, changes: Value, texts: &[&str]) {
    let error = changed_in(family, changes).unwrap_err().to_string();
    for text in texts.iter().chain(&["model/config.json"]) {
        assert!(error.contains(text), "expected {text:?} in: {error}");
    }
}

#[test]
fn qwen3_next_is_read_whole() {
    let config = ModelConfig::read(&fixtures().join("qwen3_next_s1/base")).unwrap();
    let layer = |mixer| LayerConfig { mixer, mlp: MlpKind::Sparse };
    let delta = layer(MixerKind::DeltaNet);
    let expected = ModelConfig {
        family: Family::Qwen3Next,
        vocab_size: 512,
        hidden_size: 64,
        layers: vec![delta, delta, delta, layer(MixerKind::Attention)],
        rms_norm_eps: 1e-6,
        tie_word_embeddings: false,
        attention: AttentionConfig {
            heads: 4,
            key_value_heads: 2,
            head_dim: 16,
            rotary_dim: 4,
            rope_theta: 1e7,
            qkv_bias: false,
            output_bias: false,
            query_key_norm: true,
            output_gate: true,
        },
        delta_net: Some(DeltaNetConfig { key_heads: 2, value_heads: 4, key_dim: 16, value_dim: 16, conv_kernel: 4 }),
        intermediate_size: 96,
        moe: MoeConfig {
            experts: 8,
            per_token: 2,
            intermediate_size: 32,
            normalise_top_k: true,
            shared_intermediate_size: Some(32),
            aux_loss_coefficient: 0.001,
        },
        max_position_embeddings: 4096,
        checkpoint: CheckpointFormat::Plain,
    };
    assert_eq!(config, expected);
}

#[test]
fn both_dialects_describe_the_same_model() {
    for family in Family::ALL {
        let path = fixtures().join(format!("config_v5_style/{}.json", family.model_type()));
        let newer = ModelConfig::parse(&std::fs::read_to_string(&path).unwrap(), &path).unwrap();
        assert_eq!(newer, parse(&valid(family)).unwrap(), "{family:?}");
    }
}

#[test]
fn quantised_fixtures_differ_only_in_their_format() {
    for family in Family::ALL {
        let config = ModelConfig::read(&fixtures().join(format!("{}_s1_bnb4bit", family.model_type()))).unwrap();
        assert_eq!(config.checkpoint, CheckpointFormat::Bnb4bit);
        assert_eq!(ModelConfig { checkpoint: CheckpointFormat::Plain, ..config }, parse(&valid(family)).unwrap());
    }
}

#[test]
fn absent_fields_take_the_defaults_of_the_family() {
    let absent = json!({"norm_topk_prob": null, "head_dim": null, "hidden_size": 512, "rope_theta": null,
        "decoder_sparse_step": null, "mlp_only_layers": null, "linear_num_value_heads": null, "qkv_bias": null,
        "linear_num_key_heads": null, "partial_rotary_factor": null, "shared_expert_intermediate_size": null});
    let next = changed(absent.clone()).unwrap();
    let qwen3 = changed_in(Family::Qwen3Moe, absent.clone()).unwrap();
    let qwen2 = changed_in(Family::Qwen2Moe, absent).unwrap();
    let of = |config: &ModelConfig| {
        let attention = &config.attention;
        (attention.head_dim, attention.rotary_dim, attention.qkv_bias, config.moe.normalise_top_k)
    };
    assert_eq!(of(&next), (256, 64, false, true));
    assert_eq!(of(&qwen3), (128, 128, false, false));
    assert_eq!(of(&qwen2), (128, 128, true, false));
    let shared = [&next, &qwen3, &qwen2].map(|config| config.moe.shared_intermediate_size);
    assert_eq!(shared, [Some(512), None, Some(5632)]);
    let delta = next.delta_net.unwrap();
    assert_eq!((delta.key_heads, delta.value_heads), (16, 32));
}

#[test]
fn layer_types_win_over_the_interval() {
    let config = changed(json!({"full_attention_interval": 2,
        "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"]}));
    let mixers: Vec<_> = config.unwrap().layers.iter().map(|layer| layer.mixer).collect();
    use MixerKind::{Attention, DeltaNet};
    assert_eq!(mixers, [Attention, DeltaNet, DeltaNet, Attention]);
    let config = changed(json!({"full_attention_interval": 2})).unwrap();
    let mixers: Vec<_> = config.layers.iter().map(|layer| layer.mixer).collect();
    assert_eq!(mixers, [DeltaNet, Attention, DeltaNet, Attention]);
}

#[test]
fn dense_layers_follow_step_and_list() {
    let dense = |changes| -> Vec<_> {
        changed(changes).unwrap().layers.iter().map(|layer| layer.mlp == MlpKind::Dense).collect()
    };
    assert_eq!(dense(json!({"decoder_sparse_step": 2})), [true, false, true, false]);
    assert_eq!(dense(json!({"mlp_only_layers": [1, 3]})), [false, true, false, true]);
    assert_eq!(dense(json!({"mlp_only_layers": [1], "decoder_sparse_step": 2})), [true, true, true, false]);
}

#[test]
fn attention_bias_covers_the_output_too() {
    let attention = changed(json!({"attention_bias": true})).unwrap().attention;
    assert!(attention.qkv_bias && attention.output_bias);
    let attention = changed_in(Family::Qwen2Moe, json!({"qkv_bias": true})).unwrap().attention;
    assert!(attention.qkv_bias && !attention.output_bias);
}

#[test]
fn fp8_is_recognised() {
    let fp8 = json!({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [128, 64], "modules_to_not_convert": ["lm_head"]});
    let config = changed(json!({"quantization_config": fp8})).unwrap();
    assert_eq!(config.checkpoint, CheckpointFormat::Fp8 { block: [128, 64] });
}
