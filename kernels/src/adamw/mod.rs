//! AdamW with its moments in `f32`, or in 8 bits for a quarter of the memory.
//!
//! ```text
//! g  = gradient · gradient_scale                                  (the factor that clips)
//! p  = p · (1 - lr·decay)
//! m  = m + (1 - β1)·(g - m)                                       v = β2·v + (1 - β2)·g²
//! p  = p - lr / (1 - β1^t) · m / (sqrt(v) / sqrt(1 - β2^t) + ε)   (t: the step, from 1)
//! ```
//!
//! The `f32` path makes the roundings of `torch.optim.AdamW` on the CPU: scalars are `f64` and rounded once, and the
//! updates of `m` and `v` are fused multiply-adds. (PyTorch's vector square root is off by one ulp for some values of
//! large tensors; ours never is.)
//!
//! The 8-bit path does the same in `f32` and stores the new moments as bitsandbytes' 8-bit Adam does: blocks of 256
//! values, each with its greatest magnitude as scale, and the nearest code of the dynamic map, signed for `m` and
//! unsigned for `v`. One rule is added: a `v` above 0 never becomes 0, because a value whose gradient then stays away
//! would be divided by `ε` alone.

mod cpu;
mod gpu;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

pub use gpu::{GpuAdamW, GpuParameter, Gradients, MomentKind, MomentPart, MomentValues};

use crate::nf4::DynamicMap;
use crate::{Error, Result};

const OP: &str = "adamw";

/// Values that share one scale in the 8-bit moments.
pub const MOMENT_BLOCK: usize = 256;

/// The constants of the method.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hyper {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// The two moments of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Moments {
    /// 32 bits a value.
    Full {
        /// Mean of the gradients.
        m: Vec<f32>,
        /// Mean of the squared gradients.
        v: Vec<f32>,
    },
    /// 8 bits a value and a scale for each [`MOMENT_BLOCK`].
    Blockwise {
        /// Codes of the signed dynamic map.
        m: Vec<u8>,
        /// Greatest magnitude of each block of `m`.
        m_scale: Vec<f32>,
        /// Codes of the unsigned dynamic map.
        v: Vec<u8>,
        /// Greatest value of each block of `v`.
        v_scale: Vec<f32>,
    },
}

impl Moments {
    /// Zero moments of `count` values in 32 bits.
    pub fn full(count: usize) -> Self {
        Self::Full { m: vec![0.0; count], v: vec![0.0; count] }
    }

    /// Zero moments of `count` values in 8 bits.
    pub fn blockwise(count: usize) -> Self {
        let blocks = count.div_ceil(MOMENT_BLOCK);
        Self::Blockwise {
            m: vec![DynamicMap::signed().nearest(0.0); count],
            m_scale: vec![0.0; blocks],
            v: vec![DynamicMap::unsigned().nearest(0.0); count],
            v_scale: vec![0.0; blocks],
        }
    }

    /// Number of values the moments belong to.
    pub fn len(&self) -> usize {
        match self {
            Self::Full { m, .. } => m.len(),
            Self::Blockwise { m, .. } => m.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn check(&self, count: usize) -> Result<()> {
        let blocks = count.div_ceil(MOMENT_BLOCK);
        let fit = match self {
            Self::Full { m, v } => (m.len(), v.len()) == (count, count),
            Self::Blockwise { m, m_scale, v, v_scale } => {
                (m.len(), v.len(), m_scale.len(), v_scale.len()) == (count, count, blocks, blocks)
            }
        };
        if fit { Ok(()) } else { Err(Error::shape(OP, "moments", count, self.len())) }
    }
}

/// Makes one step: `step` counts from 1 and `gradient_scale` is the factor of [`crate::grad_norm::clip_factor`].
///
/// Gradients have to be finite; the norm they were clipped by shows whether they are, and a factor made of a norm that
/// is not is refused here. Nothing is changed when an error is returned. The result does not depend on the number of
/// threads.
pub fn step(
    parameters: &mut [f32],
    gradient: &[f32],
    moments: &mut Moments,
    step: u64,
    gradient_scale: f32,
    hyper: &Hyper,
) -> Result<()> {
    if gradient.len() != parameters.len() {
        return Err(Error::shape(OP, "gradient", parameters.len(), gradient.len()));
    }
    moments.check(parameters.len())?;
    let scalars = cpu::Scalars::new(step, gradient_scale, hyper)?;
    match moments {
        Moments::Full { m, v } => cpu::step_full(parameters, gradient, m, v, &scalars),
        Moments::Blockwise { m, m_scale, v, v_scale } => {
            cpu::step_blockwise(parameters, gradient, (m, m_scale), (v, v_scale), &scalars);
        }
    }
    Ok(())
}

impl Hyper {
    fn check(&self) -> Result<()> {
        let Self { learning_rate, beta1, beta2, epsilon, weight_decay } = *self;
        for (name, value) in [("learning_rate", learning_rate), ("epsilon", epsilon), ("weight_decay", weight_decay)] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::invalid(OP, format!("{name} is {value}: it must be at least 0 and finite")));
            }
        }
        for (name, value) in [("beta1", beta1), ("beta2", beta2)] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::invalid(OP, format!("{name} is {value}: it must be at least 0 and below 1")));
            }
        }
        Ok(())
    }
}
