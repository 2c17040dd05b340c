//! A fixture that tests damage before they open it.

mod damaged;
mod headers;
mod indexes;
mod quantised;
mod reading;

use std::path::{Path, PathBuf};

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
        let mut tensors: Vec<Raw> = file.tensors().into_iter().map(raw).collect();
        tensors.sort_by(|left, right| left.name.cmp(&right.name));
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

/// Turns one linear into FP8 with the given scale: every value becomes 1.5 (exponent 7, mantissa 100).
fn make_fp8(model: &mut Damaged, scale_dtype: Dtype, scale: Vec<u8>) {
    model.config.checkpoint = CheckpointFormat::Fp8 { block: [128, 128] };
    let tensor = model.tensor(QUERY_WEIGHT);
    tensor.dtype = Dtype::F8_E4M3;
    tensor.data = vec![0x3C; 128 * 64];
    let name = format!("{QUERY_WEIGHT}_scale_inv");
    model.tensors.push(Raw { name, dtype: scale_dtype, shape: vec![1, 1], data: scale });
}

fn set_state(model: &mut Damaged, json: &str) {
    let state = model.tensor(&format!("{QUERY_WEIGHT}.quant_state.bitsandbytes__nf4"));
    state.shape = vec![json.len()];
    state.data = json.as_bytes().to_vec();
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
