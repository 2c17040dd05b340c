//! [`Optimizer`](crate::optim::Optimizer) on a GPU: the same tensors, updated together and apart as there, to the bit.

use brightrun_kernels::adamw::{GpuAdamW, GpuParameter, Gradients, Hyper, MomentKind};
use brightrun_kernels::gpu::Gpu;
use brightrun_kernels::grad_norm::GpuGradientNorm;

use super::adapters::{GpuAdapters, Trained};
use crate::adapters::Factor;
use crate::optim::{OptimizerKind, OptimizerOptions, StepOutcome, UnhitExperts};
use crate::{Error, Result};

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
        let hyper = Hyper {
            learning_rate: 0.0,
            beta1: options.beta1,
            beta2: options.beta2,
            epsilon: options.epsilon,
            weight_decay: options.weight_decay,
        };
        Ok(Self { norm, adamw: GpuAdamW::new(gpu, kind, &hyper, parameters, steps)? })
    }

    /// Clips the gradients and updates every parameter. The learning rate is that of every `A`.
    pub fn step(&mut self, adapters: &mut GpuAdapters, learning_rate: f64) -> Result<StepOutcome> {
        self.norm.measure()?;
        self.adamw.set_learning_rate(learning_rate)?;
        self.adamw.step(self.norm.factor(), Gradients::Keep)?;
        adapters.clear_gradients()?;
        // The step was not made on the GPU either.
        let gradient_norm = self.norm.norm()?;
        if !gradient_norm.is_finite() {
            return Err(Error::Invalid(format!(
                "the gradient's norm is {gradient_norm}; nothing was changed. Try a lower learning rate"
            )));
        }
        Ok(StepOutcome { gradient_norm })
    }
}

/// What is updated together: see `Segment` of the host's optimiser.
fn tensors(trained: &Trained, options: &OptimizerOptions) -> Result<Vec<GpuParameter>> {
    let new = |range: std::ops::Range<usize>, expert: Option<usize>, rate: f64| -> Result<GpuParameter> {
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
    };
    let parameter = &trained.parameter;
    if let Some(layout) = &parameter.experts
        && options.loraplus_lr_ratio == 1.0
    {
        let own = (0..layout.experts()).filter(|expert| !layout.range(*expert).is_empty());
        return own.map(|expert| new(layout.range(expert), Some(expert), 1.0)).collect();
    }
    let rate = |factor| if factor == Factor::B { options.loraplus_lr_ratio } else { 1.0 };
    parameter.matrices().into_iter().map(|place| new(place.range, place.expert, rate(place.factor))).collect()
}
