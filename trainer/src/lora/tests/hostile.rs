//! Adapters that must be refused, each with one error that says what is wrong.

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use super::*;

const KEY: &str = "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight";

/// The reference's adapter, copied to where a test may damage it.
struct Damaged {
    config: ModelConfig,
    folder: tempfile::TempDir,
}

impl Damaged {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in [TENSORS_FILE, CONFIG_FILE] {
            std::fs::copy(fixture(Family::Qwen3Next, "lora_init").join(file), folder.path().join(file)).unwrap();
        }
        Self { config: config(Family::Qwen3Next), folder }
    }

    fn edit(&self, changes: Value) -> &Self {
        let mut description = description(self.folder.path());
        for (name, change) in changes.as_object().unwrap() {
            description[name] = change.clone();
        }
        std::fs::write(self.folder.path().join(CONFIG_FILE), description.to_string()).unwrap();
        self
    }

    /// Rewrites the tensors; `change` may alter name, type, shape and bytes, and a cleared name removes one.
    fn change(&self, change: impl Fn(&mut String, &mut Dtype, &mut Vec<usize>, &mut Vec<u8>)) -> &Self {
        let path = self.folder.path().join(TENSORS_FILE);
        let bytes = std::fs::read(&path).unwrap();
        let mut tensors = Vec::new();
        for (mut name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let (mut dtype, mut shape, mut data) = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            change(&mut name, &mut dtype, &mut shape, &mut data);
            tensors.push((name, dtype, shape, data));
        }
        tensors.retain(|(name, ..)| !name.is_empty());
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        self
    }

    #[track_caller]
    fn refused(&self, file: &str, texts: &[&str]) {
        let error = read(self.folder.path(), &self.config).unwrap_err().to_string();
        for text in texts.iter().chain([&file]) {
            assert!(error.contains(text), "expected {text:?} in: {error}");
        }
    }
}

#[track_caller]
fn refused_description(changes: Value, texts: &[&str]) {
    Damaged::new().edit(changes).refused(CONFIG_FILE, texts);
}

#[test]
fn missing_files_are_named() {
    for file in [TENSORS_FILE, CONFIG_FILE] {
        let adapter = Damaged::new();
        std::fs::remove_file(adapter.folder.path().join(file)).unwrap();
        adapter.refused(file, &["cannot open"]);
    }
}

#[test]
fn missing_tensor_is_named() {
    let adapter = Damaged::new();
    adapter.change(|name, _, _, _| {
        if name == KEY {
            name.clear();
        }
    });
    adapter.refused(TENSORS_FILE, &[KEY, "missing, expected [4, 64]"]);
}

#[test]
fn extra_tensor_is_named() {
    let adapter = Damaged::new();
    adapter.change(|name, _, _, _| {
        if name == KEY {
            *name = KEY.replace("layers.3", "layers.30");
        }
    });
    adapter.refused(TENSORS_FILE, &["2 problems", "layers.30", "not expected", KEY, "missing"]);
}

#[test]
fn wrong_shape_is_named() {
    let adapter = Damaged::new();
    adapter.change(|name, _, shape, _| {
        if name == KEY {
            shape.reverse();
        }
    });
    adapter.refused(TENSORS_FILE, &[KEY, "found shape [64, 4], expected [4, 64]"]);
}

#[test]
fn wrong_type_is_named() {
    let adapter = Damaged::new();
    adapter.change(|name, dtype, _, _| {
        if name == KEY {
            *dtype = Dtype::I32;
        }
    });
    adapter.refused(TENSORS_FILE, &[KEY, "found type I32"]);
}

#[test]
fn nan_and_infinity_are_named_in_one_error() {
    let adapter = Damaged::new();
    let other = KEY.replace("q_proj", "k_proj");
    adapter.change(|name, _, _, data| {
        if name == KEY {
            data[4 * 5..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        } else if *name == other {
            data[..4].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
        }
    });
    let expected = [format!("{KEY}[5]: found NaN"), format!("{other}[0]: found -inf")];
    adapter.refused(TENSORS_FILE, &["2 problems", &expected[0], &expected[1]]);
}

#[test]
fn truncated_tensors_are_refused() {
    let adapter = Damaged::new();
    let path = adapter.folder.path().join(TENSORS_FILE);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
    adapter.refused(TENSORS_FILE, &["truncated"]);
}

#[test]
fn another_rank_than_described_is_named() {
    let all = ["224 problems", "and 204 more", "gate_proj.lora_A.weight: found shape [4, 64], expected [8, 64]"];
    Damaged::new().edit(json!({"r": 8})).refused(TENSORS_FILE, &all);
    let pattern = json!({"rank_pattern": {r".*\.q_proj": 2}});
    Damaged::new().edit(pattern).refused(TENSORS_FILE, &[KEY, "found shape [4, 64], expected [2, 64]", "2 problems"]);
}

#[test]
fn the_first_matching_pattern_decides_the_alpha() {
    let adapter = Damaged::new();
    adapter.edit(json!({"alpha_pattern": {r"3\.self_attn\.q_proj": 12, "q_proj": 99, "proj": 99}}));
    let (plan, _) = read(adapter.folder.path(), &adapter.config).unwrap();
    for module in plan.modules {
        assert_eq!(module.scale, if module.path.ends_with("q_proj") { 3.0 } else { 2.0 }, "{}", module.path);
    }
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let mut adapter = Damaged::new();
    adapter.config = config(Family::Qwen2Moe);
    adapter.refused(TENSORS_FILE, &["layers.0.self_attn.q_proj.lora_A.weight: missing"]);
    adapter.config = config(Family::Qwen3Next);
    adapter.config.hidden_size = 128;
    adapter.refused(TENSORS_FILE, &["gate_proj.lora_A.weight: found shape [4, 64], expected [4, 128]"]);
}

#[test]
fn targets_this_model_lacks_are_refused() {
    refused_description(json!({"target_modules": ["query", "value"]}), &["match nothing in this model"]);
    refused_description(json!({"target_modules": null}), &["match nothing in this model"]);
    refused_description(json!({"target_modules": [1]}), &["target_modules: found [1], expected a list of texts"]);
    refused_description(json!({"target_modules": "("}), &["target_modules", "regular expression"]);
}

#[test]
fn a_regular_expression_means_whole_paths() {
    let adapter = Damaged::new();
    adapter.edit(json!({"target_modules": r"model\.layers\.\d+\.(self_attn|mlp)\..*_proj"}));
    assert_eq!(read(adapter.folder.path(), &adapter.config).unwrap().0.modules.len(), 112);
    adapter.edit(json!({"target_modules": "q_proj"}));
    adapter.refused(CONFIG_FILE, &["match nothing"]);
}

#[test]
fn other_methods_are_refused_by_name() {
    refused_description(json!({"use_dora": true}), &["use_dora: found true", "only plain LoRA"]);
    refused_description(json!({"bias": "all"}), &["bias: found \"all\", expected \"none\""]);
    refused_description(json!({"modules_to_save": ["lm_head"]}), &["modules_to_save: found [\"lm_head\"]"]);
    refused_description(json!({"peft_type": "IA3"}), &["peft_type: found \"IA3\", expected \"LORA\""]);
    refused_description(json!({"peft_type": null}), &["peft_type: found nothing"]);
    refused_description(json!({"lora_bias": true}), &["lora_bias"]);
    refused_description(json!({"layers_to_transform": [0]}), &["layers_to_transform: found [0]"]);
    refused_description(json!({"exclude_modules": "q_proj"}), &["exclude_modules"]);
    refused_description(json!({"init_lora_weights": "pissa"}), &["init_lora_weights: found \"pissa\""]);
    refused_description(json!({"use_dora": true, "bias": "all"}), &["2 problems"]);
}

#[test]
fn numbers_out_of_range_are_refused() {
    refused_description(json!({"r": 0}), &["r: found 0"]);
    refused_description(json!({"r": -4}), &["r: found -4"]);
    refused_description(json!({"lora_alpha": "NaN"}), &["lora_alpha: found \"NaN\""]);
    refused_description(json!({"lora_dropout": 1.5}), &["lora_dropout: found 1.5"]);
    refused_description(json!({"rank_pattern": {"q_proj": 0}}), &["rank_pattern.q_proj: found 0"]);
    refused_description(json!({"alpha_pattern": {"q_proj": null}}), &["alpha_pattern.q_proj: found null"]);
    refused_description(json!({"rank_pattern": {"(": 4}}), &["rank_pattern.(: expected a regular expression"]);
    refused_description(json!({"rank_pattern": {"(a{1000}){1000}": 4}}), &["rank_pattern", "size limit"]);
    let many: serde_json::Map<_, _> = (0..2000).map(|number| (number.to_string(), json!(1))).collect();
    refused_description(json!({"rank_pattern": many}), &["rank_pattern: found 2000 entries, expected at most 1024"]);
}

#[test]
fn a_head_saved_with_its_frozen_weight_is_read() {
    let config = config(Family::Qwen3Next);
    let plan = plan(&config, &options(named(&["lm_head"]))).unwrap();
    let folder = written(&config, &plan, AdapterFormat::default());
    let path = folder.path().join(TENSORS_FILE);
    let bytes = std::fs::read(&path).unwrap();
    let mut views = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let weight = [0; 4];
    let extra = TensorView::new(Dtype::F32, vec![1], &weight).unwrap();
    views.push(("base_model.model.lm_head.base_layer.weight".to_owned(), extra));
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    assert_eq!(read(folder.path(), &config).unwrap().0.modules.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_descriptions_never_panic(
        name in prop::sample::select(vec!["r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules",
            "target_parameters", "use_rslora", "bias", "init_lora_weights", "lora_dropout"]),
        change in prop::sample::select(vec![json!(null), json!(true), json!(-1), json!(3), json!(1e300), json!("x"),
            json!(""), json!([]), json!(["gate_up_proj"]), json!(["down_proj", "q_proj.weight"]), json!({}),
            json!({"x": 1}), json!({".*": 4}), json!({"": -1}), json!([[[]]]), json!("all-linear"), json!(".*")]),
    ) {
        let adapter = Damaged::new();
        adapter.edit(json!({name: change}));
        if let Err(error) = read(adapter.folder.path(), &adapter.config) {
            let error = error.to_string();
            prop_assert!(error.contains(CONFIG_FILE) || error.contains(TENSORS_FILE), "{}", error);
        }
    }
}
