//! From router logits to the weights of the chosen experts, and the load-balancing loss. Both are differentiable in
//! the logits: the router's weight is frozen, but its input is not.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::Routing;
use crate::op::{expect_f32, slice, tensor, with_slices};
use crate::{Error, Result};

const WEIGHTS: &str = "moe routing weights";
const AUX: &str = "moe aux loss";

/// Softmax of one row of logits, in `f32` as the reference does it.
pub(crate) fn softmax(logits: &[f32]) -> Vec<f32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut p: Vec<f32> = logits.iter().map(|x| (x - top).exp()).collect();
    let sum: f32 = p.iter().sum();
    p.iter_mut().for_each(|x| *x /= sum);
    p
}

/// `dlogit_e = p_e (dp_e − Σ_j p_j dp_j)`, in place of `dp`.
fn softmax_backward(p: &[f32], dp: &mut [f32]) {
    let mean: f32 = p.iter().zip(dp.iter()).map(|(p, d)| p * d).sum();
    p.iter().zip(dp.iter_mut()).for_each(|(p, d)| *d = p * (*d - mean));
}

struct Weights {
    routing: Arc<Routing>,
    normalise: bool,
}

impl CustomOp1 for Weights {
    fn name(&self) -> &'static str {
        WEIGHTS
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let logits = slice(WEIGHTS, logits, layout)?;
        let (experts, k) = (self.routing.experts(), self.routing.per_token());
        let mut weights = vec![0.0; self.routing.chosen().len()];
        weights.par_chunks_mut(k).enumerate().with_min_len(64).for_each(|(token, weights)| {
            let p = softmax(&logits[token * experts..][..experts]);
            for (weight, &expert) in weights.iter_mut().zip(&self.routing.chosen()[token * k..][..k]) {
                *weight = p[expert as usize];
            }
            if self.normalise {
                let sum: f32 = weights.iter().sum();
                weights.iter_mut().for_each(|w| *w /= sum);
            }
        });
        Ok((CpuStorage::F32(weights), (self.routing.tokens(), k).into()))
    }

    fn bwd(&self, logits: &Tensor, weights: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (experts, k) = (self.routing.experts(), self.routing.per_token());
        let dlogits = with_slices([logits, weights, grad], |[logits, weights, grad]| {
            let mut dlogits = vec![0.0; logits.len()];
            dlogits.par_chunks_mut(experts).enumerate().with_min_len(64).for_each(|(token, dp)| {
                let p = softmax(&logits[token * experts..][..experts]);
                let chosen = &self.routing.chosen()[token * k..][..k];
                let (w, dw) = (&weights[token * k..][..k], &grad[token * k..][..k]);
                // w_j = p_j / Σp: dp_j = (dw_j − Σ_i w_i dw_i) / Σp
                let (shift, sum) = if self.normalise {
                    let shift: f32 = w.iter().zip(dw).map(|(w, d)| w * d).sum();
                    (shift, chosen.iter().map(|&e| p[e as usize]).sum())
                } else {
                    (0.0, 1.0)
                };
                for (&expert, dw) in chosen.iter().zip(dw) {
                    dp[expert as usize] = (dw - shift) / sum;
                }
                softmax_backward(&p, dp);
            });
            dlogits
        })?;
        Ok(Some(tensor(dlogits, logits.shape())?))
    }
}

/// The weights `[tokens, per_token]` of the chosen experts: softmax over all experts, then (when `normalise`) divided
/// by their sum.
pub fn routing_weights(logits: &Tensor, routing: &Arc<Routing>, normalise: bool) -> Result<Tensor> {
    expect_f32(WEIGHTS, "logits", logits)?;
    if logits.dims() != [routing.tokens(), routing.experts()] {
        return Err(Error::shape(WEIGHTS, "logits", [routing.tokens(), routing.experts()], logits.dims()));
    }
    Ok(logits.apply_op1_arc(Arc::new(Box::new(Weights { routing: routing.clone(), normalise })))?)
}

/// Load-balancing loss of one layer for frozen expert shares: `Σ_t valid_t Σ_e share_e · softmax(logits_t)_e`.
struct AuxLoss {
    shares: Arc<[f32]>,
    valid: Arc<[f32]>,
}

impl CustomOp1 for AuxLoss {
    fn name(&self) -> &'static str {
        AUX
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let logits = slice(AUX, logits, layout)?;
        let sum: f64 = logits
            .chunks_exact(self.shares.len())
            .zip(self.valid.iter())
            .map(|(logits, valid)| {
                let p = softmax(logits);
                f64::from(*valid) * p.iter().zip(self.shares.iter()).map(|(p, s)| f64::from(p * s)).sum::<f64>()
            })
            .sum();
        Ok((CpuStorage::F32(vec![sum as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _res: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let upstream = grad.to_scalar::<f32>()?;
        let dlogits = with_slices([logits], |[logits]| {
            let mut dlogits = vec![0.0; logits.len()];
            let rows = dlogits.par_chunks_mut(self.shares.len()).zip(logits.par_chunks(self.shares.len()));
            rows.zip(self.valid.par_iter()).with_min_len(64).for_each(|((dp, logits), valid)| {
                dp.iter_mut().zip(self.shares.iter()).for_each(|(d, s)| *d = upstream * valid * s);
                softmax_backward(&softmax(logits), dp);
            });
            dlogits
        })?;
        Ok(Some(tensor(dlogits, logits.shape())?))
    }
}

/// `Σ_t valid_t Σ_e share_e · softmax(logits_t)_e`, differentiable in the logits. With `share_e = E · f_e / rows` (the
/// share `f_e` of slots given to expert `e` over all layers) the sum over layers is the load-balancing loss.
pub fn aux_loss(logits: &Tensor, shares: &Arc<[f32]>, valid: &Arc<[f32]>) -> Result<Tensor> {
    expect_f32(AUX, "logits", logits)?;
    if logits.dims() != [valid.len(), shares.len()] {
        return Err(Error::shape(AUX, "logits", [valid.len(), shares.len()], logits.dims()));
    }
    Ok(logits.apply_op1_arc(Arc::new(Box::new(AuxLoss { shares: shares.clone(), valid: valid.clone() })))?)
}
