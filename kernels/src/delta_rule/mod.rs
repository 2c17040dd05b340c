//! Gated delta rule with its gates and normalisation, as Qwen3-Next uses it between the convolution and the gated norm.
//!
//! Input: `qkv [N, 2K + V]` (convolved: queries, keys, values, head after head) and `ba [N, 2·value_heads]` (per key
//! head the `b` of its value heads, then their `a`). Per value head `h`, whose queries and keys are those of key head
//! `h / (value_heads / key_heads)`:
//! ```text
//! q ← l2norm(q) · key_dim^(−1/2)        k ← l2norm(k)
//! beta = σ(b)                           g = −exp(A_log) · softplus(a + dt_bias)
//! S ← exp(g) S;   u = beta (v − Sᵀ k);  S ← S + k uᵀ;   o = Sᵀ q
//! ```
//! The state starts from zero in every document. The fast versions work in chunks (`cpu`, `gpu`), the reference token by
//! token.

mod continued;
mod cpu;
mod gpu;
pub mod reference;

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};

pub use continued::{State, delta_rule_continued};
pub use gpu::{GpuChunks, GpuDeltaRule, GpuSaved};

use crate::conv::HeadGroups;
use crate::op::{expect_f32, slice, tensor, wants_gradient, with_slices};
use crate::{Documents, Error, Result};

const NAME: &str = "gated delta rule";
/// Forward keeps what backward needs only for arguments that want a gradient.
const KEPT_NOTHING: &str = "backward without a forward pass in which qkv or ba asked for a gradient";

/// The frozen parts of the op.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// Heads and their widths.
    pub groups: HeadGroups,
    /// `A_log`, one per value head.
    pub a_log: Arc<[f32]>,
    /// `dt_bias`, one per value head.
    pub dt_bias: Arc<[f32]>,
}

impl Parameters {
    pub(crate) fn qkv_width(&self) -> usize {
        self.groups.convolved_width()
    }

    pub(crate) fn value_offset(&self, head: usize) -> usize {
        2 * self.groups.key_width() + head * self.groups.value_dim
    }

    /// Where `b` and `a` of a value head are in `ba`.
    pub(crate) fn gate_offsets(&self, t: usize, head: usize) -> (usize, usize) {
        let per_key = self.groups.values_per_key();
        let row = t * 2 * self.groups.value_heads + (head / per_key) * 2 * per_key + head % per_key;
        (row, row + per_key)
    }

    /// `beta` and `g` of a value head at a token.
    pub(crate) fn gates(&self, ba: &[f32], t: usize, head: usize) -> (f32, f32) {
        let (at_b, at_a) = self.gate_offsets(t, head);
        (sigmoid(ba[at_b]), -self.a_log[head].exp() * softplus(ba[at_a] + self.dt_bias[head]))
    }

    /// Gradients of `b` and `a` for the gradients of `beta` and `g`.
    pub(crate) fn gate_gradients(&self, ba: &[f32], t: usize, head: usize, dbeta: f32, dg: f32) -> (f32, f32) {
        let (at_b, at_a) = self.gate_offsets(t, head);
        let beta = sigmoid(ba[at_b]);
        let x = ba[at_a] + self.dt_bias[head];
        let slope = if x > SOFTPLUS_LINEAR { 1.0 } else { sigmoid(x) };
        (dbeta * beta * (1.0 - beta), -dg * self.a_log[head].exp() * slope)
    }

    fn check(&self, qkv: &Tensor, ba: &Tensor, tokens: usize) -> Result<()> {
        let groups = &self.groups;
        groups.check()?;
        for (what, found, expected) in
            [("qkv", qkv.dims(), [tokens, self.qkv_width()]), ("ba", ba.dims(), [tokens, 2 * groups.value_heads])]
        {
            if found != expected {
                return Err(Error::shape(NAME, what, expected, found));
            }
        }
        for (what, found) in [("A_log", self.a_log.len()), ("dt_bias", self.dt_bias.len())] {
            if found != groups.value_heads {
                return Err(Error::shape(NAME, what, groups.value_heads, found));
            }
        }
        expect_f32(NAME, "qkv", qkv)?;
        expect_f32(NAME, "ba", ba)
    }
}

/// Above this, softplus is the identity (torch's threshold).
const SOFTPLUS_LINEAR: f32 = 20.0;

fn softplus(x: f32) -> f32 {
    if x > SOFTPLUS_LINEAR { x } else { x.exp().ln_1p() }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

struct DeltaRule {
    parameters: Parameters,
    documents: Documents,
    saved: Mutex<Option<cpu::Saved>>,
    save: bool,
}

impl CustomOp2 for DeltaRule {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
        ba: &CpuStorage,
        ba_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (qkv, ba) = (slice(NAME, qkv, qkv_layout)?, slice(NAME, ba, ba_layout)?);
        let (out, saved) = cpu::forward(&self.parameters, qkv, ba, &self.documents, self.save);
        *self.saved.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = saved;
        let groups = &self.parameters.groups;
        let shape = (self.documents.tokens(), groups.value_width());
        Ok((CpuStorage::F32(out), shape.into()))
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        ba: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let guard = self.saved.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let saved = guard.as_ref().ok_or_else(|| Error::invalid(NAME, KEPT_NOTHING))?;
        let (dqkv, dba) = with_slices([qkv, ba, grad], |[qkv, ba, grad]| {
            cpu::backward(&self.parameters, qkv, ba, &self.documents, saved, grad)
        })?;
        Ok((Some(tensor(dqkv, qkv.shape())?), Some(tensor(dba, ba.shape())?)))
    }
}

/// The op on a packed row; see the module's formula. Returns `[N, value_heads · value_dim]`.
pub fn delta_rule(qkv: &Tensor, ba: &Tensor, parameters: &Parameters, documents: &Documents) -> Result<Tensor> {
    parameters.check(qkv, ba, documents.tokens())?;
    let save = wants_gradient(qkv) || wants_gradient(ba);
    let op = DeltaRule { parameters: parameters.clone(), documents: documents.clone(), saved: Mutex::new(None), save };
    Ok(qkv.apply_op2_arc(ba, Arc::new(Box::new(op)))?)
}

#[cfg(test)]
mod tests;
