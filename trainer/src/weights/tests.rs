use std::path::{Path, PathBuf};

use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use super::*;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// A tensor as a test writes it.
#[derive(Clone)]
struct Raw {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// A copy of a fixture that a test may damage before it is written and opened.
struct Damaged {
    config: ModelConfig,
    tensors: Vec<Raw>,
    folder: TempDir,
}

impl Damaged {
    fn new(fixture: &str) -> Self {
        let dir = fixtures().join(fixture);
        let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let raw = |(name, view): (String, TensorView)| Raw {
            name,
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            data: view.data().to_vec(),
        };
        let tensors = file.tensors().into_iter().map(raw).collect();
        Self { config: ModelConfig::read(&dir).unwrap(), tensors, folder: tempfile::tempdir().unwrap() }
    }

    fn plain() -> Self {
        Self::new("qwen3_next_s1/base")
    }

    fn quantised() -> Self {
        Self::new("qwen3_next_s1_bnb4bit")
    }

    fn dir(&self) -> &Path {
        self.folder.path()
    }

    fn tensor(&mut self, name: &str) -> &mut Raw {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    fn remove(&mut self, name: &str) {
        self.tensors.retain(|tensor| tensor.name != name);
    }

    fn add(&mut self, name: &str, dtype: Dtype, shape: &[usize]) {
        let data = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
        self.tensors.push(Raw { name: name.to_owned(), dtype, shape: shape.to_vec(), data });
    }

    fn write(&self, file: &str, tensors: &[Raw]) {
        let views = tensors
            .iter()
            .map(|raw| (raw.name.as_str(), TensorView::new(raw.dtype, raw.shape.clone(), &raw.data).unwrap()));
        std::fs::write(self.dir().join(file), safetensors::serialize(views, None).unwrap()).unwrap();
    }

    fn open(&self) -> Result<Checkpoint> {
        self.write("model.safetensors", &self.tensors);
        Checkpoint::open(self.dir(), &self.config)
    }

    /// The checkpoint is refused with an error that contains every text.
    #[track_caller]
    fn refused(&self, texts: &[&str]) {
        contains(&self.open().unwrap_err(), texts);
    }

    /// Loading this linear is refused with an error that contains every text.
    #[track_caller]
    fn refused_linear(&self, path: &str, texts: &[&str]) {
        contains(&self.open().unwrap().linear(path, &BasePrecision::Full).unwrap_err(), texts);
    }
}

#[track_caller]
fn contains(error: &Error, texts: &[&str]) {
    let error = error.to_string();
    for text in texts {
        assert!(error.contains(text), "expected {text:?} in: {error}");
    }
}

const QUERY: &str = "model.layers.3.self_attn.q_proj";
const QUERY_WEIGHT: &str = "model.layers.3.self_attn.q_proj.weight";

fn linears(config: &ModelConfig) -> Vec<TensorSpec> {
    expected_tensors(config).into_iter().filter(|spec| spec.kind == TensorKind::Linear).collect()
}

// === what is read ===

#[test]
fn every_fixture_opens_and_every_tensor_is_read() {
    for fixture in ["qwen3_next_s1", "qwen3_moe_s1", "qwen2_moe_s1"] {
        let dir = fixtures().join(fixture).join("base");
        let config = ModelConfig::read(&dir).unwrap();
        let checkpoint = Checkpoint::open(&dir, &config).unwrap();
        for spec in expected_tensors(&config) {
            let count: usize = spec.shape.iter().product();
            match spec.kind {
                TensorKind::Linear => {
                    let path = spec.name.strip_suffix(".weight").unwrap();
                    let weight = checkpoint.linear(path, &BasePrecision::Full).unwrap();
                    assert_eq!([weight.rows(), weight.columns()], spec.shape[..]);
                }
                TensorKind::Other => assert_eq!(checkpoint.vector(&spec.name).unwrap().len(), count),
            }
        }
        assert_eq!(checkpoint.matrix("model.embed_tokens.weight").unwrap().len(), 512 * 64);
        assert!(checkpoint.matrix("model.norm.weight").is_err());
        assert!(checkpoint.vector("model.nothing.weight").is_err());
        assert!(checkpoint.linear("model.embed_tokens", &BasePrecision::Full).is_err());
    }
}

#[test]
fn bf16_f16_and_f32_give_the_same_values() {
    let mut model = Damaged::plain();
    let expected = model.open().unwrap().vector("model.norm.weight").unwrap();
    assert!(expected.iter().any(|value| *value != expected[0]));
    let half: Vec<_> = expected.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect();
    let full: Vec<_> = expected.iter().flat_map(|value| value.to_le_bytes()).collect();
    for (dtype, data) in [(Dtype::F16, half), (Dtype::F32, full)] {
        let tensor = model.tensor("model.norm.weight");
        (tensor.dtype, tensor.data) = (dtype, data);
        let found = model.open().unwrap().vector("model.norm.weight").unwrap();
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= expected.abs() * 1e-3, "{dtype:?}");
        }
    }
}

#[test]
fn quantising_leaves_out_what_is_skipped() {
    let checkpoint = Damaged::plain().open().unwrap();
    let nf4 = BasePrecision::nf4();
    let is_nf4 = |path: &str| matches!(checkpoint.linear(path, &nf4).unwrap(), FrozenWeight::Nf4(_));
    assert!(is_nf4(QUERY));
    assert!(is_nf4("model.layers.0.linear_attn.in_proj_ba"));
    assert!(is_nf4("model.layers.0.mlp.experts.7.down_proj"));
    assert!(!is_nf4("lm_head"));
    assert!(!is_nf4("model.layers.0.mlp.gate"));
    assert!(!is_nf4("model.layers.0.mlp.shared_expert_gate"));
}

#[test]
fn bitsandbytes_bytes_are_kept_and_equal_our_own_quantisation() {
    for family in ["qwen3_next", "qwen3_moe", "qwen2_moe"] {
        let dir = fixtures().join(format!("{family}_s1_bnb4bit"));
        let config = ModelConfig::read(&dir).unwrap();
        let stored = Checkpoint::open(&dir, &config).unwrap();
        let base = fixtures().join(format!("{family}_s1/base"));
        let plain = Checkpoint::open(&base, &ModelConfig::read(&base).unwrap()).unwrap();
        for spec in linears(&config) {
            let path = spec.name.strip_suffix(".weight").unwrap();
            // The precision asked for does not matter here.
            let found = stored.linear(path, &BasePrecision::Full).unwrap();
            let expected = plain.linear(path, &BasePrecision::nf4()).unwrap();
            match (&found, &expected) {
                (FrozenWeight::Nf4(found), FrozenWeight::Nf4(expected)) => {
                    assert_eq!(found.packed(), expected.packed(), "{path}");
                }
                (FrozenWeight::Plain { values: found, .. }, FrozenWeight::Plain { values: expected, .. }) => {
                    assert_eq!(found, expected, "{path}");
                }
                _ => panic!("{path}: one is quantised, the other is not"),
            }
        }
    }
}

#[test]
fn plain_weights_beside_bitsandbytes_ones_stay_plain() {
    let checkpoint = Damaged::quantised().open().unwrap();
    let all = BasePrecision::Nf4 { double_quant: true, skip: Vec::new() };
    assert!(matches!(checkpoint.linear("lm_head", &all).unwrap(), FrozenWeight::Plain { .. }));
}

#[test]
fn scales_that_are_not_quantised_are_read_too() {
    let mut model = Damaged::quantised();
    let nested = model.open().unwrap().linear(QUERY, &BasePrecision::Full).unwrap();
    let FrozenWeight::Nf4(nested) = nested else { panic!("not quantised") };
    let absmax = nested.absmax();
    model.remove(&format!("{QUERY_WEIGHT}.nested_absmax"));
    model.remove(&format!("{QUERY_WEIGHT}.nested_quant_map"));
    let tensor = model.tensor(&format!("{QUERY_WEIGHT}.absmax"));
    tensor.dtype = Dtype::F32;
    tensor.data = absmax.iter().flat_map(|value| value.to_le_bytes()).collect();
    set_state(&mut model, r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [128, 64]}"#);
    let plain = model.open().unwrap().linear(QUERY, &BasePrecision::Full).unwrap();
    assert_eq!(plain.to_f32(), nested.dequantize());
}

/// Turns one linear into FP8 with the given scale: every value becomes 1.5 (exponent 7, mantissa 100).
fn make_fp8(model: &mut Damaged, scale_dtype: Dtype, scale: Vec<u8>) {
    model.config.checkpoint = CheckpointFormat::Fp8 { block: [128, 128] };
    let tensor = model.tensor(QUERY_WEIGHT);
    tensor.dtype = Dtype::F8_E4M3;
    tensor.data = vec![0x3C; 128 * 64];
    let name = format!("{QUERY_WEIGHT}_scale_inv");
    model.tensors.push(Raw { name, dtype: scale_dtype, shape: vec![1, 1], data: scale });
}

#[test]
fn fp8_is_multiplied_by_its_scale_whatever_the_type_of_the_scale() {
    for (dtype, scale) in
        [(Dtype::F32, 0.5f32.to_le_bytes().to_vec()), (Dtype::BF16, half::bf16::from_f32(0.5).to_le_bytes().to_vec())]
    {
        let mut model = Damaged::plain();
        make_fp8(&mut model, dtype, scale);
        let checkpoint = model.open().unwrap();
        let weight = checkpoint.linear(QUERY, &BasePrecision::Full).unwrap();
        assert!(weight.to_f32().iter().all(|value| *value == 0.75));
        assert!(matches!(checkpoint.linear(QUERY, &BasePrecision::nf4()).unwrap(), FrozenWeight::Nf4(_)));
    }
}

#[test]
fn shards_are_followed_through_the_index() {
    let model = Damaged::plain();
    let whole = model.open().unwrap();
    let (first, second) = model.tensors.split_at(model.tensors.len() / 2);
    let split = Damaged::plain();
    write_shards(&split, first, second, |_| ());
    let checkpoint = Checkpoint::open(split.dir(), &split.config).unwrap();
    for name in ["model.norm.weight", "model.layers.0.linear_attn.A_log", "model.layers.2.input_layernorm.weight"] {
        assert_eq!(checkpoint.vector(name).unwrap(), whole.vector(name).unwrap());
    }
}

fn write_shards(model: &Damaged, first: &[Raw], second: &[Raw], edit: impl Fn(&mut serde_json::Value)) {
    model.write("one.safetensors", first);
    model.write("two.safetensors", second);
    let mut index = serde_json::json!({"metadata": {}, "weight_map": {}});
    for (file, tensors) in [("one.safetensors", first), ("two.safetensors", second)] {
        for tensor in tensors {
            index["weight_map"][&tensor.name] = file.into();
        }
    }
    edit(&mut index);
    std::fs::write(model.dir().join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn ignored_tensors_are_no_obstacle() {
    let mut model = Damaged::plain();
    model.add("mtp.fc.weight", Dtype::BF16, &[3]);
    model.add("model.layers.3.self_attn.rotary_emb.inv_freq", Dtype::F32, &[2]);
    assert!(model.open().is_ok());
    model.config.tie_word_embeddings = true;
    assert!(model.open().is_ok());
    model.remove("lm_head.weight");
    assert!(model.open().is_ok());
    model.config.tie_word_embeddings = false;
    model.refused(&["lm_head.weight: missing, expected [512, 64]"]);
}

// === hostile checkpoints ===

#[test]
fn missing_tensor_is_named() {
    let mut model = Damaged::plain();
    model.remove(QUERY_WEIGHT);
    model.refused(&[QUERY_WEIGHT, "missing", "[128, 64]"]);
}

#[test]
fn extra_tensor_is_named() {
    let mut model = Damaged::plain();
    model.add("model.layers.4.input_layernorm.weight", Dtype::BF16, &[64]);
    model.refused(&["model.layers.4.input_layernorm.weight in model.safetensors: not expected"]);
}

#[test]
fn wrong_shape_is_named() {
    let mut model = Damaged::plain();
    model.tensor(QUERY_WEIGHT).shape = vec![64, 128];
    model.refused(&[QUERY_WEIGHT, "model.safetensors", "found shape [64, 128], expected [128, 64]"]);
}

#[test]
fn wrong_type_is_named() {
    let mut model = Damaged::plain();
    let tensor = model.tensor("model.norm.weight");
    tensor.dtype = Dtype::I16;
    model.refused(&["model.norm.weight", "found type I16, expected F32, BF16, F16"]);
}

#[test]
fn all_differences_are_in_one_error() {
    let mut model = Damaged::plain();
    model.remove("model.norm.weight");
    model.tensor(QUERY_WEIGHT).shape = vec![128 * 64];
    model.add("foreign", Dtype::F32, &[1]);
    model.refused(&["3 problems", "model.norm.weight", QUERY_WEIGHT, "foreign"]);
}

#[test]
fn long_lists_are_cut() {
    let mut model = Damaged::plain();
    model.tensors.retain(|tensor| !tensor.name.contains("experts"));
    model.refused(&["96 problems", "and 76 more"]);
}

#[test]
fn fused_experts_are_explained_first() {
    let mut model = Damaged::plain();
    model.tensors.retain(|tensor| !tensor.name.contains("experts"));
    model.add("model.layers.0.mlp.experts.gate_up_proj", Dtype::BF16, &[8, 64, 64]);
    let error = model.open().unwrap_err().to_string();
    let first = error.lines().nth(1).unwrap();
    assert!(first.contains("experts.gate_up_proj") && first.contains("save_pretrained"), "{error}");
}

#[test]
fn nan_in_the_base_is_named_with_its_place() {
    let mut model = Damaged::plain();
    model.tensor(QUERY_WEIGHT).data[2 * 77..][..2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    model.refused_linear(QUERY, &["model.safetensors", &format!("{QUERY_WEIGHT}[77]"), "NaN"]);
}

#[test]
fn infinite_norm_is_named_with_its_place() {
    let mut model = Damaged::plain();
    model.tensor("model.norm.weight").data[..2].copy_from_slice(&half::bf16::INFINITY.to_le_bytes());
    let error = model.open().unwrap().vector("model.norm.weight").unwrap_err();
    contains(&error, &["model.norm.weight[0]: found inf"]);
}

#[test]
fn folder_without_weights_is_named() {
    let model = Damaged::plain();
    let error = Checkpoint::open(model.dir(), &model.config).unwrap_err();
    contains(&error, &["no weights", "model.safetensors.index.json"]);
}

// === hostile headers ===

/// Writes these bytes as the checkpoint and expects a refusal.
#[track_caller]
fn refused_bytes(bytes: &[u8], texts: &[&str]) {
    let model = Damaged::plain();
    std::fs::write(model.dir().join("model.safetensors"), bytes).unwrap();
    let error = Checkpoint::open(model.dir(), &model.config).unwrap_err();
    contains(&error, texts);
    contains(&error, &["model.safetensors"]);
}

fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(vec![0; data]);
    bytes
}

#[test]
fn empty_file_is_refused() {
    refused_bytes(b"", &["found 0 bytes"]);
}

#[test]
fn header_longer_than_the_file_is_refused() {
    refused_bytes(&[1000u64.to_le_bytes().as_slice(), b"{}"].concat(), &["length of 1000 bytes, expected at most 2"]);
}

#[test]
fn huge_header_length_is_refused() {
    refused_bytes(&[u64::MAX.to_le_bytes().as_slice(), b"{}"].concat(), &["18446744073709551615"]);
}

#[test]
fn header_that_is_no_json_is_refused() {
    refused_bytes(&with_header("{\"a\": nonsense}", 0), &["not a valid safetensors header"]);
}

#[test]
fn overlapping_tensors_are_refused() {
    let header =
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    refused_bytes(&with_header(header, 6), &["header", "`b`"]);
}

#[test]
fn a_hole_between_tensors_is_refused() {
    let header =
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[8,12]}}"#;
    refused_bytes(&with_header(header, 12), &["header", "`b`"]);
}

#[test]
fn negative_offsets_are_refused() {
    let header = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[-4,0]}}"#;
    refused_bytes(&with_header(header, 4), &["header"]);
}

#[test]
fn overflowing_shape_is_refused() {
    let side = u64::MAX / 2;
    let header = format!(r#"{{"a":{{"dtype":"F32","shape":[{side},{side}],"data_offsets":[0,4]}}}}"#);
    refused_bytes(&with_header(&header, 4), &["header"]);
}

#[test]
fn offsets_that_do_not_fit_the_shape_are_refused() {
    let header = r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}}"#;
    refused_bytes(&with_header(header, 4), &["header"]);
}

#[test]
fn unknown_type_is_refused() {
    let header = r#"{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#;
    refused_bytes(&with_header(header, 4), &["F31"]);
}

#[test]
fn truncated_data_is_refused() {
    let header = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    refused_bytes(&with_header(header, 3), &["truncated", "4 bytes of tensors, found 3"]);
    refused_bytes(&with_header(header, 5), &["followed by foreign bytes", "4 bytes of tensors, found 5"]);
}

// === hostile indexes ===

fn halves(model: &Damaged) -> (Vec<Raw>, Vec<Raw>) {
    let (first, second) = model.tensors.split_at(model.tensors.len() / 2);
    (first.to_vec(), second.to_vec())
}

#[track_caller]
fn refused_index(edit: impl Fn(&mut serde_json::Value), texts: &[&str]) {
    let model = Damaged::plain();
    let (first, second) = halves(&model);
    write_shards(&model, &first, &second, edit);
    contains(&Checkpoint::open(model.dir(), &model.config).unwrap_err(), texts);
}

#[test]
fn index_may_not_leave_the_folder() {
    for path in [
        "../one.safetensors",
        "/etc/one.safetensors",
        "sub/one.safetensors",
        "..\\one.safetensors",
        ".",
        "c:x.safetensors",
    ] {
        refused_index(
            |index| index["weight_map"]["model.norm.weight"] = path.into(),
            &["model.safetensors.index.json", "weight_map.model.norm.weight", "in this folder"],
        );
    }
}

#[test]
fn index_with_a_number_for_a_file_is_refused() {
    refused_index(|index| index["weight_map"]["x"] = 3.into(), &["weight_map.x: found 3"]);
}

#[test]
fn index_without_a_map_is_refused() {
    refused_index(|index| index["weight_map"] = "all".into(), &["weight_map: found \"all\""]);
    refused_index(|index| index["weight_map"] = serde_json::json!({}), &["weight_map: found {}"]);
}

#[test]
fn missing_shard_is_named() {
    refused_index(|index| index["weight_map"]["x"] = "three.safetensors".into(), &["cannot open", "three.safetensors"]);
}

#[test]
fn tensor_that_its_shard_lacks_is_named() {
    refused_index(
        |index| index["weight_map"]["x"] = "one.safetensors".into(),
        &["index.json", "x: expected in one.safetensors, found in no shard"],
    );
}

#[test]
fn tensor_in_another_shard_than_the_index_says_is_named() {
    let model = Damaged::plain();
    let (first, second) = halves(&model);
    let name = first[0].name.clone();
    refused_index(
        |index| index["weight_map"][&name] = "two.safetensors".into(),
        &[&format!("{name}: expected in two.safetensors, found in"), "one.safetensors"],
    );
    drop(second);
}

#[test]
fn tensor_in_two_shards_is_named() {
    let model = Damaged::plain();
    let (first, mut second) = halves(&model);
    second.push(first[0].clone());
    write_shards(&model, &first, &second, |_| ());
    let error = Checkpoint::open(model.dir(), &model.config).unwrap_err();
    contains(&error, &[&first[0].name, "found in both", "one.safetensors", "two.safetensors"]);
}

#[test]
fn truncated_shard_is_named() {
    let model = Damaged::plain();
    let (first, second) = halves(&model);
    write_shards(&model, &first, &second, |_| ());
    let path = model.dir().join("two.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    contains(&Checkpoint::open(model.dir(), &model.config).unwrap_err(), &["two.safetensors", "truncated"]);
}

// === hostile quantised weights ===

fn set_state(model: &mut Damaged, json: &str) {
    let state = model.tensor(&format!("{QUERY_WEIGHT}.quant_state.bitsandbytes__nf4"));
    state.shape = vec![json.len()];
    state.data = json.as_bytes().to_vec();
}

#[track_caller]
fn refused_state(change: &str, texts: &[&str]) {
    let valid = r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [128, 64],
        "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.03}"#;
    let mut state: serde_json::Value = serde_json::from_str(valid).unwrap();
    let mut model = Damaged::quantised();
    set_state(&mut model, valid);
    assert!(model.open().unwrap().linear(QUERY, &BasePrecision::Full).is_ok());
    for (name, value) in serde_json::from_str::<serde_json::Map<_, _>>(change).unwrap() {
        state[name] = value;
    }
    set_state(&mut model, &state.to_string());
    model.refused_linear(QUERY, &[&[QUERY_WEIGHT, "quant_state", "model.safetensors"], texts].concat());
}

#[test]
fn wrong_quant_state_is_named_field_by_field() {
    refused_state(r#"{"quant_type": "fp4"}"#, &["quant_type: found \"fp4\", expected \"nf4\""]);
    refused_state(r#"{"blocksize": 128}"#, &["blocksize: found 128, expected an integer in 64..=64"]);
    refused_state(r#"{"nested_blocksize": null}"#, &["nested_blocksize: found nothing"]);
    refused_state(r#"{"shape": [64, 128]}"#, &["shape: found [64,128], expected [128, 64]"]);
    refused_state(r#"{"shape": [-1, null]}"#, &["shape: found [-1,null]"]);
    refused_state(r#"{"nested_offset": "NaN"}"#, &["nested_offset: found \"NaN\""]);
    refused_state(r#"{"nested_offset": 1e300}"#, &["nested_offset: found 1e+300"]);
    refused_state(r#"{"nested_offset": null}"#, &["nested_offset: found nothing"]);
    refused_state(r#"{"nested_dtype": "bfloat16"}"#, &["nested_dtype: found \"bfloat16\""]);
}

#[test]
fn quant_state_that_is_no_json_is_refused() {
    let mut model = Damaged::quantised();
    set_state(&mut model, r#"{"nested_offset": NaN}"#);
    model.refused_linear(QUERY, &["quant_state", "not valid JSON"]);
    let state = model.tensor(&format!("{QUERY_WEIGHT}.quant_state.bitsandbytes__nf4"));
    state.data[0] = 0xFF;
    model.refused_linear(QUERY, &["quant_state", "not UTF-8"]);
}

#[test]
fn oversized_quant_state_is_refused_unread() {
    let mut model = Damaged::quantised();
    set_state(&mut model, &" ".repeat(5000));
    model.refused(&["quant_state", "5000 bytes, expected at most 4096"]);
}

#[test]
fn every_side_tensor_must_be_there() {
    for suffix in ["absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4"] {
        let mut model = Damaged::quantised();
        model.remove(&format!("{QUERY_WEIGHT}.{suffix}"));
        model.refused(&[&format!("{QUERY_WEIGHT}.{suffix}: missing, expected beside the quantised weight")]);
    }
}

#[test]
fn side_tensors_of_wrong_length_are_named() {
    for (suffix, expected) in
        [("absmax", "[128]"), ("quant_map", "[16]"), ("nested_quant_map", "[256]"), ("nested_absmax", "[1]")]
    {
        let mut model = Damaged::quantised();
        let tensor = model.tensor(&format!("{QUERY_WEIGHT}.{suffix}"));
        let width = tensor.dtype.bitsize() / 8;
        tensor.shape[0] += 1;
        tensor.data.extend(vec![0; width]);
        model.refused(&[&format!("{QUERY_WEIGHT}.{suffix} in model.safetensors"), &format!("expected {expected}")]);
    }
}

#[test]
fn other_code_tables_are_refused() {
    for suffix in ["quant_map", "nested_quant_map"] {
        let mut model = Damaged::quantised();
        model.tensor(&format!("{QUERY_WEIGHT}.{suffix}")).data[4] ^= 1;
        model.refused_linear(QUERY, &[&format!("{QUERY_WEIGHT}.{suffix}[1]: found"), "as bitsandbytes writes it"]);
    }
}

#[test]
fn nan_among_scales_is_named() {
    let mut model = Damaged::quantised();
    model.tensor(&format!("{QUERY_WEIGHT}.nested_absmax")).data.copy_from_slice(&f32::NAN.to_le_bytes());
    model.refused_linear(QUERY, &[&format!("{QUERY_WEIGHT}.nested_absmax[0]: found NaN")]);
}

#[test]
fn packed_weight_of_wrong_length_is_named() {
    let mut model = Damaged::quantised();
    let tensor = model.tensor(QUERY_WEIGHT);
    tensor.shape[0] -= 1;
    tensor.data.pop();
    model.refused(&[QUERY_WEIGHT, "found shape [4095, 1], expected [4096, 1]"]);
}

#[test]
fn fp8_without_its_config_is_explained() {
    let mut model = Damaged::plain();
    make_fp8(&mut model, Dtype::F32, 1f32.to_le_bytes().to_vec());
    model.config.checkpoint = CheckpointFormat::Plain;
    model.refused(&[QUERY_WEIGHT, "quant_method \"fp8\""]);
}

#[test]
fn fp8_without_scales_is_named() {
    let mut model = Damaged::plain();
    make_fp8(&mut model, Dtype::F32, 1f32.to_le_bytes().to_vec());
    model.remove(&format!("{QUERY_WEIGHT}_scale_inv"));
    model.refused(&[&format!("{QUERY_WEIGHT}_scale_inv: missing")]);
}

#[test]
fn fp8_scales_for_other_blocks_are_named() {
    let mut model = Damaged::plain();
    make_fp8(&mut model, Dtype::F32, 1f32.to_le_bytes().to_vec());
    model.config.checkpoint = CheckpointFormat::Fp8 { block: [64, 64] };
    model.refused(&[&format!("{QUERY_WEIGHT}_scale_inv"), "found shape [1, 1], expected [2, 1]"]);
}

#[test]
fn fp8_nan_is_named_with_its_place() {
    let mut model = Damaged::plain();
    make_fp8(&mut model, Dtype::F32, 1f32.to_le_bytes().to_vec());
    model.tensor(QUERY_WEIGHT).data[5] = 0x7F;
    model.refused_linear(QUERY, &[&format!("{QUERY_WEIGHT}[5]: found NaN")]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_files_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), honest_length in any::<bool>()) {
        let model = Damaged { config: small_config(), tensors: Vec::new(), folder: tempfile::tempdir().unwrap() };
        let bytes = if honest_length { with_header(&String::from_utf8_lossy(&bytes), 8) } else { bytes };
        std::fs::write(model.dir().join("model.safetensors"), bytes).unwrap();
        prop_assert!(Checkpoint::open(model.dir(), &model.config).is_err());
    }

    #[test]
    fn mutated_headers_are_refused_or_read_in_bounds(
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let header = r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"U8","shape":[3],"data_offsets":[16,19]}}"#;
        let mut bytes = with_header(header, 19);
        for (place, byte) in places {
            let place = place.index(8 + header.len());
            bytes[place] = byte;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        std::fs::write(&path, bytes).unwrap();
        if let Ok(file) = SafetensorsFile::open(path) {
            for (name, stored) in file.tensors() {
                let mut data = vec![0; stored.bytes];
                prop_assert!(file.read_at(&name, &stored, 0, &mut data).is_ok());
            }
        }
    }
}

fn small_config() -> ModelConfig {
    ModelConfig::read(&fixtures().join("qwen3_next_s1/base")).unwrap()
}
