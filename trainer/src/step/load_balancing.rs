//! The router's load-balancing loss.
//!
//! Over the real tokens `t` of all sparse layers `l` of one micro-batch, `rows = layers · tokens`:
//! ```text
//! aux = E · Σ_e f_e P_e        f_e = (choices of e) / rows        P_e = Σ_lt softmax(logits_lt)_e / rows
//! ```
//! as transformers computes it in each forward pass; `f_e` has no gradient. A step of `M` micro-batches minimises
//! ```text
//! Σ_m cross_entropy_m / Σ_m targets_m  +  coefficient · (1/M) Σ_m aux_m
//! ```
//! The first term does not depend on how the step is cut into micro-batches. The second one does, because `f_e P_e` is
//! no sum over tokens: it asks for balance inside of each micro-batch, and counts as much whatever `M` is. (As its
//! source shows, the `Trainer` of transformers adds the `aux_m` of a step up undivided when it knows the number of
//! targets, so that there the coefficient in effect grows with `M`. With one micro-batch the two agree.)

use std::sync::Arc;

use brightrun_kernels::moe::aux_loss;
use candle_core::Tensor;

use super::scalar;
use crate::Result;
use crate::model::RouterOutput;

/// The load-balancing loss of one micro-batch, with the shares it was found to have.
pub(super) struct LoadBalancing {
    shares: Arc<[f32]>,
    valid: Arc<[f32]>,
    weight: f64,
}

// === impl LoadBalancing ===

impl LoadBalancing {
    /// Of these routers (nothing where there are none); `valid` is 0 at padding. `weight` is what the loss counts.
    pub(super) fn new(routers: &[Option<RouterOutput>], valid: &[f32], weight: f64) -> Option<Self> {
        Some(Self { shares: shares(routers, valid)?, valid: valid.into(), weight })
    }

    /// `aux`.
    pub(super) fn value(&self, routers: &[Option<RouterOutput>]) -> Result<f64> {
        routers
            .iter()
            .flatten()
            .try_fold(0.0, |sum, r| Ok(sum + scalar(&aux_loss(&r.logits, &self.shares, &self.valid)?)?))
    }

    /// A layer's part of `weight · aux`, as a scalar of the graph.
    pub(super) fn term(&self, router: &RouterOutput) -> Result<Tensor> {
        Ok((aux_loss(&router.logits, &self.shares, &self.valid)? * self.weight)?)
    }
}

/// `E · f_e / rows`, so that `aux = Σ_lt Σ_e share_e p_lte`.
fn shares(routers: &[Option<RouterOutput>], valid: &[f32]) -> Option<Arc<[f32]>> {
    let routers: Vec<_> = routers.iter().flatten().collect();
    let experts = routers.first()?.routing.experts();
    let rows = routers.len() as f64 * valid.iter().map(|v| f64::from(*v)).sum::<f64>();
    let mut counts = vec![0.0f64; experts];
    for router in routers {
        let k = router.routing.per_token();
        for (slot, &expert) in router.routing.chosen().iter().enumerate() {
            counts[expert as usize] += f64::from(valid[slot / k]);
        }
    }
    Some(counts.iter().map(|count| (experts as f64 * count / rows / rows) as f32).collect())
}
