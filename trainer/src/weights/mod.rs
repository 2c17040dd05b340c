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
use half::bf16;
use safetensors::Dtype;

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

/// A weight that is quantised where it goes.
#[derive(Debug)]
pub(crate) struct Unquantised {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) values: Values,
    pub(crate) double_quant: bool,
}

/// Row by row.
#[derive(Debug)]
pub(crate) enum Values {
    /// As they are stored, and so not all of them finite perhaps.
    Bf16(Vec<bf16>),
    /// Out of any other type.
    F32(Vec<f32>),
}

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
            Storage::Fp8 { block } => self.fp8(&name, *block)?,
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

    /// The same weight where it is to be quantised and is not yet, for whoever does that; nothing where it stays as it is stored.
    pub(crate) fn unquantised(&self, path: &str, precision: &BasePrecision) -> Result<Option<Unquantised>> {
        let name = format!("{path}.weight");
        let (spec, storage) = self.find(&name, TensorKind::Linear)?;
        let Some(double_quant) = precision.quantises(path).filter(|_| self.format != CheckpointFormat::Bnb4bit) else {
            return Ok(None);
        };
        let (file, stored) = self.stored(&name)?;
        let values = match storage {
            Storage::Plain if stored.dtype == Dtype::BF16 => Values::Bf16(stored::halves(file, &name, stored)?),
            Storage::Plain => Values::F32(stored::floats(file, &name, stored)?),
            Storage::Fp8 { block } => Values::F32(self.fp8(&name, *block)?),
            Storage::Nf4 { .. } => return Ok(None),
        };
        Ok(Some(Unquantised { rows: spec.shape[0], columns: spec.shape[1], values, double_quant }))
    }

    /// A weight in FP8, with the scales beside it.
    fn fp8(&self, name: &str, block: [usize; 2]) -> Result<Vec<f32>> {
        let (file, stored) = self.stored(name)?;
        stored::fp8(file, name, stored, self.stored(&format!("{name}_scale_inv"))?, block)
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
