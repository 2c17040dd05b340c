//! What happens to the heads of q and k between projection and attention, and to the heads of the result after it.
//!
//! * [`head_norm_rope`]: per head `rotate(norm(x))`. The rotation turns the first `rotary_dim` values of a head, as the
//!   pairs `(x_i, x_{i + rotary_dim/2})`, by the angle `position · θ^(-2i / rotary_dim)`; the others pass. Its backward
//!   pass is the rotation by the negative angle, then the norm's.
//! * [`sigmoid_gate`]: `attention ⊙ σ(gate)` with the gate taken from the raw query projection, where each head is
//!   `query (head_dim) | gate (head_dim)`; `d attention = dy ⊙ σ`, `d gate = dy ⊙ attention ⊙ σ(1 - σ)`.

mod cpu;
pub mod gpu;
pub mod reference;
mod table;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};

use crate::norm::Kind;
use crate::op::{self, expect_f32, wants_gradient};
use crate::{Error, Result};

pub use gpu::{GpuHeadNormRope, GpuRopeTable};
pub use table::RopeTable;

const PREPARE: &str = "head norm and rope";
const GATE: &str = "sigmoid gate";

/// Where the heads lie in a row of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Heads in a row.
    pub heads: usize,
    /// Values of a head that are used.
    pub head_dim: usize,
    /// Values from one head to the next: `head_dim`, or `2 · head_dim` where a gate follows each query.
    pub source_stride: usize,
}

/// A norm over each head, before the rotation.
#[derive(Debug, Clone)]
pub struct HeadNorm {
    /// `head_dim` values, shared by all heads.
    pub weight: Arc<[f32]>,
    /// How the weight is used.
    pub kind: Kind,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// All that [`head_norm_rope`] needs besides its input.
#[derive(Debug, Clone)]
pub struct HeadNormRope {
    /// Layout of the source.
    pub shape: HeadShape,
    /// The norm, if the model has one.
    pub norm: Option<HeadNorm>,
    /// Angles.
    pub table: RopeTable,
    /// Position of every row in its own document.
    pub positions: Arc<[u32]>,
}

/// Per head `rotate(norm(x))`: `[rows, heads · source_stride]` to `[rows, heads · head_dim]`.
pub fn head_norm_rope(x: &Tensor, rope: HeadNormRope) -> Result<Tensor> {
    expect_f32(PREPARE, "input", x)?;
    rope.check()?;
    let expected = [rope.positions.len(), rope.shape.heads * rope.shape.source_stride];
    if x.dims() != expected {
        return Err(Error::shape(PREPARE, "input", expected, x.dims()));
    }
    Ok(x.apply_op1(rope)?)
}

/// `attention ⊙ σ(gate)`: `attention` is `[rows, heads · head_dim]`, `raw` the query projection
/// `[rows, heads · 2 · head_dim]` with the gate in the second half of each head.
pub fn sigmoid_gate(attention: &Tensor, raw: &Tensor, heads: usize, head_dim: usize) -> Result<Tensor> {
    expect_f32(GATE, "attention", attention)?;
    expect_f32(GATE, "raw projection", raw)?;
    if head_dim == 0 {
        return Err(Error::invalid(GATE, "head_dim must not be 0"));
    }
    let rows = attention.dims().first().copied().unwrap_or(0);
    if attention.dims() != [rows, heads * head_dim] {
        return Err(Error::shape(GATE, "attention", [rows, heads * head_dim], attention.dims()));
    }
    if raw.dims() != [rows, heads * 2 * head_dim] {
        return Err(Error::shape(GATE, "raw projection", [rows, heads * 2 * head_dim], raw.dims()));
    }
    Ok(attention.apply_op2(raw, SigmoidGate { head_dim })?)
}

struct SigmoidGate {
    head_dim: usize,
}

// === impl HeadShape ===

impl HeadShape {
    fn check(&self) -> Result<()> {
        if self.heads == 0 || self.head_dim == 0 || self.source_stride < self.head_dim {
            return Err(Error::invalid(PREPARE, format!("impossible head layout {self:?}")));
        }
        Ok(())
    }
}

// === impl HeadNormRope ===

impl HeadNormRope {
    fn check(&self) -> Result<()> {
        self.shape.check()?;
        let head_dim = self.shape.head_dim;
        if self.table.rotary_dim() > head_dim {
            return Err(Error::shape(PREPARE, "rotary size, at most", head_dim, self.table.rotary_dim()));
        }
        if let Some(norm) = &self.norm
            && norm.weight.len() != head_dim
        {
            return Err(Error::shape(PREPARE, "norm weight", head_dim, norm.weight.len()));
        }
        let last = self.positions.iter().copied().max();
        if let Some(last) = last.filter(|&p| p as usize >= self.table.positions()) {
            return Err(Error::invalid(
                PREPARE,
                format!("position {last} is outside of a table of {} positions", self.table.positions()),
            ));
        }
        Ok(())
    }
}

impl CustomOp1 for HeadNormRope {
    fn name(&self) -> &'static str {
        PREPARE
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let y = cpu::forward(op::slice(PREPARE, storage, layout)?, self);
        Ok((CpuStorage::F32(y), (self.positions.len(), self.shape.heads * self.shape.head_dim).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        if !wants_gradient(x) {
            return Ok(None);
        }
        let dx = op::with_slice(x, |x| op::with_slice(dy, |dy| cpu::backward(x, self, dy)))??;
        Ok(Some(op::tensor(dx, x.shape())?))
    }
}

// === impl SigmoidGate ===

impl CustomOp2 for SigmoidGate {
    fn name(&self) -> &'static str {
        GATE
    }

    fn cpu_fwd(
        &self,
        attention: &CpuStorage,
        attention_layout: &Layout,
        raw: &CpuStorage,
        raw_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let attention = op::slice(GATE, attention, attention_layout)?;
        let y = cpu::gate_forward(attention, op::slice(GATE, raw, raw_layout)?, self.head_dim);
        Ok((CpuStorage::F32(y), attention_layout.shape().clone()))
    }

    fn bwd(
        &self,
        attention: &Tensor,
        raw: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (d_attention, d_raw) = op::with_slice(attention, |attention| {
            op::with_slice(raw, |raw| op::with_slice(dy, |dy| cpu::gate_backward(attention, raw, self.head_dim, dy)))
        })???;
        let d_attention = wants_gradient(attention).then(|| op::tensor(d_attention, attention.shape())).transpose()?;
        let d_raw = wants_gradient(raw).then(|| op::tensor(d_raw, raw.shape())).transpose()?;
        Ok((d_attention, d_raw))
    }
}

#[cfg(test)]
mod tests;
