//! What computes a run: its steps, its evaluations, its proofs. A run does not know whether that is the processor or a GPU.
//!
//! The adapters of the host, which files and checkpoints are written from, may lie behind what an engine has learnt: whoever
//! reads them calls [`Engine::give_adapters`] before, and [`Engine::take_adapters`] after changing them.

mod device;
mod on_gpu;
mod processor;

use crate::Result;
use crate::batch::MicroBatch;
use crate::clock::Clock;
use crate::optim::OptimizerState;
use crate::proof::Digest;
use crate::step::{ExpertCounts, MicroReport, Position, StepOptions};
use crate::stop::Stop;

pub use device::GpuToUse;
pub(crate) use device::{Base, Device};
use on_gpu::OnGpu;
use processor::Processor;

/// What an optimiser step did.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Updated {
    /// Global norm of the gradients before clipping.
    pub(crate) gradient_norm: f64,
    /// How the routed experts were used by its micro-batches.
    pub(crate) experts: ExpertCounts,
}

/// A base model with adapters and their optimiser, where it is computed.
pub(crate) trait Engine {
    /// SHA-256 of the frozen base as it lies in memory.
    fn digest(&self, stop: &Stop) -> Result<Digest>;

    /// Forward and backward of one micro-batch, whose gradients are added to those of the step. `targets` is the number of
    /// targets in all micro-batches of the step.
    fn accumulate(
        &mut self,
        batch: &MicroBatch,
        options: &StepOptions,
        position: Position,
        targets: usize,
        clock: &dyn Clock,
    ) -> Result<MicroReport>;

    /// Makes the step with what was accumulated. Where the gradients have no finite norm nothing is changed.
    fn update(&mut self, learning_rate: f64) -> Result<Updated>;

    /// Forward only: the loss of a batch with the adapters.
    fn evaluate(&mut self, batch: &MicroBatch) -> Result<MicroReport>;

    /// Brings the host's adapters to where learning is.
    fn give_adapters(&self) -> Result<()>;

    /// Goes on with the values of the host's adapters.
    fn take_adapters(&mut self) -> Result<()>;

    /// The state of the optimiser, to be read.
    fn optimizer(&self) -> &dyn OptimizerState;

    /// The state of the optimiser, to be put back.
    fn optimizer_mut(&mut self) -> &mut dyn OptimizerState;

    /// The most memory in use so far, where the engine has memory of its own.
    fn peak_memory(&self) -> Option<u64>;
}
