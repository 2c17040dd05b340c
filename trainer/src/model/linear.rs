//! A linear layer of the base model with the adapter that belongs to it, if any.

use brightrun_kernels::dropout::Dropout;
use brightrun_kernels::lora_linear::{FrozenLinear, Lora, frozen_linear, lora_linear};
use candle_core::Tensor;

use super::load::Loader;
use super::pass::Pass;
use crate::Result;
use crate::adapters::DenseAdapter;

/// `x Wᵀ + bias`, plus the low-rank update where the module is adapted.
#[derive(Debug)]
pub(super) struct Linear {
    frozen: FrozenLinear,
    adapter: Option<DenseAdapter>,
}

impl Linear {
    pub(super) fn load(loader: &Loader, path: &str, bias: bool) -> Result<Self> {
        let weight = loader.weight(path)?;
        let bias = bias.then(|| loader.vector(&format!("{path}.bias"))).transpose()?;
        Ok(Self::new(FrozenLinear { weight, bias }, loader, path))
    }

    pub(super) fn new(frozen: FrozenLinear, loader: &Loader, path: &str) -> Self {
        Self { frozen, adapter: loader.adapters.dense(path).cloned() }
    }

    pub(super) fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let Some(adapter) = self.adapter.as_ref().filter(|_| pass.adapted) else {
            return Ok(frozen_linear(x, &self.frozen)?);
        };
        let lora = Lora { rank: adapter.rank, scale: adapter.scale, dropout: pass.dropout(adapter.id) };
        Ok(lora_linear(x, &pass.learnt(&adapter.a), &pass.learnt(&adapter.b), &self.frozen, lora)?)
    }

    pub(super) fn frozen(&self) -> &FrozenLinear {
        &self.frozen
    }

    pub(super) fn adapter(&self) -> Option<&DenseAdapter> {
        self.adapter.as_ref()
    }

    pub(super) fn is_adapted(&self) -> bool {
        self.adapter.is_some()
    }
}

/// The dropout of a module in a pass.
pub(super) fn keyed(probability: f32, key: u64, id: u64, which: u64) -> Dropout {
    Dropout::keyed(probability, &[key, id, which])
}
