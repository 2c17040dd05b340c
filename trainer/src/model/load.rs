//! What every part of a model is loaded from.

use std::sync::Arc;

use crate::Result;
use crate::adapters::Adapters;
use crate::config::{Family, ModelConfig};
use crate::weights::{BasePrecision, Checkpoint};
use brightrun_kernels::norm::Kind;

/// The sources of a model's parts.
pub(super) struct Loader<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) precision: &'a BasePrecision,
    pub(super) adapters: &'a Adapters,
}

impl Loader<'_> {
    pub(super) fn vector(&self, name: &str) -> Result<Arc<[f32]>> {
        Ok(self.checkpoint.vector(name)?.into())
    }

    pub(super) fn norm(&self, path: &str) -> Result<Norm> {
        Ok(Norm { weight: self.vector(&format!("{path}.weight"))?, kind: self.norm_kind(), epsilon: self.epsilon() })
    }

    pub(super) fn norm_kind(&self) -> Kind {
        match self.config.family {
            Family::Qwen3Next => Kind::ZeroCentred,
            Family::Qwen3Moe | Family::Qwen2Moe => Kind::Plain,
        }
    }

    pub(super) fn epsilon(&self) -> f32 {
        self.config.rms_norm_eps as f32
    }
}

/// An RMS norm of the residual stream.
#[derive(Debug)]
pub(super) struct Norm {
    weight: Arc<[f32]>,
    kind: Kind,
    epsilon: f32,
}

impl Norm {
    pub(super) fn forward(&self, x: &candle_core::Tensor) -> Result<candle_core::Tensor> {
        Ok(brightrun_kernels::norm::rms(x, &self.weight, self.kind, self.epsilon)?)
    }
}
