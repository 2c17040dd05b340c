//! A merged model is base plus adapter, whole or absent, and everything that nobody changed is bit for bit the base's.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use brightrun_kernels::Documents;
use brightrun_tests::toy::{Shape, Toy};
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::config::{Family, ModelConfig};
use brightrun_trainer::lora::{self, AdapterDtype, AdapterFormat, Dialect, LoraOptions, LoraPlan, TargetSet};
use brightrun_trainer::merge::{MAX_SHARD_BYTES, MergeSpec, MergeSummary, MergedDtype, merge};
use brightrun_trainer::model::Model;
use brightrun_trainer::weights::{BasePrecision, Checkpoint, expected_tensors};
use half::bf16;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn spec(base: &Path, adapter: &Path, output: &Path, dtype: MergedDtype) -> MergeSpec {
    let [base_dir, adapter_dir, output_dir] = [base, adapter, output].map(Path::to_owned);
    MergeSpec { base_dir, adapter_dir, output_dir, dtype, max_shard_bytes: MAX_SHARD_BYTES }
}

fn merged(spec: &MergeSpec) -> MergeSummary {
    merge(spec, &|done, total| assert!(done <= total)).unwrap()
}

fn load(dir: &Path, adapter: Option<&Path>) -> Model {
    let config = ModelConfig::read(dir).unwrap();
    let checkpoint = Checkpoint::open(dir, &config).unwrap();
    let adapters = adapter.map_or_else(Adapters::none, |adapter| {
        let (plan, tensors) = lora::read(adapter, &config).unwrap();
        Adapters::from_tensors(&config, &plan, &tensors).unwrap()
    });
    Model::load(&config, &checkpoint, &BasePrecision::Full, &adapters).unwrap()
}

fn logits(model: &Model) -> Vec<f32> {
    let tokens: Vec<u32> = (0..60).map(|i| (i * 37 + 11) % model.config().vocab_size as u32).collect();
    let pass = model.pass(&Documents::from_lengths(&[tokens.len()]).unwrap(), None).unwrap().without_graph();
    let mut hidden = model.embed(&tokens).unwrap();
    for layer in model.layers() {
        hidden = layer.forward(&hidden, &pass).unwrap().hidden;
    }
    model.logits(&hidden, &pass).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// What logits may differ by. Of Qwen3-Next it is a share of the largest one: DeltaNet makes more of rounding, so that
/// base and adapter read token by token already differ by up to 3e-5 from the same read at once.
const TOLERANCE: f32 = 1e-5;

#[track_caller]
fn assert_close(difference: f32, expected: &[f32], family: Family, what: &str) {
    let largest = expected.iter().fold(0.0f32, |most, logit| most.max(logit.abs()));
    let scale = if family == Family::Qwen3Next { largest } else { 1.0 };
    assert!(difference <= TOLERANCE * scale, "{family:?} {what}: {difference:e}, largest logit {largest}");
}

/// Every tensor of a model's folder with its type, shape and bytes.
fn tensors(dir: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut all = BTreeMap::new();
    for file in files.filter(|path| path.extension().is_some_and(|end| end == "safetensors")) {
        let bytes = fs::read(file).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            all.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
        }
    }
    all
}

fn options(rank: usize, use_rslora: bool, targets: TargetSet, expert_rank: Option<usize>) -> LoraOptions {
    LoraOptions { rank, alpha: 6.0, dropout: 0.0, use_rslora, targets, expert_rank }
}

/// An adapter with random values for a toy, on disk.
fn write_adapter(toy: &Toy, dir: &Path, options: &LoraOptions, dialect: Dialect) -> LoraPlan {
    let plan = lora::plan(&toy.config, options).unwrap();
    let tensors = toy.adapters(&plan, 9).unwrap().tensors().unwrap();
    let format = AdapterFormat { dialect, dtype: AdapterDtype::F32 };
    lora::write(dir, &toy.config, &plan, &tensors, format, "toy").unwrap();
    plan
}

/// All families, both dialects of adapters, all kinds of targets and scales.
#[test]
fn merged_in_f32_is_base_plus_adapter() {
    for family in Family::ALL {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        fs::create_dir(&base).unwrap();
        let toy = Toy::write(&base, &Shape { layers: 4, ..Shape::tiny(family) }, 3).unwrap();
        let cases = [
            (options(4, false, toy.every_linear(), Some(2)), Dialect::PerExpert),
            (options(4, true, TargetSet::All, None), Dialect::PerExpert),
            (options(3, true, TargetSet::All, Some(5)), Dialect::Fused),
            (options(2, false, TargetSet::Classic, Some(2)), Dialect::Fused),
            (options(8, false, TargetSet::Attention, None), Dialect::PerExpert),
            (options(1, false, TargetSet::Default, None), Dialect::PerExpert),
        ];
        for (number, (options, dialect)) in cases.into_iter().enumerate() {
            let [adapter, output] = ["adapter", "merged"].map(|name| folder.path().join(format!("{name}-{number}")));
            let plan = write_adapter(&toy, &adapter, &options, dialect);
            let summary = merged(&spec(&base, &adapter, &output, MergedDtype::F32));
            assert_eq!(summary.merged, plan.modules.len());
            assert_eq!(summary.copied + summary.merged, summary.tensors);
            let expected = logits(&load(&base, Some(&adapter)));
            let difference = largest_difference(&logits(&load(&output, None)), &expected);
            assert_close(difference, &expected, family, &format!("{options:?} {dialect:?}"));
            let changed = largest_difference(&logits(&load(&base, None)), &expected);
            assert!(changed > 1e-2, "{family:?} {options:?}: the adapter says nothing ({changed:e})");
        }
    }
}

/// The trained adapters of the fixtures, on their bf16 bases and on those that bitsandbytes quantised.
#[test]
fn fixtures_merged_from_bf16_and_from_4_bits_are_base_plus_adapter() {
    for family in Family::ALL {
        let name = format!("{}_s1", family.model_type());
        for (base, adapter) in
            [(fixture(&name).join("base"), "lora_final"), (fixture(&format!("{name}_bnb4bit")), "nf4_lora_final")]
        {
            let folder = tempfile::tempdir().unwrap();
            let (adapter, output) = (fixture(&name).join(adapter), folder.path().join("merged"));
            let summary = merged(&spec(&base, &adapter, &output, MergedDtype::F32));
            let expected = logits(&load(&base, Some(&adapter)));
            let difference = largest_difference(&logits(&load(&output, None)), &expected);
            assert_close(difference, &expected, family, &base.display().to_string());
            let config = |dir: &Path| fs::read_to_string(dir.join("config.json")).unwrap();
            if base.ends_with("base") {
                assert_eq!(config(&output), config(&base));
                continue;
            }
            // Only the quantisation is gone, and what is left is in its order.
            let mut expected: Value = serde_json::from_str(&config(&base)).unwrap();
            expected.as_object_mut().unwrap().shift_remove("quantization_config").unwrap();
            assert_eq!(config(&output), format!("{expected:#}\n"));
            assert!(summary.notes.iter().any(|note| note.contains("quantization_config")), "{:?}", summary.notes);
        }
    }
}

/// Every merged value is the sum in `f64`, but for the rounding of a short sum in `f32`.
#[test]
fn merged_values_are_the_sums() {
    let base = fixture("qwen3_next_s1/base");
    let adapter = fixture("qwen3_next_s1/lora_final");
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("merged");
    merged(&spec(&base, &adapter, &output, MergedDtype::F32));
    let (plan, adapters) = lora::read(&adapter, &ModelConfig::read(&base).unwrap()).unwrap();
    let (before, after) = (tensors(&base), tensors(&output));
    for module in &plan.modules {
        let name = format!("{}.weight", module.path);
        let (old, new) = (before[&name].2.as_chunks().0, after[&name].2.as_chunks().0);
        let (a, b) = (&adapters[&module.path].a.values, &adapters[&module.path].b.values);
        for (index, (old, new)) in old.iter().zip(new).enumerate() {
            let (row, column) = (index / module.inputs, index % module.inputs);
            let terms = (0..module.rank)
                .map(|k| module.scale * f64::from(b[row * module.rank + k]) * f64::from(a[k * module.inputs + column]));
            let old = f64::from(bf16::from_le_bytes(*old).to_f32());
            let (sum, size) = terms.fold((old, old.abs()), |(sum, size), term| (sum + term, size + term.abs()));
            let error = (f64::from(f32::from_le_bytes(*new)) - sum).abs();
            let room = size * f64::from(f32::EPSILON) * (module.rank + 2) as f64;
            assert!(error <= room, "{name}[{index}]: {error:e}, room {room:e}");
        }
    }
}

/// A base with FP8 weights, one of them in the part that the model does not read.
#[test]
fn an_fp8_base_becomes_plain() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    fs::create_dir(&base).unwrap();
    let toy = Toy::write(&base, &Shape { layers: 1, ..Shape::tiny(Family::Qwen3Next) }, 3).unwrap();
    let adapter = folder.path().join("adapter");
    write_adapter(&toy, &adapter, &options(2, false, TargetSet::All, None), Dialect::PerExpert);
    let mut all = tensors(&base);
    for name in ["model.layers.0.mlp.experts.0.up_proj.weight", "mtp.fc.weight"] {
        // 0x3c is 1.5; twice that with the scale.
        all.insert(name.to_owned(), (Dtype::F8_E4M3, vec![16, 32], vec![0x3c; 16 * 32]));
        let scales = [2f32; 2].map(f32::to_le_bytes).concat();
        all.insert(format!("{name}_scale_inv"), (Dtype::F32, vec![1, 2], scales));
    }
    let views = all.iter().map(|(name, (dtype, shape, bytes))| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &base.join("model.safetensors")).unwrap();
    let path = base.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["quantization_config"] =
        serde_json::json!({ "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 16] });
    fs::write(&path, config.to_string()).unwrap();

    let output = folder.path().join("merged");
    let summary = merged(&spec(&base, &adapter, &output, MergedDtype::F32));
    let after = tensors(&output);
    assert!(after.keys().all(|name| !name.ends_with("_scale_inv")));
    assert_eq!(after["mtp.fc.weight"].2, [3f32.to_le_bytes(); 16 * 32].concat());
    assert!(summary.notes.iter().any(|note| note.contains("FP8")), "{:?}", summary.notes);
    let expected = logits(&load(&base, Some(&adapter)));
    let difference = largest_difference(&logits(&load(&output, None)), &expected);
    assert_close(difference, &expected, Family::Qwen3Next, "from FP8");
}

#[test]
fn bf16_is_rounded_once_and_what_is_not_adapted_is_copied() {
    let base = fixture("qwen3_next_s1/base");
    let adapter = fixture("qwen3_next_s1/lora_final");
    let folder = tempfile::tempdir().unwrap();
    let [narrow, wide] = ["bf16", "f32"].map(|name| folder.path().join(name));
    let summary = merged(&spec(&base, &adapter, &narrow, MergedDtype::Bf16));
    merged(&spec(&base, &adapter, &wide, MergedDtype::F32));
    let config = ModelConfig::read(&base).unwrap();
    let (plan, _) = lora::read(&adapter, &config).unwrap();
    let (before, narrow, wide) = (tensors(&base), tensors(&narrow), tensors(&wide));
    assert!(before.keys().eq(narrow.keys()) && before.keys().eq(wide.keys()));
    let mut copied = 0;
    for (name, (dtype, shape, bytes)) in &narrow {
        assert_eq!((dtype, shape), (&Dtype::BF16, &before[name].1));
        if plan.modules.iter().any(|module| name.strip_suffix(".weight") == Some(&module.path)) {
            let (values, _) = wide[name].2.as_chunks();
            let rounded: Vec<u8> =
                values.iter().flat_map(|value| bf16::from_f32(f32::from_le_bytes(*value)).to_le_bytes()).collect();
            assert!(*bytes == rounded && *bytes != before[name].2, "{name}");
        } else {
            assert!(*bytes == before[name].2, "{name} is not what it was");
            copied += 1;
        }
    }
    assert_eq!((summary.copied, summary.merged), (copied, plan.modules.len()));
    assert!(copied > 0);
}

#[test]
fn files_are_cut_where_they_are_full_and_the_index_says_what_is_where() {
    let base = fixture("qwen3_moe_s1/base");
    let adapter = fixture("qwen3_moe_s1/lora_final");
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("a/b/merged");
    let small = MergeSpec { max_shard_bytes: 60_000, ..spec(&base, &adapter, &output, MergedDtype::Bf16) };
    let summary = merged(&small);
    assert!(summary.shards > 3, "{summary:?}");
    let index: Value = serde_json::from_slice(&fs::read(output.join("model.safetensors.index.json")).unwrap()).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    let expected = expected_tensors(&ModelConfig::read(&base).unwrap());
    assert_eq!(map.len(), expected.len());
    assert_eq!(index["metadata"]["total_size"], summary.bytes);
    for (name, file) in map {
        let path = output.join(file.as_str().unwrap());
        let bytes = fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert!(file.tensor(name).is_ok());
        assert!(bytes.len() <= 60_000 || file.len() == 1, "{}: {} bytes", path.display(), bytes.len());
    }
    let whole = folder.path().join("whole");
    merged(&spec(&base, &adapter, &whole, MergedDtype::Bf16));
    assert!(tensors(&output) == tensors(&whole));
    assert!(whole.join("model-00001-of-00001.safetensors").is_file());
}

/// What the model does not know goes along as it is; other files of the base do, or stay, by their names.
#[test]
fn tensors_and_files_that_the_model_does_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    fs::create_dir(&base).unwrap();
    let toy = Toy::write(&base, &Shape::tiny(Family::Qwen3Next), 3).unwrap();
    let adapter = folder.path().join("adapter");
    write_adapter(&toy, &adapter, &options(2, false, TargetSet::Attention, None), Dialect::PerExpert);
    let mut all = tensors(&base);
    all.insert("mtp.fc.weight".into(), (Dtype::F32, vec![3, 1], [1f32, 2.0, 3.0].map(f32::to_le_bytes).concat()));
    all.insert("mtp.odd".into(), (Dtype::I64, vec![1], vec![0; 8]));
    let views = all.iter().map(|(name, (dtype, shape, bytes))| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &base.join("model.safetensors")).unwrap();
    for name in ["tokenizer.json", "chat_template.jinja", "README.md", "training.log"] {
        fs::write(base.join(name), name).unwrap();
    }
    let output = folder.path().join("merged");
    // An empty folder may be there already.
    fs::create_dir(&output).unwrap();
    let summary = merged(&spec(&base, &adapter, &output, MergedDtype::Bf16));
    assert_eq!(tensors(&output)["mtp.fc.weight"], all["mtp.fc.weight"]);
    assert_eq!(summary.files, ["config.json", "tokenizer.json", "chat_template.jinja"]);
    assert!(summary.notes.iter().any(|note| note.contains("mtp.odd")), "{:?}", summary.notes);
    assert!(summary.notes.iter().any(|note| note.contains("--dtype f32 keeps them")), "{:?}", summary.notes);
    assert!(!output.join("README.md").exists() && !output.join("training.log").exists());
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_merge_that_fails_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    fs::create_dir(&base).unwrap();
    let toy = Toy::write(&base, &Shape::tiny(Family::Qwen3Moe), 3).unwrap();
    let (adapter, output) = (folder.path().join("adapter"), folder.path().join("merged"));
    let plan = write_adapter(&toy, &adapter, &options(2, false, TargetSet::Attention, None), Dialect::PerExpert);
    let failing = |what: &str| {
        let error = merge(&spec(&base, &adapter, &output, MergedDtype::Bf16), &|_, _| {}).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        error
    };
    // Of a diverged adapter, the sum is too large for the type.
    let mut tensors = toy.adapters(&plan, 9).unwrap().tensors().unwrap();
    let module = &plan.modules.last().unwrap().path;
    tensors.get_mut(module).unwrap().b.values.fill(3e38);
    let format = AdapterFormat { dialect: Dialect::PerExpert, dtype: AdapterDtype::F32 };
    lora::write(&adapter, &toy.config, &plan, &tensors, format, "toy").unwrap();
    assert!(failing("does not fit the type").contains(module.as_str()));
    assert_eq!(names(folder.path()), ["adapter", "base"]);

    fs::create_dir(&output).unwrap();
    fs::write(output.join("mine.txt"), "mine").unwrap();
    failing("is not empty; name a folder that does not exist yet");
    assert_eq!(names(&output), ["mine.txt"]);
    fs::remove_dir_all(&output).unwrap();
    fs::write(&output, "a file").unwrap();
    failing("merged");
    assert_eq!(fs::read(&output).unwrap(), b"a file");
}
