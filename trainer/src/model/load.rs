//! What every part of a model is loaded from.

use std::sync::Arc;

use brightrun_kernels::FrozenWeight;
use brightrun_kernels::norm::Kind;

use crate::Result;
use crate::adapters::Adapters;
use crate::config::{Family, ModelConfig};
use crate::weights::{BasePrecision, Checkpoint};

/// How NF4 weights are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Nf4Decode {
    /// Block `i` of 64 values has scale `i`: what NF4 means, and what a GPU does.
    #[default]
    Exact,
    /// As the CPU kernel of bitsandbytes 0.50 reads scales of matrices whose width is a multiple of 16 but not of 64:
    /// only for comparing with numbers made by it. Such matrices are held decoded.
    BitsandbytesCpu,
}

/// The sources of a model's parts.
pub(super) struct Loader<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) precision: &'a BasePrecision,
    pub(super) adapters: &'a Adapters,
    pub(super) decode: Nf4Decode,
}

impl Loader<'_> {
    pub(super) fn vector(&self, name: &str) -> Result<Arc<[f32]>> {
        Ok(self.checkpoint.vector(name)?.into())
    }

    /// The frozen weight of a linear.
    pub(super) fn weight(&self, path: &str) -> Result<FrozenWeight> {
        let weight = self.checkpoint.linear(path, self.precision)?;
        match (&weight, self.decode) {
            (FrozenWeight::Nf4(matrix), Nf4Decode::BitsandbytesCpu) if matrix.columns() % 64 != 0 => {
                let values = matrix.dequantize_as_bitsandbytes_cpu();
                Ok(FrozenWeight::plain(values, matrix.rows(), matrix.columns())?)
            }
            _ => Ok(weight),
        }
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
