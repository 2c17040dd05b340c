//! [`Optimizer`](crate::optim::Optimizer) on a GPU: the same tensors, updated together and apart as there, to the bit.

use brightrun_kernels::adamw::{GpuAdamW, GpuParameter, Gradients, MomentKind};
use brightrun_kernels::gpu::Gpu;
use brightrun_kernels::grad_norm::GpuGradientNorm;

use super::adapters::{GpuAdapters, Trained};
use crate::Result;
use crate::optim::{OptimizerKind, OptimizerOptions, StepOutcome, Together, UnhitExperts, refuse_norm};

/// AdamW with its state.
#[derive(Debug)]
pub struct GpuOptimizer {
    norm: GpuGradientNorm,
    adamw: GpuAdamW,
}

// === impl GpuOptimizer ===

impl GpuOptimizer {
    /// With empty moments, for at most so many steps.
    pub fn new(gpu: &Gpu, adapters: &GpuAdapters, options: &OptimizerOptions, steps: u64) -> Result<Self> {
        let gradients = adapters.trained().iter().map(|trained| trained.gradient.shared()).collect();
        let norm = GpuGradientNorm::new(gpu, gradients, options.max_gradient_norm)?;
        let mut parameters = Vec::new();
        for trained in adapters.trained() {
            parameters.extend(tensors(trained, options)?);
        }
        let kind = match options.kind {
            OptimizerKind::AdamW => MomentKind::Full,
            OptimizerKind::AdamW8bit => MomentKind::Blockwise,
        };
        Ok(Self { norm, adamw: GpuAdamW::new(gpu, kind, &options.hyper(0.0), parameters, steps)? })
    }

    /// Clips the gradients and updates every parameter. The learning rate is that of every `A`.
    pub fn step(&mut self, adapters: &mut GpuAdapters, learning_rate: f64) -> Result<StepOutcome> {
        self.norm.measure()?;
        self.adamw.set_learning_rate(learning_rate)?;
        self.adamw.step(self.norm.factor(), Gradients::Keep)?;
        adapters.clear_gradients()?;
        // The step was not made on the GPU either.
        let gradient_norm = self.norm.norm()?;
        refuse_norm(gradient_norm)?;
        Ok(StepOutcome { gradient_norm })
    }
}

/// What is updated together; nothing of experts without adapters.
fn tensors(trained: &Trained, options: &OptimizerOptions) -> Result<Vec<GpuParameter>> {
    let own = Together::all(&trained.parameter, options).filter(|together| !together.range.is_empty());
    own.map(|Together { range, expert, rate }| {
        let hits = match (&trained.hits, expert, options.unhit_experts) {
            (Some(hits), Some(expert), UnhitExperts::Skip) => Some(hits.part(expert..expert + 1)?),
            _ => None,
        };
        Ok(GpuParameter {
            values: trained.values.part(range.clone())?,
            gradient: trained.gradient.part(range.clone())?,
            copy: trained.copy.as_ref().map(|copy| copy.part(range)).transpose()?,
            rate,
            hits,
        })
    })
    .collect()
}
