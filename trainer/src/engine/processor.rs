//! The processor as an engine: its model reads the very adapters of the host.

use super::{Engine, Updated};
use crate::Result;
use crate::adapters::Adapters;
use crate::batch::MicroBatch;
use crate::clock::Clock;
use crate::model::Model;
use crate::optim::{Optimizer, OptimizerOptions, OptimizerState};
use crate::proof::Digest;
use crate::step::{self, Gradients, MicroReport, Position, StepOptions, accumulate_timed};
use crate::stop::Stop;

/// Computes on the processor.
pub(crate) struct Processor {
    model: Model,
    adapters: Adapters,
    optimizer: Optimizer,
    /// Those of the step at hand.
    gradients: Option<Gradients>,
}

// === impl Processor ===

impl Processor {
    /// The model that has these adapters.
    pub(crate) fn new(model: Model, adapters: &Adapters, options: OptimizerOptions) -> Self {
        Self { model, optimizer: Optimizer::new(adapters, options), adapters: adapters.clone(), gradients: None }
    }
}

impl Engine for Processor {
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
        let gradients = self.gradients.get_or_insert_with(|| Gradients::new(&self.adapters));
        accumulate_timed(&self.model, batch, options, position, targets, gradients, clock)
    }

    fn update(&mut self, learning_rate: f64) -> Result<Updated> {
        let gradients = self.gradients.take().unwrap_or_else(|| Gradients::new(&self.adapters));
        let outcome = self.optimizer.step(&gradients, learning_rate)?;
        Ok(Updated { gradient_norm: outcome.gradient_norm, experts: gradients.into_experts() })
    }

    fn evaluate(&mut self, batch: &MicroBatch) -> Result<MicroReport> {
        step::evaluate(&self.model, batch, false)
    }

    fn give_adapters(&self) -> Result<()> {
        Ok(())
    }

    fn take_adapters(&mut self) -> Result<()> {
        Ok(())
    }

    fn optimizer(&self) -> &dyn OptimizerState {
        &self.optimizer
    }

    fn optimizer_mut(&mut self) -> &mut dyn OptimizerState {
        &mut self.optimizer
    }

    fn peak_memory(&self) -> Option<u64> {
        None
    }
}
