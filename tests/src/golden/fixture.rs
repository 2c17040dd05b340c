//! Reading a fixture directory: the base model, the batches and the numbers the Python stack got for them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use brightrun_trainer::batch::{MicroBatch, Sequence};
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

/// `golden.json`, as far as it is compared.
#[derive(Debug, Deserialize)]
pub struct Golden {
    /// The base model alone.
    pub base: Base,
    /// The LoRA run.
    pub lora: LoraRuns,
    /// The QLoRA runs by name of their quantisation rule.
    #[serde(default)]
    pub nf4: BTreeMap<String, Nf4Run>,
    /// How the runs were optimised.
    pub optimizer: OptimizerSettings,
}

/// Numbers of the base model.
#[derive(Debug, Deserialize)]
pub struct Base {
    /// Loss of every batch.
    pub loss: Vec<f64>,
    /// Load-balancing loss of the first batch, padding left out.
    pub aux_loss_masked: Option<f64>,
}

/// The LoRA runs.
#[derive(Debug, Deserialize)]
pub struct LoraRuns {
    /// The modules PEFT adapted.
    pub adapted_modules: Vec<String>,
    /// Unhit experts are skipped.
    pub train: Series,
    /// Unhit experts get zero gradients.
    pub train_zero_filled: Series,
}

/// One training run.
#[derive(Debug, Deserialize)]
pub struct Series {
    /// Loss of every step.
    pub loss: Vec<f64>,
    /// Norm before clipping of every step.
    pub grad_norm: Vec<f64>,
    /// Loss of every batch after the last step.
    pub final_loss: Vec<f64>,
    /// Smallest difference between the probabilities of a chosen and a not chosen expert, in every step.
    #[serde(default)]
    pub router_margin: Vec<f64>,
}

/// One QLoRA run.
#[derive(Debug, Deserialize)]
pub struct Nf4Run {
    /// Modules left in full precision.
    pub llm_int8_skip_modules: Vec<String>,
    /// Loss of every batch without adapter.
    pub base_loss: Vec<f64>,
    /// Unhit experts are skipped.
    pub train: Series,
    /// Unhit experts get zero gradients.
    pub train_zero_filled: Option<Series>,
}

/// AdamW's settings.
#[derive(Debug, Deserialize)]
pub struct OptimizerSettings {
    /// Learning rate, constant.
    pub lr: f64,
    /// Both decays.
    pub betas: [f64; 2],
    /// Added to the root.
    pub eps: f64,
    /// Decoupled decay.
    pub weight_decay: f64,
    /// Largest gradient norm.
    pub clip: f64,
    /// Number of steps.
    pub steps: usize,
}

#[derive(Debug, Deserialize)]
struct Inputs {
    batches: Vec<RawBatch>,
}

#[derive(Debug, Deserialize)]
struct RawBatch {
    input_ids: Vec<Vec<u32>>,
    attention_mask: Vec<Vec<u8>>,
    labels: Vec<Vec<i64>>,
}

/// A fixture directory.
#[derive(Debug)]
pub struct Fixture {
    /// Where it is.
    pub dir: PathBuf,
    /// Its numbers.
    pub golden: Golden,
    /// Its batches; rows are documents, right padding included.
    pub batches: Vec<MicroBatch>,
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a fixture file", path.display()))
}

impl RawBatch {
    fn batch(&self) -> Result<MicroBatch> {
        let rows = self.input_ids.iter().zip(&self.attention_mask).zip(&self.labels);
        let sequences: Vec<Sequence> = rows
            .map(|((tokens, mask), labels)| Sequence {
                tokens: tokens.clone(),
                labels: labels.clone(),
                valid: mask.iter().filter(|m| **m == 1).count(),
            })
            .collect();
        Ok(MicroBatch::from_sequences(&sequences)?)
    }
}

impl Fixture {
    /// Reads everything but the tensors.
    pub fn open(dir: &Path) -> Result<Self> {
        let inputs: Inputs = json(&dir.join("inputs.json"))?;
        let batches = inputs.batches.iter().map(RawBatch::batch).collect::<Result<_>>()?;
        Ok(Self { dir: dir.to_path_buf(), golden: json(&dir.join("golden.json"))?, batches })
    }

    /// The base model's folder.
    pub fn base(&self) -> PathBuf {
        self.dir.join("base")
    }

    /// The same model as bitsandbytes wrote it, where the fixture has it.
    pub fn bnb4bit(&self) -> Option<PathBuf> {
        let name = format!("{}_bnb4bit", self.dir.file_name()?.to_string_lossy());
        Some(self.dir.with_file_name(name)).filter(|dir| dir.is_dir())
    }

    /// The tensors of one of its files.
    pub fn tensors(&self, name: &str) -> Result<Tensors> {
        let path = self.dir.join(name);
        Ok(Tensors(candle_core::safetensors::load(&path, &Device::Cpu).with_context(|| path.display().to_string())?))
    }
}

/// Named tensors.
#[derive(Debug)]
pub struct Tensors(std::collections::HashMap<String, Tensor>);

impl Tensors {
    /// The tensors whose names begin with `prefix`, which is cut off.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        self.0.iter().filter_map(move |(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)))
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A tensor's values as `f32`.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.0.get(name).with_context(|| format!("the fixture has no {name}"))?;
        Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    /// A byte tensor's values.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let tensor = self.0.get(name).with_context(|| format!("the fixture has no {name}"))?;
        Ok(tensor.flatten_all()?.to_vec1()?)
    }
}
