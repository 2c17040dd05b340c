//! Mixture of experts: routing, routing weights, and the routed experts with their LoRA as one op.
//!
//! ```text
//! p = softmax(logits)      (w, idx) = top-k(p)      w ← w / Σw  when normalised
//! y = Σ_j w_j · down_e( silu(gate_e x) ⊙ up_e x ),  e = idx_j
//! ```
//! Every projection is `W x + scale · B A drop(x)`. Gradients flow to `x`, to the routing weights (and through them to
//! the router's input) and to the LoRA matrices, which all experts of a layer keep in one flat parameter
//! ([`ExpertLoraLayout`]). An expert without rows gets an all-zero gradient here; whether it is skipped or moved by its
//! momentum is the optimiser's choice.

mod cpu;
mod experts;
mod gpu;
pub mod reference;
mod router;
mod routing;

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};

pub use experts::{Expert, ExpertLora, ExpertLoraLayout, ExpertProjection, ExpertRanks};
pub use gpu::{
    Balance, Cores, ExpertUse, ExpertsCall, GpuExpertLora, GpuExperts, GpuRouting, Gradients, Kept, LayerUse, LoadSums,
};
pub use router::{aux_loss, routing_weights};
pub use routing::Routing;

use crate::dropout::Dropout;
use crate::op::{expect_f32, slice, tensor, wants_gradient, with_slices};
use crate::{Error, Result};

const NAME: &str = "moe experts";

/// Everything of one use of the op that is not differentiated.
#[derive(Debug, Clone)]
pub struct Call {
    /// The frozen experts.
    pub experts: Arc<[Expert]>,
    /// Which rows go where.
    pub routing: Arc<Routing>,
    /// Where the LoRA matrices are.
    pub lora: Arc<ExpertLoraLayout>,
    /// Dropout on the LoRA input of gate, up and down.
    pub dropout: Option<[Dropout; 3]>,
}

impl Call {
    fn hidden(&self) -> usize {
        self.experts[0].hidden()
    }

    fn intermediate(&self) -> usize {
        self.experts[0].intermediate()
    }

    fn dropout(&self, which: usize) -> Option<&Dropout> {
        self.dropout.as_ref().map(|all| &all[which])
    }

    fn check(&self, x: &Tensor, weights: &Tensor, lora: &Tensor) -> Result<()> {
        let count = self.routing.experts();
        if self.experts.is_empty() || self.experts.len() != count || self.lora.experts() != count {
            let found = (self.experts.len(), self.lora.experts());
            return Err(Error::shape(NAME, "experts and their LoRA layouts", (count, count), found));
        }
        let (hidden, inner) = (self.hidden(), self.intermediate());
        if let Some(other) = self.experts.iter().find(|e| (e.hidden(), e.intermediate()) != (hidden, inner)) {
            return Err(Error::shape(NAME, "an expert", (hidden, inner), (other.hidden(), other.intermediate())));
        }
        for projections in (0..count).map(|e| self.lora.expert(e)) {
            for (p, inputs, outputs) in [
                (&projections.gate, hidden, inner),
                (&projections.up, hidden, inner),
                (&projections.down, inner, hidden),
            ] {
                if let Some(p) = p
                    && (p.a.len(), p.b.len()) != (p.rank * inputs, p.rank * outputs)
                {
                    return Err(Error::shape(
                        NAME,
                        "LoRA sizes",
                        (p.rank * inputs, p.rank * outputs),
                        (p.a.len(), p.b.len()),
                    ));
                }
            }
        }
        let tokens = self.routing.tokens();
        for (what, argument, expected) in [
            ("x", x, vec![tokens, hidden]),
            ("routing weights", weights, vec![tokens, self.routing.per_token()]),
            ("LoRA", lora, vec![self.lora.len()]),
        ] {
            expect_f32(NAME, what, argument)?;
            if argument.dims() != expected {
                return Err(Error::shape(NAME, what, expected, argument.dims()));
            }
        }
        Ok(())
    }
}

struct Experts {
    call: Call,
    save: bool,
    saved: Mutex<cpu::Saved>,
}

impl CustomOp3 for Experts {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weights: &CpuStorage,
        weights_layout: &Layout,
        lora: &CpuStorage,
        lora_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = slice(NAME, x, x_layout)?;
        let (weights, lora) = (slice(NAME, weights, weights_layout)?, slice(NAME, lora, lora_layout)?);
        let (out, saved) = cpu::forward(&self.call, x, weights, lora, self.save);
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = saved;
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weights: &Tensor,
        lora: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let want_x = wants_gradient(x);
        let gradients = with_slices([x, weights, lora, grad], |[x, weights, lora, dout]| {
            cpu::backward(&self.call, &cpu::Backward { x, weights, lora, saved: &saved, dout }, want_x)
        })?;
        let dx = gradients.x.map(|dx| tensor(dx, x.shape())).transpose()?;
        let dweights = wants_gradient(weights).then(|| tensor(gradients.weights, weights.shape())).transpose()?;
        let dlora = wants_gradient(lora).then(|| tensor(gradients.lora, lora.shape())).transpose()?;
        Ok((dx, dweights, dlora))
    }
}

/// The routed experts: `x [tokens, hidden]`, routing weights `[tokens, per_token]`, flat LoRA parameter (empty where no
/// expert is adapted).
pub fn experts(x: &Tensor, weights: &Tensor, lora: &Tensor, call: &Call) -> Result<Tensor> {
    call.check(x, weights, lora)?;
    let save = [x, weights, lora].into_iter().any(wants_gradient);
    let op = Experts { call: call.clone(), save, saved: Mutex::default() };
    Ok(x.apply_op3_arc(weights, lora, Arc::new(Box::new(op)))?)
}

#[cfg(test)]
mod tests;
