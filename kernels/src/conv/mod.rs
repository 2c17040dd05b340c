//! The short causal convolution of the gated delta net, with silu, straight from the grouped projection.
//!
//! `y[t, c] = silu(p[t, c])`, `p[t, c] = Σ_{i < taps} w[c, i] · x[t - (taps-1) + i, c]`, where x are the channels
//! `q.flat | k.flat | v.flat` of the projection (see [`HeadGroups`]) and tokens before the start of t's document count as
//! zero. Backward: `dx[t, c] = Σ_{b < taps} w[c, taps-1-b] · dp[t + b, c]` inside the document,
//! `dp = dy ⊙ σ(p)(1 + p(1 - σ(p)))`. The weight is frozen.

mod cpu;
mod gpu;
mod layout;
pub mod reference;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

use crate::op::{self, expect_f32, wants_gradient};
use crate::{Documents, Error, Result};

pub use gpu::GpuConv;
pub use layout::HeadGroups;

const OP: &str = "causal convolution";

/// The frozen taps of all channels. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ConvWeight {
    channels: usize,
    taps: usize,
    /// `[taps, channels]`, so that one tap of neighbouring channels is contiguous.
    by_tap: Arc<[f32]>,
}

/// `silu(conv(qkv))`: `qkvz` is the grouped projection `[tokens, …]`, the result `[tokens, q | k | v]`.
pub fn causal_conv_silu(
    qkvz: &Tensor,
    weight: &ConvWeight,
    groups: &HeadGroups,
    documents: &Documents,
) -> Result<Tensor> {
    groups.check()?;
    expect_f32(OP, "qkvz", qkvz)?;
    if qkvz.dims() != [documents.tokens(), groups.projection_width()] {
        return Err(Error::shape(OP, "qkvz", [documents.tokens(), groups.projection_width()], qkvz.dims()));
    }
    if weight.channels != groups.convolved_width() {
        return Err(Error::shape(OP, "channels of the weight", groups.convolved_width(), weight.channels));
    }
    Ok(qkvz.apply_op1(CausalConv { weight: weight.clone(), groups: *groups, documents: documents.clone() })?)
}

struct CausalConv {
    weight: ConvWeight,
    groups: HeadGroups,
    documents: Documents,
}

// === impl ConvWeight ===

impl ConvWeight {
    /// From the checkpoint's `conv1d.weight`, `[channels, 1, taps]`, row-major.
    pub fn new(values: &[f32], channels: usize, taps: usize) -> Result<Self> {
        if taps == 0 || channels.checked_mul(taps) != Some(values.len()) {
            return Err(Error::shape(OP, "weight", (channels, taps), values.len()));
        }
        let by_tap = (0..taps).flat_map(|tap| values.iter().skip(tap).step_by(taps).copied()).collect();
        Ok(Self { channels, taps, by_tap })
    }

    /// The factors as they are held, tap after tap.
    pub fn values(&self) -> &[f32] {
        &self.by_tap
    }

    /// Tokens that one output depends on.
    pub fn taps(&self) -> usize {
        self.taps
    }

    /// All channels' factor for the token `back` places ago.
    #[inline(always)]
    fn back(&self, back: usize) -> &[f32] {
        let tap = self.taps - 1 - back;
        &self.by_tap[tap * self.channels..(tap + 1) * self.channels]
    }
}

// === impl CausalConv ===

impl CustomOp1 for CausalConv {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let qkvz = op::slice(OP, storage, layout)?;
        let y = cpu::forward(qkvz, &self.weight, &self.groups, &self.documents);
        Ok((CpuStorage::F32(y), (self.documents.tokens(), self.groups.convolved_width()).into()))
    }

    fn bwd(&self, qkvz: &Tensor, _y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        if !wants_gradient(qkvz) {
            return Ok(None);
        }
        let d_qkvz = op::with_slice(qkvz, |values| {
            op::with_slice(dy, |dy| cpu::backward(values, &self.weight, &self.groups, &self.documents, dy))
        })??;
        Ok(Some(op::tensor(d_qkvz, qkvz.shape())?))
    }
}

#[cfg(test)]
mod tests;
