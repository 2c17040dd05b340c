//! A model from its folder, with an adapter from another.

use std::path::Path;

use super::Model;
use crate::Result;
use crate::adapters::Adapters;
use crate::config::ModelConfig;
use crate::lora;
use crate::weights::{BasePrecision, Checkpoint};

// === impl Model ===

impl Model {
    /// Reads a base model and, where there is one, an adapter for it. Every pass then takes the adapter along or not, so
    /// both need the base in memory once.
    pub fn open(base_dir: &Path, adapter_dir: Option<&Path>, precision: &BasePrecision) -> Result<Self> {
        let config = ModelConfig::read(base_dir)?;
        let checkpoint = Checkpoint::open(base_dir, &config)?;
        let adapters = Adapters::read(adapter_dir, &config)?;
        Self::load(&config, &checkpoint, precision, &adapters)
    }
}

impl Adapters {
    /// Those of an adapter's folder, or none.
    pub(crate) fn read(dir: Option<&Path>, config: &ModelConfig) -> Result<Self> {
        let Some(dir) = dir else { return Ok(Self::none()) };
        let (plan, tensors) = lora::read(dir, config)?;
        Self::from_tensors(config, &plan, &tensors)
    }
}
