//! The three RMS norms of the Qwen families. With `ρ(x) = 1 / sqrt(mean(x²) + ε)` over the last dimension:
//!
//! * plain: `y = w ⊙ x·ρ(x)`
//! * zero-centred: `y = (1 + w) ⊙ x·ρ(x)`
//! * gated: `y = w ⊙ o·ρ(o) ⊙ silu(z)` per value head (first the norm, then the gate)
//!
//! The weights are frozen; the backward pass gives `dx = ρ·(s ⊙ dy) - x·ρ³·mean(s ⊙ dy ⊙ x)` with `s = w` or `1 + w`,
//! and for the gated norm also the gradient of z.

pub(crate) mod cpu;
mod gpu;
pub mod reference;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};

use crate::conv::HeadGroups;
use crate::op::{self, expect_f32, wants_gradient};
use crate::{Error, Result};

pub(crate) use gpu::scale;
pub use gpu::{GpuGatedNorm, GpuNorm};

/// What multiplies the normalised values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The weight itself (Qwen2-MoE, Qwen3-MoE).
    Plain,
    /// One plus the weight (Qwen3-Next).
    ZeroCentred,
}

/// The norm of the given kind over the last dimension of `x`.
pub fn rms(x: &Tensor, weight: &Arc<[f32]>, kind: Kind, epsilon: f32) -> Result<Tensor> {
    expect_f32("rms norm", "input", x)?;
    let width = x.dims().last().copied().unwrap_or(0);
    if width != weight.len() || width == 0 {
        return Err(Error::shape("rms norm", "weight", width, weight.len()));
    }
    Ok(x.apply_op1(Rms { weight: weight.clone(), kind, epsilon })?)
}

/// `w ⊙ o·ρ(o) ⊙ silu(z)` per value head: `o` is `[rows, value_heads · value_dim]`, z is read in place from the grouped
/// projection `qkvz`, `weight` has `value_dim` values shared by all heads.
pub fn gated(o: &Tensor, qkvz: &Tensor, weight: &Arc<[f32]>, groups: &HeadGroups, epsilon: f32) -> Result<Tensor> {
    const OP: &str = "gated norm";
    groups.check()?;
    expect_f32(OP, "o", o)?;
    expect_f32(OP, "qkvz", qkvz)?;
    let rows = o.dims().first().copied().unwrap_or(0);
    if o.dims() != [rows, groups.value_width()] {
        return Err(Error::shape(OP, "o", [rows, groups.value_width()], o.dims()));
    }
    if qkvz.dims() != [rows, groups.projection_width()] {
        return Err(Error::shape(OP, "qkvz", [rows, groups.projection_width()], qkvz.dims()));
    }
    if weight.len() != groups.value_dim {
        return Err(Error::shape(OP, "weight", groups.value_dim, weight.len()));
    }
    Ok(o.apply_op2(qkvz, Gated { weight: weight.clone(), groups: *groups, epsilon })?)
}

struct Rms {
    weight: Arc<[f32]>,
    kind: Kind,
    epsilon: f32,
}

struct Gated {
    weight: Arc<[f32]>,
    groups: HeadGroups,
    epsilon: f32,
}

// === impl Rms ===

impl CustomOp1 for Rms {
    fn name(&self) -> &'static str {
        "rms norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = op::slice(self.name(), storage, layout)?;
        let y = cpu::forward(x, &self.weight, self.kind, self.epsilon);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        if !wants_gradient(x) {
            return Ok(None);
        }
        let dx = op::with_slice(x, |values| {
            op::with_slice(dy, |dy| cpu::backward(values, &self.weight, self.kind, self.epsilon, dy))
        })??;
        Ok(Some(op::tensor(dx, x.shape())?))
    }
}

// === impl Gated ===

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated norm"
    }

    fn cpu_fwd(
        &self,
        o: &CpuStorage,
        o_layout: &Layout,
        qkvz: &CpuStorage,
        qkvz_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let o = op::slice(self.name(), o, o_layout)?;
        let qkvz = op::slice(self.name(), qkvz, qkvz_layout)?;
        let y = cpu::gated_forward(o, qkvz, &self.weight, &self.groups, self.epsilon);
        Ok((CpuStorage::F32(y), o_layout.shape().clone()))
    }

    fn bwd(
        &self,
        o: &Tensor,
        qkvz: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (d_o, d_qkvz) = op::with_slice(o, |o| {
            op::with_slice(qkvz, |qkvz| {
                op::with_slice(dy, |dy| cpu::gated_backward(o, qkvz, &self.weight, &self.groups, self.epsilon, dy))
            })
        })???;
        let d_o = wants_gradient(o).then(|| op::tensor(d_o, o.shape())).transpose()?;
        let d_qkvz = wants_gradient(qkvz).then(|| op::tensor(d_qkvz, qkvz.shape())).transpose()?;
        Ok((d_o, d_qkvz))
    }
}

#[cfg(test)]
mod tests;
