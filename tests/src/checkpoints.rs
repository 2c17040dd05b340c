//! Something to save whose every value follows from the step, so that whoever finds it saved knows what it must be.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use brightrun_kernels::dropout::splitmix;
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::checkpoint::{Captured, Fingerprint, Restored};
use brightrun_trainer::config::ModelConfig;
use brightrun_trainer::lora::{LoraOptions, TargetSet, plan};
use brightrun_trainer::optim::{Optimizer, OptimizerKind, OptimizerOptions, OptimizerState, StateValues};

/// Adapters and an optimiser of some hundred kilobytes.
#[derive(Debug)]
pub struct Subject {
    adapters: Adapters,
    optimizer: Optimizer,
}

/// What the checkpoints of these tests belong to.
pub fn fingerprint() -> Fingerprint {
    Fingerprint::new().with("test", "checkpoints")
}

// === impl Subject ===

impl Subject {
    /// For the smallest model among the fixtures.
    pub fn new() -> Result<Self> {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/qwen3_moe_s1/base");
        let config = ModelConfig::read(&base)?;
        let options = LoraOptions {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            use_rslora: false,
            targets: TargetSet::Classic,
            expert_rank: Some(2),
        };
        let adapters = Adapters::new(&config, &plan(&config, &options)?, 1)?;
        let options = OptimizerOptions { kind: OptimizerKind::AdamW8bit, ..OptimizerOptions::default() };
        let optimizer = Optimizer::new(&adapters, options);
        Ok(Self { adapters, optimizer })
    }

    /// What a run would save after this step.
    pub fn captured(&mut self, step: u64) -> Result<Captured> {
        let mut state = splitmix(step);
        let mut next = || {
            state = splitmix(state);
            state
        };
        for (index, parameter) in self.adapters.parameters().iter().enumerate() {
            let values: Vec<f32> = (0..parameter.var.elem_count()).map(|_| f32::from_bits(next() as u32)).collect();
            parameter.set_values(&values)?;
            for &part in self.optimizer.parts() {
                let mut values = self.optimizer.part(index, part)?;
                match &mut values {
                    StateValues::Counts(values) => values.fill_with(|| next() % (step + 1)),
                    StateValues::Floats(values) => values.fill_with(|| f32::from_bits(next() as u32)),
                    StateValues::Codes(values) => values.fill_with(|| next() as u8),
                }
                self.optimizer.set_part(index, part, &values)?;
            }
        }
        Ok(Captured::take(step, &self.adapters, &self.optimizer, &step, format!("{step}\n").as_bytes())?)
    }

    /// Restores a checkpoint and compares all of it with what was captured.
    pub fn check(&mut self, checkpoint: &Restored) -> Result<()> {
        let step = checkpoint.step;
        self.captured(step)?;
        let expected = self.bits()?;
        self.captured(step + 1)?;
        checkpoint.restore(&self.adapters, &mut self.optimizer)?;
        ensure!(self.bits()? == expected, "step {step} came back with other values");
        ensure!(checkpoint.progress::<u64>()? == step, "step {step} came back with another progress");
        let metrics = std::str::from_utf8(&checkpoint.metrics).context("metrics")?;
        ensure!(metrics == format!("{step}\n"), "step {step} came back with other metrics");
        Ok(())
    }

    fn bits(&self) -> Result<Vec<u64>> {
        let mut bits = Vec::new();
        for (index, parameter) in self.adapters.parameters().iter().enumerate() {
            bits.extend(parameter.values()?.iter().map(|value| u64::from(value.to_bits())));
            for &part in self.optimizer.parts() {
                match self.optimizer.part(index, part)? {
                    StateValues::Counts(values) => bits.extend(values),
                    StateValues::Floats(values) => bits.extend(values.iter().map(|value| u64::from(value.to_bits()))),
                    StateValues::Codes(values) => bits.extend(values.iter().map(|value| u64::from(*value))),
                }
            }
        }
        Ok(bits)
    }
}
