//! AdamW over the adapters, after clipping by the global norm.
//!
//! A routed expert without a row in any micro-batch of the step is by default left alone, moments and all
//! ([`UnhitExperts::Skip`], what PEFT does when each expert is a module of its own); [`UnhitExperts::Zero`] gives it a
//! zero gradient, so that its momentum moves it on (what fused experts do).
//!
//! With LoRA+ (`loraplus_lr_ratio`, what PEFT's `create_loraplus_optimizer` does) every `B` has a learning rate of its own,
//! that of `A` times the ratio. Weight decay is decoupled and goes by the learning rate, so a `B` decays by its own.

mod state;
#[cfg(test)]
mod tests;

use std::ops::Range;

use brightrun_kernels::adamw::{self, Hyper, Moments};
use brightrun_kernels::grad_norm::{clip_factor, sum_of_squares};
use brightrun_kernels::op::{update_in_place, with_slice};
use serde::{Deserialize, Serialize};

use crate::adapters::{Adapters, Factor, MatrixPlace, Parameter};
use crate::step::Gradients;
use crate::{Error, Result};

pub use state::{OptimizerState, StatePart, StateValues};

/// What happens to a routed expert that had no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnhitExperts {
    /// It is left alone.
    #[default]
    Skip,
    /// Its gradient is zero.
    Zero,
}

/// How the moments are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// `f32`.
    #[default]
    AdamW,
    /// 8 bits with a scale per block of 256.
    AdamW8bit,
}

/// Settings that do not change during a run; the learning rate comes with each step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerOptions {
    /// How the moments are kept.
    pub kind: OptimizerKind,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The learning rate of every `B` over that of every `A` (LoRA+).
    pub loraplus_lr_ratio: f64,
    /// Gradients are scaled down to this global norm; `None` leaves them.
    pub max_gradient_norm: Option<f64>,
    /// What happens to a routed expert that had no row.
    pub unhit_experts: UnhitExperts,
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::AdamW,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            loraplus_lr_ratio: 1.0,
            max_gradient_norm: Some(1.0),
            unhit_experts: UnhitExperts::Skip,
        }
    }
}

/// Values that are updated together.
pub(crate) struct Together {
    pub(crate) range: Range<usize>,
    /// The number of the routed expert they belong to, if they belong to one.
    pub(crate) expert: Option<usize>,
    /// Times the learning rate of the step.
    pub(crate) rate: f64,
}

/// The moments of values that are updated together, and how often they were.
#[derive(Debug)]
struct Segment {
    range: Range<usize>,
    /// The number of the routed expert they belong to, if they belong to one.
    expert: Option<usize>,
    /// Times the learning rate of the step.
    rate: f64,
    moments: Moments,
    updates: u64,
}

/// AdamW with its state.
#[derive(Debug)]
pub struct Optimizer {
    options: OptimizerOptions,
    segments: Vec<Vec<Segment>>,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutcome {
    /// Global norm of the gradients before clipping.
    pub gradient_norm: f64,
}

// === impl Segment ===

impl Segment {
    fn all(parameter: &Parameter, options: &OptimizerOptions) -> Vec<Self> {
        let new = |Together { range, expert, rate }: Together| {
            let moments = match options.kind {
                OptimizerKind::AdamW => Moments::full(range.len()),
                OptimizerKind::AdamW8bit => Moments::blockwise(range.len()),
            };
            Self { range, expert, rate, moments, updates: 0 }
        };
        Together::all(parameter, options).map(new).collect()
    }
}

// === impl Together ===

impl Together {
    /// Those of a parameter, in the order of their values.
    ///
    /// All matrices of a routed expert are one as long as they have one learning rate. With LoRA+ each is its own, as it is in
    /// PEFT; so no block of 8-bit moments has a share in both an `A` and a `B`, and 32-bit moments are where they were.
    pub(crate) fn all(parameter: &Parameter, options: &OptimizerOptions) -> impl Iterator<Item = Self> {
        let whole = parameter.experts.clone().filter(|_| options.loraplus_lr_ratio == 1.0);
        let apart = if whole.is_some() { Vec::new() } else { parameter.matrices() };
        let ratio = options.loraplus_lr_ratio;
        let experts = whole.into_iter().flat_map(|layout| {
            (0..layout.experts()).map(move |expert| Self {
                range: layout.range(expert),
                expert: Some(expert),
                rate: 1.0,
            })
        });
        experts.chain(apart.into_iter().map(move |MatrixPlace { expert, factor, range }| {
            let rate = if factor == Factor::B { ratio } else { 1.0 };
            Self { range, expert, rate }
        }))
    }
}

// === impl OptimizerOptions ===

impl OptimizerOptions {
    /// What a step needs of them.
    pub(crate) fn hyper(&self, learning_rate: f64) -> Hyper {
        Hyper {
            learning_rate,
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            weight_decay: self.weight_decay,
        }
    }
}

/// Why a step with this norm is not made; nothing where it is.
pub(crate) fn refuse_norm(gradient_norm: f64) -> Result<()> {
    if gradient_norm.is_finite() {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "the gradient's norm is {gradient_norm}; nothing was changed. Try a lower learning rate"
    )))
}

// === impl Optimizer ===

impl Optimizer {
    /// With empty moments.
    pub fn new(adapters: &Adapters, options: OptimizerOptions) -> Self {
        let segments = adapters.parameters().iter().map(|parameter| Segment::all(parameter, &options)).collect();
        Self { options, segments }
    }

    /// Clips the gradients and updates every parameter. The learning rate is that of every `A`.
    pub fn step(&mut self, gradients: &Gradients, learning_rate: f64) -> Result<StepOutcome> {
        let mut squares = 0.0;
        for (_, gradient, _) in gradients.iter() {
            if let Some(gradient) = gradient {
                squares += with_slice(gradient, sum_of_squares)?;
            }
        }
        let gradient_norm = squares.sqrt();
        refuse_norm(gradient_norm)?;
        let scale = self.options.max_gradient_norm.map_or(1.0, |max| clip_factor(gradient_norm, max));
        let hyper = self.options.hyper(learning_rate);
        for ((parameter, gradient, hits), segments) in gradients.iter().zip(&mut self.segments) {
            let Some(gradient) = gradient else { continue };
            let skip = self.options.unhit_experts == UnhitExperts::Skip;
            with_slice(gradient, |gradient| {
                update_in_place(parameter.var.as_tensor(), |values| {
                    for segment in segments.iter_mut() {
                        let idle = segment.expert.is_some_and(|expert| hits.get(expert) == Some(&false));
                        if segment.range.is_empty() || (skip && idle) {
                            continue;
                        }
                        segment.updates += 1;
                        let hyper = Hyper { learning_rate: learning_rate * segment.rate, ..hyper };
                        let range = segment.range.clone();
                        let (values, gradient) = (&mut values[range.clone()], &gradient[range]);
                        adamw::step(values, gradient, &mut segment.moments, segment.updates, scale, &hyper)?;
                    }
                    Ok(())
                })
            })??;
        }
        Ok(StepOutcome { gradient_norm })
    }
}
