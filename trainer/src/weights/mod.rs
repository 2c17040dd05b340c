//! The base weights: a checkpoint is checked whole, by its headers, before any of its data is read; then tensors are
//! read one at a time and decoded to what the frozen model holds.

mod experts;
mod export;
mod names;
mod precision;
mod shards;
mod stored;
#[cfg(test)]
mod tests;
mod verify;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use brightrun_kernels::FrozenWeight;
use brightrun_kernels::nf4::Nf4Matrix;

pub(crate) use experts::{ExpertPath, PROJECTIONS, expert_list, is_routed_expert};
pub(crate) use export::Exported;
pub use names::{TensorKind, TensorSpec, expected_tensors};
pub use precision::{BasePrecision, DEFAULT_SKIP};
pub(crate) use shards::{SafetensorsFile, Stored};
pub(crate) use stored::floats;

use crate::config::{CheckpointFormat, ModelConfig};
use crate::stop::Stop;
use crate::{Error, Result};
use shards::Shards;
use verify::Storage;

/// The weights of a model on disk, known to be complete and of the right shapes.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    format: CheckpointFormat,
    shards: Shards,
    tensors: HashMap<String, (TensorSpec, Storage)>,
    stop: Stop,
}

// === impl Checkpoint ===

impl Checkpoint {
    /// Opens the safetensors files of a folder and compares them with what `config` needs.
    ///
    /// One error names every tensor that is missing, unexpected, or of a wrong shape or type.
    pub fn open(dir: &Path, config: &ModelConfig) -> Result<Self> {
        let shards = Shards::open(dir)?;
        let tensors = verify::verify(dir, config, &shards)?;
        Ok(Self { dir: dir.to_owned(), format: config.checkpoint, shards, tensors, stop: Stop::default() })
    }

    /// Reads nothing more once somebody asks to stop.
    pub fn until(self, stop: &Stop) -> Self {
        Self { stop: stop.clone(), ..self }
    }

    /// Who may stop the reading.
    pub(crate) fn stop(&self) -> &Stop {
        &self.stop
    }

    /// The values of a tensor that is no linear's weight (norm, bias, convolution, decay), row-major.
    pub fn vector(&self, name: &str) -> Result<Vec<f32>> {
        self.plain(name, TensorKind::Other)
    }

    /// The values of a matrix that is no linear's weight (the embedding), row-major.
    pub fn matrix(&self, name: &str) -> Result<Vec<f32>> {
        let values = self.plain(name, TensorKind::Other)?;
        match self.tensors.get(name).map(|(spec, _)| spec.shape.len()) {
            Some(2) => Ok(values),
            _ => Err(Error::file(&self.dir, format!("{name}: not a matrix"))),
        }
    }

    /// The weight of the linear at a module path such as `model.layers.0.self_attn.q_proj`.
    ///
    /// A weight that bitsandbytes quantised stays as it is stored, and so do the plain ones beside it, whatever
    /// `precision` asks for; FP8 is decoded first.
    pub fn linear(&self, path: &str, precision: &BasePrecision) -> Result<FrozenWeight> {
        let name = format!("{path}.weight");
        let (spec, storage) = self.find(&name, TensorKind::Linear)?;
        let (rows, columns) = (spec.shape[0], spec.shape[1]);
        let (file, stored) = self.stored(&name)?;
        let values = match storage {
            Storage::Plain => stored::floats(file, &name, stored)?,
            Storage::Fp8 { block } => {
                stored::fp8(file, &name, stored, self.stored(&format!("{name}_scale_inv"))?, *block)?
            }
            Storage::Nf4 { nested } => {
                let side = |suffix: &str| self.stored(&format!("{name}.{suffix}"));
                return stored::nf4(file, &name, stored, &spec.shape, *nested, side);
            }
        };
        let in_context = |error| Error::file(file.path(), format!("{name}: {error}"));
        match precision.quantises(path) {
            Some(double_quant) if self.format != CheckpointFormat::Bnb4bit => {
                let matrix = Nf4Matrix::quantize(&values, rows, columns, double_quant).map_err(in_context)?;
                Ok(FrozenWeight::Nf4(matrix.into()))
            }
            _ => FrozenWeight::plain(values, rows, columns).map_err(in_context),
        }
    }

    fn plain(&self, name: &str, kind: TensorKind) -> Result<Vec<f32>> {
        self.find(name, kind)?;
        let (file, stored) = self.stored(name)?;
        stored::floats(file, name, stored)
    }

    fn find(&self, name: &str, kind: TensorKind) -> Result<&(TensorSpec, Storage)> {
        let expected =
            if kind == TensorKind::Linear { "the weight of a linear" } else { "a tensor that is no linear's" };
        self.tensors
            .get(name)
            .filter(|(spec, _)| spec.kind == kind)
            .ok_or_else(|| Error::file(&self.dir, format!("{name}: asked for as {expected}, which this model lacks")))
    }

    fn stored(&self, name: &str) -> Result<(&SafetensorsFile, &Stored)> {
        if self.stop.asked().is_some() {
            return Err(Error::Cancelled);
        }
        let stored = self.shards.tensors.get(name);
        let stored = stored.ok_or_else(|| Error::file(&self.dir, format!("{name}: missing")))?;
        Ok((&self.shards.files[stored.file], stored))
    }
}
