//! Where the parts of a model on a GPU come from: a checkpoint, or numbers made on the GPU for measuring.

use brightrun_kernels::FrozenWeight;
use brightrun_kernels::dropout::splitmix;
use brightrun_kernels::gpu::{Buffer, Gpu};
use brightrun_kernels::lora_linear::gpu::{GpuLinear, GpuWeight};
use brightrun_kernels::moe::{GpuExpertLora, GpuExperts};
use brightrun_kernels::nf4::{GpuNf4, GpuValues, Scales};
use brightrun_kernels::noise::uniform_bf16;
use brightrun_kernels::norm::{GpuNorm, Kind};
use half::bf16;

use super::adapters::GpuAdapters;
use super::experts::ExpertAdapter;
use super::linear::Linear;
use crate::adapters::Adapters;
use crate::config::ModelConfig;
use crate::model::norm_kind;
use crate::weights::{BasePrecision, Checkpoint, PROJECTIONS, Unquantised, Values};
use crate::{Error, Result};

/// Where weights come from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// The files of a model.
    Checkpoint(&'a Checkpoint),
    /// Nowhere: numbers of a sane range, made on the GPU. For measuring, where values do not matter.
    Random {
        /// Numbers follow from it.
        seed: u64,
        /// Routers prefer some experts by far.
        skewed: bool,
    },
}

/// The rows of a skewed router grow up to this size times that of the others.
const SKEW: f32 = 3.0;

/// The sources of a model's parts.
pub(super) struct Loader<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) config: &'a ModelConfig,
    pub(super) source: Source<'a>,
    pub(super) precision: &'a BasePrecision,
    pub(super) adapters: &'a Adapters,
    pub(super) on_gpu: &'a GpuAdapters,
}

/// Names a tensor among random ones.
fn key(seed: u64, name: &str) -> u64 {
    name.bytes().fold(splitmix(seed), |state, byte| splitmix(state ^ u64::from(byte)))
}

/// A bound that keeps activations in range: uniform numbers within it give an output of about the size of the input.
fn bound(inputs: usize) -> f32 {
    (3.0 / inputs as f32).sqrt()
}

impl Loader<'_> {
    /// The values of a tensor that is no linear's weight.
    pub(super) fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        let values = match self.source {
            Source::Checkpoint(checkpoint) => checkpoint.vector(name)?,
            Source::Random { seed, .. } => {
                let key = key(seed, name);
                (0..length as u64).map(|place| 0.1 * brightrun_kernels::noise::uniform(key, place)).collect()
            }
        };
        if values.len() == length {
            Ok(values)
        } else {
            Err(Error::Invalid(format!("{name}: found {} values, expected {length}", values.len())))
        }
    }

    /// A matrix in bf16: the embedding.
    pub(super) fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Buffer<bf16>> {
        match self.source {
            Source::Checkpoint(checkpoint) => {
                let values: Vec<bf16> = checkpoint.matrix(name)?.into_iter().map(bf16::from_f32).collect();
                Ok(self.gpu.of(&values)?)
            }
            Source::Random { seed, .. } => Ok(uniform_bf16(self.gpu, rows * columns, bound(columns), key(seed, name))?),
        }
    }

    /// A weight of the files that is to be quantised, which the GPU does; nothing where it stays as it is stored.
    fn quantised(&self, checkpoint: &Checkpoint, path: &str) -> Result<Option<GpuNf4>> {
        let Some(weight) = checkpoint.unquantised(path, self.precision)? else { return Ok(None) };
        let Unquantised { rows, columns, values, double_quant } = weight;
        let mut damaged = self.gpu.zeros::<u32>(1)?;
        let mut quantize = |values: GpuValues<'_>| GpuNf4::quantize(values, rows, columns, double_quant, &mut damaged);
        let matrix = match values {
            Values::Bf16(values) => quantize(GpuValues::Bf16(&self.gpu.of(&values)?))?,
            Values::F32(values) => quantize(GpuValues::F32(&self.gpu.of(&values)?))?,
        };
        if damaged.download()?[0] > 0 {
            // The processor says where.
            checkpoint.linear(path, self.precision)?;
            return Err(Error::Invalid(format!("{path}.weight: it has values that are not finite")));
        }
        Ok(Some(matrix))
    }

    fn weight(&self, path: &str, rows: usize, columns: usize) -> Result<GpuWeight> {
        match self.source {
            Source::Checkpoint(checkpoint) => match self.quantised(checkpoint, path)? {
                Some(matrix) => Ok(GpuWeight::Nf4(matrix)),
                None => Ok(GpuWeight::of(self.gpu, &checkpoint.linear(path, self.precision)?)?),
            },
            Source::Random { seed, skewed: true } if path.ends_with(".mlp.gate") => {
                let key = key(seed, path);
                let value = |place: usize| {
                    // One expert in eight has a row of full size.
                    let size = if (place / columns).is_multiple_of(8) { SKEW } else { 1.0 };
                    bf16::from_f32(size * bound(columns) * brightrun_kernels::noise::uniform(key, place as u64))
                };
                let values: Vec<bf16> = (0..rows * columns).map(value).collect();
                Ok(GpuWeight::bf16(self.gpu.of(&values)?, rows, columns)?)
            }
            Source::Random { seed, .. } => {
                let key = key(seed, path);
                Ok(match self.precision.quantises(path) {
                    Some(double) => {
                        GpuWeight::Nf4(GpuNf4::random(self.gpu, rows, columns, double, bound(columns), key)?)
                    }
                    None => {
                        GpuWeight::bf16(uniform_bf16(self.gpu, rows * columns, bound(columns), key)?, rows, columns)?
                    }
                })
            }
        }
    }

    /// The linear at a module's path, with its adapter if it has one.
    pub(super) fn linear(&self, path: &str, outputs: usize, inputs: usize, bias: bool) -> Result<Linear> {
        let weight = self.weight(path, outputs, inputs)?;
        self.linear_of(path, weight, bias)
    }

    /// The same with this weight.
    pub(super) fn linear_of(&self, path: &str, weight: GpuWeight, bias: bool) -> Result<Linear> {
        let outputs = weight.rows();
        let bias = match bias {
            true => Some(self.gpu.of(&self.vector(&format!("{path}.bias"), outputs)?)?),
            false => None,
        };
        Linear::new(GpuLinear { weight, bias }, self.adapters.dense(path), path, self.on_gpu)
    }

    /// The frozen experts of a layer.
    pub(super) fn experts(&self, list: &str) -> Result<GpuExperts> {
        let (hidden, moe) = (self.config.hidden_size, &self.config.moe);
        let (experts, width) = (moe.experts, moe.intermediate_size);
        let path = |expert: usize, which: usize| format!("{list}.{expert}.{}", PROJECTIONS[which]);
        let checkpoint = match self.source {
            Source::Checkpoint(checkpoint) => checkpoint,
            Source::Random { seed, .. } => {
                let (key, double) = (key(seed, list), self.precision.quantises(&path(0, 0)));
                return Ok(GpuExperts::random(self.gpu, [experts, hidden, width], double, bound(hidden), key)?);
            }
        };
        let read = |expert: usize| -> Result<_> {
            let one = |which| checkpoint.linear(&path(expert, which), self.precision);
            Ok([one(0)?, one(1)?, one(2)?])
        };
        // What is quantised in the files stays so, whatever is asked for; all experts are stored as the first one is.
        let mut all = match checkpoint.linear(&path(0, 0), self.precision)? {
            FrozenWeight::Nf4(matrix) => {
                let double = matches!(matrix.scales(), Scales::Double { .. });
                GpuExperts::nf4(self.gpu, experts, hidden, width, double)?
            }
            FrozenWeight::Plain { .. } => GpuExperts::plain(self.gpu, experts, hidden, width)?,
        };
        for expert in 0..experts {
            let on_gpu = |which| self.quantised(checkpoint, &path(expert, which));
            if let (Some(gate), Some(up), Some(down)) = (on_gpu(0)?, on_gpu(1)?, on_gpu(2)?) {
                all.set_on_gpu(expert, [&gate, &up, &down])?;
                continue;
            }
            let [gate, up, down] = read(expert)?;
            all.set(expert, [&gate, &up, &down])?;
        }
        Ok(all)
    }

    /// The LoRA of a layer's experts, if any is adapted.
    pub(super) fn expert_adapter(&self, list: &str) -> Result<Option<ExpertAdapter>> {
        let Some(adapter) = self.adapters.experts(list) else { return Ok(None) };
        let parameter = self.on_gpu.find(&format!("{list}.lora"))?;
        let width = self.config.moe.intermediate_size;
        let lora = GpuExpertLora::new(self.gpu, &adapter.layout, self.config.hidden_size, width)?;
        let mut adapter = ExpertAdapter { lora, parameter, id: adapter.id };
        adapter.refresh(self.on_gpu)?;
        Ok(Some(adapter))
    }

    pub(super) fn norm(&self, path: &str) -> Result<GpuNorm> {
        let weight = self.vector(&format!("{path}.weight"), self.config.hidden_size)?;
        Ok(GpuNorm::of(self.gpu, &weight, self.norm_kind(), self.epsilon())?)
    }

    pub(super) fn norm_kind(&self) -> Kind {
        norm_kind(self.config.family)
    }

    pub(super) fn epsilon(&self) -> f32 {
        self.config.rms_norm_eps as f32
    }
}
