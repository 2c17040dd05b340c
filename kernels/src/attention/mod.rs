//! Causal grouped-query softmax attention over packed documents.
//!
//! `q [N, query · width]`, `k`, `v [N, key_value · width]` (normalised and rotated):
//! `out_t = Σ_s softmax_s(q_t · k_s / √width) v_s` over the positions `s ≤ t` of the same document that are not
//! padding. Query head `j` uses key head `j / (query / key_value)`. The output gate of Qwen3-Next is
//! [`crate::rope::sigmoid_gate`].

mod cached;
mod cpu;
mod gpu;
pub mod reference;

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};

pub use cached::attend;
pub use gpu::{GpuAttended, GpuAttention};
pub use reference::Heads;

use crate::op::{expect_f32, slice, tensor, wants_gradient, with_slices};
use crate::{Documents, Error, Result};

const NAME: &str = "attention";

struct Attention {
    heads: Heads,
    documents: Documents,
    save: bool,
    log_sums: Mutex<Vec<f32>>,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (q, k, v) = (slice(NAME, q, q_layout)?, slice(NAME, k, k_layout)?, slice(NAME, v, v_layout)?);
        let (out, log_sums) = cpu::forward(&self.heads, q, k, v, &self.documents, self.save);
        *self.log_sums.lock().unwrap_or_else(PoisonError::into_inner) = log_sums;
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let log_sums = self.log_sums.lock().unwrap_or_else(PoisonError::into_inner);
        let (dq, dk, dv) = with_slices([q, k, v, out, grad], |[q, k, v, out, grad]| {
            let pass = cpu::Forward { q, k, v, out, log_sums: &log_sums };
            cpu::backward(&self.heads, &pass, &self.documents, grad)
        })?;
        Ok((Some(tensor(dq, q.shape())?), Some(tensor(dk, k.shape())?), Some(tensor(dv, v.shape())?)))
    }
}

/// The op on a packed row; see the module's formula.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads, documents: &Documents) -> Result<Tensor> {
    if heads.key_value == 0 || heads.query == 0 || !heads.query.is_multiple_of(heads.key_value) {
        return Err(Error::shape(NAME, "query heads", "a multiple of the key heads", heads));
    }
    let tokens = documents.tokens();
    for (what, argument, count) in [("q", q, heads.query), ("k", k, heads.key_value), ("v", v, heads.key_value)] {
        expect_f32(NAME, what, argument)?;
        if argument.dims() != [tokens, count * heads.width] {
            return Err(Error::shape(NAME, what, [tokens, count * heads.width], argument.dims()));
        }
    }
    let save = [q, k, v].into_iter().any(wants_gradient);
    let op = Attention { heads, documents: documents.clone(), save, log_sums: Mutex::default() };
    Ok(q.apply_op3_arc(k, v, Arc::new(Box::new(op)))?)
}

#[cfg(test)]
mod tests;
