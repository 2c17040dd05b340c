//! What every part of a model is loaded from.

use std::sync::Arc;

use brightrun_kernels::FrozenWeight;
use brightrun_kernels::nf4::{BLOCK, Nf4Matrix, Scales};
use brightrun_kernels::norm::Kind;

use super::digest::Parts;
use crate::Result;
use crate::adapters::Adapters;
use crate::config::{Family, ModelConfig};
use crate::weights::{BasePrecision, Checkpoint};

/// The arithmetic of NF4 weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Nf4Arithmetic {
    /// Scales get their nearest 8-bit code, and block `i` of 64 values has scale `i`: what NF4 means, and what a GPU
    /// does.
    #[default]
    Exact,
    /// As the CPU kernels of bitsandbytes 0.50: an approximate search for the codes of doubly quantised scales, and
    /// other scales for matrices whose width is a multiple of 16 but not of 64 (which are held decoded). Only for
    /// comparing with numbers made by them.
    BitsandbytesCpu,
}

/// The sources of a model's parts.
pub(super) struct Loader<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) precision: &'a BasePrecision,
    pub(super) adapters: &'a Adapters,
    pub(super) arithmetic: Nf4Arithmetic,
}

impl Loader<'_> {
    pub(super) fn vector(&self, name: &str) -> Result<Arc<[f32]>> {
        Ok(self.checkpoint.vector(name)?.into())
    }

    /// The frozen weight of a linear.
    pub(super) fn weight(&self, path: &str) -> Result<FrozenWeight> {
        let weight = self.checkpoint.linear(path, self.precision)?;
        match (&weight, self.arithmetic) {
            (FrozenWeight::Nf4(matrix), Nf4Arithmetic::BitsandbytesCpu) => self.bitsandbytes_weight(path, matrix),
            _ => Ok(weight),
        }
    }

    /// An NF4 weight in [`Nf4Arithmetic::BitsandbytesCpu`]. The checkpoint's own codes stay as they are.
    fn bitsandbytes_weight(&self, path: &str, matrix: &Arc<Nf4Matrix>) -> Result<FrozenWeight> {
        let (rows, columns) = (matrix.rows(), matrix.columns());
        let matrix = match (matrix.scales(), self.checkpoint.linear(path, &BasePrecision::Full)?) {
            (Scales::Double { .. }, FrozenWeight::Plain { values, .. }) => {
                Nf4Matrix::quantize_as_bitsandbytes_cpu(&values, rows, columns)?.into()
            }
            _ => matrix.clone(),
        };
        if columns % BLOCK == 0 {
            return Ok(FrozenWeight::Nf4(matrix));
        }
        Ok(FrozenWeight::plain(matrix.dequantize_as_bitsandbytes_cpu(), rows, columns)?)
    }

    pub(super) fn norm(&self, path: &str) -> Result<Norm> {
        Ok(Norm { weight: self.vector(&format!("{path}.weight"))?, kind: self.norm_kind(), epsilon: self.epsilon() })
    }

    pub(super) fn norm_kind(&self) -> Kind {
        norm_kind(self.config.family)
    }

    pub(super) fn epsilon(&self) -> f32 {
        self.config.rms_norm_eps as f32
    }
}

/// What the norms of a family multiply with.
pub(crate) fn norm_kind(family: Family) -> Kind {
    match family {
        Family::Qwen3Next => Kind::ZeroCentred,
        Family::Qwen3Moe | Family::Qwen2Moe => Kind::Plain,
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
    pub(super) fn frozen<'a>(&'a self, path: &str, parts: &mut Parts<'a>) {
        parts.vector(format!("{path}.weight"), &self.weight);
    }

    pub(super) fn forward(&self, x: &candle_core::Tensor) -> Result<candle_core::Tensor> {
        Ok(brightrun_kernels::norm::rms(x, &self.weight, self.kind, self.epsilon)?)
    }
}
