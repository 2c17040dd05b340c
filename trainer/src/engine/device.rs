//! What a run computes on, before anything is loaded.

use brightrun_kernels::gpu::Gpu;
use brightrun_kernels::gpu_check::Family;

use super::{Engine, OnGpu, Processor};
use crate::adapters::Adapters;
use crate::config::ModelConfig;
use crate::gpu::{GpuModel, Source};
use crate::model::Model;
use crate::optim::OptimizerOptions;
use crate::proof::{self, OpCheck};
use crate::weights::{BasePrecision, Checkpoint};
use crate::{Error, Result};

/// The GPU that a run computes on.
#[derive(Clone, Copy)]
pub struct GpuToUse<'a> {
    /// Takes it; whoever begins a run has no need of it before.
    pub open: &'a (dyn Fn() -> brightrun_kernels::Result<Gpu> + Sync),
    /// The ops that are compared with their references before anything is paid for: all of them take seconds on a card, minutes on
    /// an emulated one.
    pub self_test: &'a [Family],
}

/// What a run computes on.
pub(crate) enum Device<'a> {
    Processor,
    Gpu { gpu: Gpu, self_test: &'a [Family] },
}

/// What is loaded.
pub(crate) struct Base<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) precision: &'a BasePrecision,
    pub(crate) adapters: &'a Adapters,
}

// === impl Device ===

impl<'a> Device<'a> {
    /// That GPU, or the processor where there is none.
    pub(crate) fn open(gpu: Option<GpuToUse<'a>>) -> Result<Self> {
        match gpu {
            None => Ok(Self::Processor),
            Some(GpuToUse { open, self_test }) => Ok(Self::Gpu { gpu: open()?, self_test }),
        }
    }

    /// What a checkpoint says of it, where it is not the processor: what two kinds compute differs in rounding.
    pub(crate) fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Processor => None,
            Self::Gpu { .. } => Some("GPU"),
        }
    }

    /// Compares its ops with their references.
    pub(crate) fn self_test(&self, seed: u64) -> Result<Vec<OpCheck>> {
        let checks = match self {
            Self::Processor => proof::self_test(seed)?,
            Self::Gpu { gpu, self_test } => proof::self_test_of_gpu(gpu, self_test, seed)?,
        };
        match proof::self_test_problem(&checks) {
            Some(problem) => Err(Error::Invalid(problem)),
            None => Ok(checks),
        }
    }

    /// Loads a model, to be trained for at most so many steps.
    pub(crate) fn load(self, base: &Base<'_>, optimizer: OptimizerOptions, steps: u64) -> Result<Box<dyn Engine>> {
        let Base { config, checkpoint, precision, adapters } = *base;
        Ok(match self {
            Self::Processor => {
                let model = Model::load(config, checkpoint, precision, adapters)?;
                Box::new(Processor::new(model, adapters, optimizer))
            }
            Self::Gpu { gpu, .. } => {
                let model = GpuModel::load(&gpu, config, Source::Checkpoint(checkpoint), precision, adapters)?;
                Box::new(OnGpu::new(gpu, model, &optimizer, steps)?)
            }
        })
    }
}
