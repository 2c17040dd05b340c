//! [`Optimizer`](crate::optim::Optimizer) on a GPU: the same tensors, updated together and apart as there, to the bit.

use std::ops::Range;

use brightrun_kernels::adamw::{GpuAdamW, GpuParameter, Gradients, MomentKind, MomentPart, MomentValues};
use brightrun_kernels::gpu::Gpu;
use brightrun_kernels::grad_norm::GpuGradientNorm;
use safetensors::Dtype;

use super::adapters::{GpuAdapters, Trained};
use crate::optim::{
    OptimizerKind, OptimizerOptions, OptimizerState, StatePart, StateValues, StepOutcome, Together, UnhitExperts,
    refuse_norm,
};
use crate::{Error, Result};

/// AdamW with its state.
#[derive(Debug)]
pub struct GpuOptimizer {
    norm: GpuGradientNorm,
    adamw: GpuAdamW,
    kind: OptimizerKind,
    parameters: Vec<Tensors>,
}

/// What is updated together of one parameter.
#[derive(Debug)]
struct Tensors {
    /// Their numbers among those of all.
    range: Range<usize>,
    /// For each of [`Together::all`] whether it has values and so a number; experts without adapters have none.
    filled: Vec<bool>,
}

// === impl GpuOptimizer ===

impl GpuOptimizer {
    /// With empty moments, for at most so many steps.
    pub fn new(gpu: &Gpu, adapters: &GpuAdapters, options: &OptimizerOptions, steps: u64) -> Result<Self> {
        let gradients = adapters.trained().iter().map(|trained| trained.gradient.shared()).collect();
        let norm = GpuGradientNorm::new(gpu, gradients, options.max_gradient_norm)?;
        let (mut all, mut parameters) = (Vec::new(), Vec::new());
        for trained in adapters.trained() {
            let filled = Together::all(&trained.parameter, options).map(|own| !own.range.is_empty()).collect();
            let first = all.len();
            all.extend(tensors(trained, options)?);
            parameters.push(Tensors { range: first..all.len(), filled });
        }
        let kind = match options.kind {
            OptimizerKind::AdamW => MomentKind::Full,
            OptimizerKind::AdamW8bit => MomentKind::Blockwise,
        };
        let adamw = GpuAdamW::new(gpu, kind, &options.hyper(0.0), all, steps)?;
        Ok(Self { norm, adamw, kind: options.kind, parameters })
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

impl OptimizerState for GpuOptimizer {
    fn parts(&self) -> &'static [StatePart] {
        StatePart::all(self.kind)
    }

    fn part_layout(&self, parameter: usize, part: StatePart) -> (Dtype, usize) {
        let count = self.parameters.get(parameter).map(|own| match moments(part) {
            None => own.filled.len(),
            // The numbers are those of tensors that there are.
            Some(part) => self.adamw.moment_count(part, own.range.clone()).unwrap_or_default(),
        });
        (part.dtype(self.kind), count.unwrap_or_default())
    }

    fn part(&self, parameter: usize, part: StatePart) -> Result<StateValues> {
        let own = self.tensors(parameter)?;
        let Some(part) = moments(part) else {
            let mut updates = self.adamw.updates(own.range.clone())?.into_iter();
            let next = |filled: &bool| if *filled { updates.next().unwrap_or_default() } else { 0 };
            return Ok(StateValues::Counts(own.filled.iter().map(next).collect()));
        };
        Ok(match self.adamw.moments(part, own.range.clone())? {
            MomentValues::Floats(values) => StateValues::Floats(values),
            MomentValues::Codes(values) => StateValues::Codes(values),
        })
    }

    fn set_part(&mut self, parameter: usize, part: StatePart, values: &StateValues) -> Result<()> {
        self.expect_layout(parameter, part, values)?;
        let own = self.tensors(parameter)?;
        let range = own.range.clone();
        match (moments(part), values) {
            (None, StateValues::Counts(counts)) => {
                let filled = counts.iter().zip(&own.filled).filter(|(_, filled)| **filled);
                let updates: Vec<u64> = filled.map(|(count, _)| *count).collect();
                Ok(self.adamw.set_updates(range.start, &updates)?)
            }
            (Some(part), StateValues::Floats(values)) => {
                Ok(self.adamw.set_moments(part, range, &MomentValues::Floats(values.clone()))?)
            }
            (Some(part), StateValues::Codes(codes)) => {
                Ok(self.adamw.set_moments(part, range, &MomentValues::Codes(codes.clone()))?)
            }
            // The layout says which it is.
            _ => Err(Error::Invalid(format!("{} of parameter {parameter}: values of another type", part.name()))),
        }
    }
}

impl GpuOptimizer {
    fn tensors(&self, parameter: usize) -> Result<&Tensors> {
        self.parameters.get(parameter).ok_or_else(|| Error::Invalid(format!("there is no parameter {parameter}")))
    }
}

/// Which of the moments; nothing for the number of updates.
fn moments(part: StatePart) -> Option<MomentPart> {
    match part {
        StatePart::Updates => None,
        StatePart::FirstMoment => Some(MomentPart::First),
        StatePart::SecondMoment => Some(MomentPart::Second),
        StatePart::FirstScale => Some(MomentPart::FirstScale),
        StatePart::SecondScale => Some(MomentPart::SecondScale),
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
