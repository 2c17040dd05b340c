//! An adapter merged into its base: `W' = W + scale · B·A`, computed in `f32` and rounded once, as a plain model that any
//! program loads.
//!
//! One tensor is in memory at a time (of routed experts, one expert's); of the adapter, all of it. Everything is written
//! into a temporary folder beside the output and read back by its headers; then that folder takes its name, so that a
//! merged model is whole or absent.

mod files;
mod folder;
mod shards;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use brightrun_kernels::gemm::{Accumulate::Add, MatMut, MatRef, Threads, gemm};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use crate::config::{CheckpointFormat, ModelConfig};
use crate::lora::{self, Adapter, ModuleLora};
use crate::weights::{Checkpoint, Exported};
use crate::{Error, Result};
use folder::NewFolder;
use shards::{Planned, Shard, Writer};

pub use folder::refuse_unless_new;

/// Largest file of a merged model, as Hugging Face cuts its own.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// The type of a merged model's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergedDtype {
    /// bfloat16, rounded to nearest, ties to even
    #[default]
    Bf16,
    /// float32
    F32,
}

/// What is merged, and how.
#[derive(Debug, Clone)]
pub struct MergeSpec {
    /// Folder of the base model.
    pub base_dir: PathBuf,
    /// Folder of the adapter.
    pub adapter_dir: PathBuf,
    /// The merged model's folder: absent or empty.
    pub output_dir: PathBuf,
    /// Type of its values.
    pub dtype: MergedDtype,
    /// Largest file; a tensor that is larger gets one of its own.
    pub max_shard_bytes: u64,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MergeSummary {
    /// The merged model's folder.
    pub output_dir: PathBuf,
    /// Type of its values.
    pub dtype: MergedDtype,
    /// Files of weights.
    pub shards: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Tensors in them.
    pub tensors: usize,
    /// Tensors that the adapter changed.
    pub merged: usize,
    /// Tensors that are bit for bit those of the base.
    pub copied: usize,
    /// Other files that were taken over from the base.
    pub files: Vec<String>,
    /// What whoever uses the model should know.
    pub notes: Vec<String>,
}

/// Merges; `progress` is told how many bytes of how many were written.
pub fn merge(spec: &MergeSpec, progress: &dyn Fn(u64, u64)) -> Result<MergeSummary> {
    refuse_unless_new(&spec.output_dir)?;
    let config = ModelConfig::read(&spec.base_dir)?;
    let checkpoint = Checkpoint::open(&spec.base_dir, &config)?;
    let (plan, adapters) = lora::read(&spec.adapter_dir, &config)?;
    let (tensors, unreadable) = checkpoint.exported(&config);
    let planned: Vec<Planned> = tensors.into_iter().map(|tensor| Planned::new(tensor, spec.dtype)).collect();
    let mut notes = notes(spec, &checkpoint, &planned, &unreadable)?;

    let folder = NewFolder::beside(&spec.output_dir)?;
    let (files, config_notes) = files::copy(&spec.base_dir, folder.path(), config.checkpoint)?;
    notes.extend(config_notes);
    let merging = Merging {
        checkpoint: &checkpoint,
        modules: plan.modules.iter().map(|module| (format!("{}.weight", module.path), module)).collect(),
        adapters: &adapters,
    };
    let shards = shards::plan(planned, spec.max_shard_bytes);
    let total: u64 = shards.iter().map(Shard::bytes).sum();
    let mut done = 0;
    for shard in &shards {
        let mut writer = Writer::create(folder.path(), shard)?;
        for tensor in &shard.tensors {
            merging.write(tensor, &mut writer)?;
            done += tensor.bytes();
            progress(done, total);
        }
        writer.finish()?;
    }
    shards::write_index(folder.path(), &shards)?;
    read_back(folder.path())?;
    folder.take_its_name(&spec.output_dir)?;
    let all = || shards.iter().flat_map(|shard| &shard.tensors);
    Ok(MergeSummary {
        output_dir: spec.output_dir.clone(),
        dtype: spec.dtype,
        shards: shards.len(),
        bytes: total,
        tensors: all().count(),
        merged: merging.modules.len(),
        copied: all().filter(|tensor| merging.is_copy(tensor)).count(),
        files,
        notes,
    })
}

/// What was written is a model of its own: complete, plain, of the right shapes.
fn read_back(dir: &Path) -> Result<()> {
    let config = ModelConfig::read(dir)?;
    Checkpoint::open(dir, &config).map(drop)
}

fn notes(spec: &MergeSpec, checkpoint: &Checkpoint, planned: &[Planned], unreadable: &[String]) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    match checkpoint.format() {
        CheckpointFormat::Plain => {}
        CheckpointFormat::Fp8 { .. } => notes.push("The base's FP8 weights were decoded before merging.".to_owned()),
        CheckpointFormat::Bnb4bit => notes.push(
            "The base's 4-bit weights were decoded before merging; merge into the original model where you have it: \
             it is more exact than its 4-bit copy."
                .to_owned(),
        ),
    }
    let rounded = planned.iter().filter(|tensor| tensor.loses_bits()).count();
    if rounded > 0 {
        notes.push(format!("{rounded} tensors of the base hold more digits than bfloat16; --dtype f32 keeps them."));
    }
    let said = files::stated_dtype(&spec.base_dir)?;
    if let (MergedDtype::F32, Some(said)) = (spec.dtype, said.filter(|name| name != "float32")) {
        notes.push(format!(
            "config.json still says {said}: load the model with dtype float32, or it is rounded when it is loaded."
        ));
    }
    if let Some(first) = unreadable.first() {
        let count = unreadable.len();
        notes
            .push(format!("{count} tensors that the model does not use cannot be decoded and were left out: {first}…"));
    }
    Ok(notes)
}

/// The base, and what is added to it.
struct Merging<'a> {
    checkpoint: &'a Checkpoint,
    /// The adapted linears, by the names of their weights.
    modules: HashMap<String, &'a ModuleLora>,
    adapters: &'a lora::AdapterTensors,
}

// === impl Merging ===

impl Merging<'_> {
    fn write(&self, tensor: &Planned, writer: &mut Writer) -> Result<()> {
        if self.is_copy(tensor) {
            return self.checkpoint.bytes(&tensor.name, &mut |piece| writer.bytes(piece));
        }
        let mut values = self.checkpoint.decoded(&tensor.name)?;
        if let Some(module) = self.modules.get(&tensor.name) {
            let adapter = self.adapters.get(&module.path);
            let adapter = adapter.ok_or_else(|| Error::Invalid(format!("{}: its adapter is missing", module.path)))?;
            add(&mut values, module, adapter);
        }
        writer.values(tensor, &values)
    }

    /// Nothing is added, and the values have the right type already.
    fn is_copy(&self, tensor: &Planned) -> bool {
        tensor.stored == Some(tensor.dtype) && !self.modules.contains_key(&tensor.name)
    }
}

/// `W += scale · B·A`.
fn add(weight: &mut [f32], module: &ModuleLora, adapter: &Adapter) {
    let ModuleLora { outputs, inputs, rank, scale, .. } = *module;
    let b = MatRef::new(&adapter.b.values, outputs, rank);
    let a = MatRef::new(&adapter.a.values, rank, inputs);
    gemm(MatMut::new(weight, outputs, inputs), Add, scale as f32, b, a, Threads::All);
}

// === impl Planned ===

impl Planned {
    fn new(tensor: Exported, dtype: MergedDtype) -> Self {
        let wanted = match dtype {
            MergedDtype::Bf16 => Dtype::BF16,
            MergedDtype::F32 => Dtype::F32,
        };
        // What the model does not know stays as it is: nobody asked for it in another type.
        let dtype = if tensor.known { wanted } else { tensor.stored.unwrap_or(wanted) };
        Self { name: tensor.name, shape: tensor.shape, stored: tensor.stored, dtype }
    }

    fn loses_bits(&self) -> bool {
        self.dtype == Dtype::BF16 && matches!(self.stored, Some(Dtype::F32 | Dtype::F16))
    }
}
