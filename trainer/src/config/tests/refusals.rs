//! Files that must be refused, each with an error that names what is wrong with it.

use proptest::prelude::*;

use super::*;

#[test]
fn mistral_is_refused_and_the_supported_are_listed() {
    refused(json!({"model_type": "mistral"}), &["model_type", "\"mistral\"", "qwen3_next", "qwen3_moe", "qwen2_moe"]);
}

#[test]
fn every_problem_is_in_one_error() {
    refused(
        json!({"hidden_size": "64", "num_experts": 0, "hidden_act": "gelu", "rms_norm_eps": -1}),
        &["4 problems", "hidden_size: found \"64\"", "num_experts: found 0", "hidden_act", "rms_norm_eps: found -1"],
    );
}

#[test]
fn missing_shape_is_refused() {
    refused(json!({"hidden_size": null}), &["hidden_size: found nothing, expected an integer in 1..=1048576"]);
}

#[test]
fn fractional_size_is_refused() {
    refused(json!({"num_hidden_layers": 4.5}), &["num_hidden_layers: found 4.5"]);
}

#[test]
fn negative_size_is_refused() {
    refused(json!({"vocab_size": -1}), &["vocab_size: found -1"]);
}

#[test]
fn huge_size_is_refused() {
    refused(json!({"moe_intermediate_size": u64::MAX}), &["moe_intermediate_size: found 18446744073709551615"]);
}

#[test]
fn huge_products_are_refused_before_anything_is_listed() {
    refused(
        json!({"num_hidden_layers": 1024, "num_experts": 65536, "hidden_size": 1 << 20,
            "moe_intermediate_size": 1 << 20}),
        &["num_hidden_layers x num_experts x 3: found 201326592", "parameters, expected at most"],
    );
}

#[test]
fn nan_as_text_is_refused() {
    refused(json!({"rms_norm_eps": "NaN"}), &["rms_norm_eps: found \"NaN\""]);
}

#[test]
fn bare_nan_is_refused() {
    let error = ModelConfig::parse(r#"{"rms_norm_eps": NaN}"#, Path::new("c.json")).unwrap_err().to_string();
    assert!(error.contains("c.json") && error.contains("JSON"), "{error}");
}

#[test]
fn number_beyond_floats_is_refused() {
    let error = ModelConfig::parse(r#"{"rope_theta": 1e999}"#, Path::new("c.json")).unwrap_err().to_string();
    assert!(error.contains("c.json") && error.contains("out of range"), "{error}");
}

#[test]
fn a_list_is_refused() {
    let error = ModelConfig::parse("[1]", Path::new("c.json")).unwrap_err().to_string();
    assert!(error.contains("expected a JSON object, found [1]"), "{error}");
}

#[test]
fn scaled_rope_is_refused_in_both_dialects() {
    refused(json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}), &["rope_scaling.type", "\"yarn\""]);
    refused(json!({"rope_parameters": {"rope_type": "llama3"}}), &["rope_parameters.rope_type", "\"llama3\""]);
    refused(json!({"rope_parameters": {"rope_theta": 0}}), &["rope_parameters.rope_theta: found 0"]);
    assert!(changed(json!({"rope_scaling": {"rope_type": "default"}})).is_ok());
}

#[test]
fn odd_rotary_dimensions_are_refused() {
    refused(json!({"partial_rotary_factor": 0.2}), &["partial_rotary_factor", "3 of head_dim = 16"]);
    refused(json!({"partial_rotary_factor": 0.01}), &["partial_rotary_factor", "0 of head_dim = 16"]);
    refused(json!({"partial_rotary_factor": 1.5}), &["partial_rotary_factor: found 1.5"]);
    refused_in(Family::Qwen3Moe, json!({"partial_rotary_factor": 0.5}), &["partial_rotary_factor", "qwen3_moe"]);
}

#[test]
fn heads_that_do_not_divide_are_refused() {
    refused(json!({"num_key_value_heads": 3}), &["num_key_value_heads: found 3"]);
    refused(json!({"linear_num_value_heads": 3}), &["linear_num_value_heads: found 3"]);
    refused_in(Family::Qwen2Moe, json!({"hidden_size": 66}), &["num_attention_heads: found 4", "hidden_size = 66"]);
    refused_in(Family::Qwen2Moe, json!({"head_dim": 8}), &["head_dim: found 8"]);
}

#[test]
fn more_experts_per_token_than_experts_are_refused() {
    refused(json!({"num_experts_per_tok": 9}), &["num_experts_per_tok: found 9, expected an integer in 1..=8"]);
}

#[test]
fn wrong_layer_types_are_refused() {
    refused(json!({"layer_types": ["full_attention"]}), &["layer_types: found 1 entries", "num_hidden_layers = 4"]);
    let sliding = ["sliding_attention", "full_attention", "full_attention", "full_attention"];
    refused(json!({"layer_types": sliding}), &["layer_types[0]: found \"sliding_attention\""]);
    let linear = ["full_attention", "linear_attention", "full_attention", "full_attention"];
    refused_in(Family::Qwen3Moe, json!({"layer_types": linear}), &["layer_types[1]", "expected \"full_attention\""]);
    refused(json!({"layer_types": {}}), &["layer_types: found {}, expected a list"]);
}

#[test]
fn zero_steps_and_intervals_are_refused() {
    refused(json!({"decoder_sparse_step": 0}), &["decoder_sparse_step: found 0"]);
    refused(json!({"full_attention_interval": 0}), &["full_attention_interval: found 0"]);
    refused(json!({"mlp_only_layers": [4]}), &["mlp_only_layers[0]: found 4, expected a layer number in 0..4"]);
}

#[test]
fn features_nobody_implements_are_refused() {
    refused(json!({"use_sliding_window": true}), &["use_sliding_window"]);
    refused(json!({"attention_dropout": 0.1}), &["attention_dropout: found 0.1"]);
    refused(json!({"tie_word_embeddings": "yes"}), &["tie_word_embeddings: found \"yes\", expected true or false"]);
}

#[test]
fn other_quantisations_are_refused_by_name() {
    for method in ["gptq", "awq", "compressed-tensors"] {
        refused(json!({"quantization_config": {"quant_method": method, "bits": 4}}), &["quant_method", method]);
    }
    let eight = json!({"quant_method": "bitsandbytes", "load_in_8bit": true});
    refused(json!({"quantization_config": eight}), &["quantization_config.load_in_8bit"]);
    let fp4 = json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "fp4"});
    refused(json!({"quantization_config": fp4}), &["bnb_4bit_quant_type: found \"fp4\""]);
    let storage = json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_quant_storage": "bfloat16"});
    refused(json!({"quantization_config": storage}), &["bnb_4bit_quant_storage: found \"bfloat16\""]);
    let block = json!({"quant_method": "fp8", "weight_block_size": [0, 128]});
    refused(json!({"quantization_config": block}), &["weight_block_size: found [0,128]"]);
    let fixed = json!({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "static"});
    refused(json!({"quantization_config": fixed}), &["activation_scheme: found \"static\""]);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-4i64..2000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z_0-9]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-z_]{1,12}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let text = String::from_utf8_lossy(&bytes);
        prop_assert!(ModelConfig::parse(&text, Path::new("config.json")).is_err());
    }

    #[test]
    fn random_fields_give_a_sane_model_or_an_error_that_names_the_file(
        family in 0usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 1..5),
    ) {
        let mut value = valid(Family::ALL[family]);
        let names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        for (name, change) in changes {
            value[name.get(&names)] = change;
        }
        match parse(&value) {
            Ok(config) => {
                let tensors = crate::weights::expected_tensors(&config);
                let mut bytes = 0usize;
                for tensor in &tensors {
                    let count = tensor.shape.iter().try_fold(4usize, |count, side| count.checked_mul(*side)).unwrap();
                    prop_assert!(count > 0);
                    bytes = bytes.checked_add(count).unwrap();
                }
                prop_assert!(bytes <= 4 << 44);
            }
            Err(error) => prop_assert!(error.to_string().starts_with("model/config.json: ")),
        }
    }
}
