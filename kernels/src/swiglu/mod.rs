//! The activation of every feed-forward block, and the gate of the shared expert.
//!
//! * [`swiglu`]: `y = silu(gate) ⊙ up`, `silu(x) = x·σ(x)`; `d gate = dy ⊙ up ⊙ σ(1 + gate(1 - σ))`, `d up = dy ⊙
//!   silu(gate)`.
//! * [`scale_rows`]: `out_row = σ(g_row)·y_row`; `d y = σ·dout`, `d g = σ(1 - σ)·(y · dout)`.

pub(crate) mod cpu;
pub mod gpu;
pub mod reference;

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};

use crate::op::{self, expect_f32, wants_gradient};
use crate::{Error, Result};

const SWIGLU: &str = "swiglu";
const SCALE: &str = "sigmoid row scale";

/// `silu(gate) ⊙ up` for two tensors of one shape.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    expect_f32(SWIGLU, "gate", gate)?;
    expect_f32(SWIGLU, "up", up)?;
    if gate.dims() != up.dims() {
        return Err(Error::shape(SWIGLU, "up", gate.dims(), up.dims()));
    }
    Ok(gate.apply_op2(up, SwiGlu)?)
}

/// `σ(g) · y` row by row: `y` is `[rows, width]`, `g` is `[rows, 1]`.
pub fn scale_rows(y: &Tensor, g: &Tensor) -> Result<Tensor> {
    expect_f32(SCALE, "rows", y)?;
    expect_f32(SCALE, "gate", g)?;
    let &[rows, width] = y.dims() else {
        return Err(Error::shape(SCALE, "rows", "two dimensions", y.dims()));
    };
    if width == 0 {
        return Err(Error::invalid(SCALE, "rows must not be empty"));
    }
    if g.dims() != [rows, 1] {
        return Err(Error::shape(SCALE, "gate", [rows, 1], g.dims()));
    }
    Ok(y.apply_op2(g, ScaleRows { width })?)
}

struct SwiGlu;

struct ScaleRows {
    width: usize,
}

/// The gradients that the graph wants, in the shapes of their arguments.
fn gradients(
    (first, d_first): (&Tensor, Vec<f32>),
    (second, d_second): (&Tensor, Vec<f32>),
) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
    let d_first = wants_gradient(first).then(|| op::tensor(d_first, first.shape())).transpose()?;
    let d_second = wants_gradient(second).then(|| op::tensor(d_second, second.shape())).transpose()?;
    Ok((d_first, d_second))
}

// === impl SwiGlu ===

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        SWIGLU
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let y = cpu::forward(op::slice(SWIGLU, gate, gate_layout)?, op::slice(SWIGLU, up, up_layout)?);
        Ok((CpuStorage::F32(y), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (d_gate, d_up) = op::with_slice(gate, |gate| {
            op::with_slice(up, |up| op::with_slice(dy, |dy| cpu::backward(gate, up, dy)))
        })???;
        gradients((gate, d_gate), (up, d_up))
    }
}

// === impl ScaleRows ===

impl CustomOp2 for ScaleRows {
    fn name(&self) -> &'static str {
        SCALE
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        y_layout: &Layout,
        g: &CpuStorage,
        g_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let out = cpu::scale_forward(op::slice(SCALE, y, y_layout)?, op::slice(SCALE, g, g_layout)?, self.width);
        Ok((CpuStorage::F32(out), y_layout.shape().clone()))
    }

    fn bwd(
        &self,
        y: &Tensor,
        g: &Tensor,
        _out: &Tensor,
        upstream: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (d_y, d_g) = op::with_slice(y, |y| {
            op::with_slice(g, |g| op::with_slice(upstream, |upstream| cpu::scale_backward(y, g, upstream, self.width)))
        })???;
        gradients((y, d_y), (g, d_g))
    }
}

#[cfg(test)]
mod tests;
