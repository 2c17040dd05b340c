//! A GPU as an engine. The adapters of the host are behind it from the first step on.

use brightrun_kernels::gpu::Gpu;

use super::{Engine, Updated};
use crate::Result;
use crate::batch::MicroBatch;
use crate::clock::Clock;
use crate::gpu::{GpuModel, GpuOptimizer};
use crate::optim::{OptimizerOptions, OptimizerState};
use crate::proof::Digest;
use crate::step::{MicroReport, Position, StepOptions};
use crate::stop::Stop;

/// Computes on a GPU.
pub(crate) struct OnGpu {
    gpu: Gpu,
    model: GpuModel,
    optimizer: GpuOptimizer,
}

// === impl OnGpu ===

impl OnGpu {
    /// A loaded model, for at most so many optimiser steps.
    pub(crate) fn new(gpu: Gpu, model: GpuModel, options: &OptimizerOptions, steps: u64) -> Result<Self> {
        let optimizer = GpuOptimizer::new(&gpu, model.adapters(), options, steps)?;
        Ok(Self { gpu, model, optimizer })
    }
}

impl Engine for OnGpu {
    fn digest(&self, stop: &Stop) -> Result<Digest> {
        self.model.digest(stop)
    }

    fn accumulate(
        &mut self,
        batch: &MicroBatch,
        options: &StepOptions,
        position: Position,
        targets: usize,
        clock: &dyn Clock,
    ) -> Result<MicroReport> {
        self.model.accumulate(batch, options, position, targets, clock)
    }

    fn update(&mut self, learning_rate: f64) -> Result<Updated> {
        let gradient_norm = self.optimizer.step(self.model.adapters_mut(), learning_rate)?.gradient_norm;
        self.model.refresh()?;
        Ok(Updated { gradient_norm, experts: self.model.take_expert_counts()? })
    }

    fn evaluate(&mut self, batch: &MicroBatch) -> Result<MicroReport> {
        self.model.evaluate(batch, true)
    }

    fn give_adapters(&self) -> Result<()> {
        self.model.adapters().write_back()
    }

    fn take_adapters(&mut self) -> Result<()> {
        self.model.adapters_mut().upload()?;
        self.model.refresh()
    }

    fn optimizer(&self) -> &dyn OptimizerState {
        &self.optimizer
    }

    fn optimizer_mut(&mut self) -> &mut dyn OptimizerState {
        &mut self.optimizer
    }

    fn peak_memory(&self) -> Option<u64> {
        Some(self.gpu.usage().peak)
    }
}
