//! How routed experts are used: tokens of every expert, and how sure the routers are.
//!
//! The entropy of a layer is the mean over its tokens of `-Σ_e p_e ln p_e` with `p = softmax(logits)`, as a share of the
//! greatest possible one, `ln E`: near 0 each token knows its experts, near 1 all are the same to it. Padding counts
//! nowhere.

use std::collections::BTreeMap;

use brightrun_kernels::op::with_slice;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::events::ExpertUse;
use crate::model::RouterOutput;

/// How the routed experts of all layers were used, summed over micro-batches.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ExpertCounts {
    layers: BTreeMap<usize, LayerCounts>,
}

/// How those of one layer were used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerCounts {
    /// Tokens that chose each expert.
    pub tokens: Vec<u64>,
    /// Sum of the tokens' entropies.
    entropy: f64,
    /// Number of tokens.
    rows: u64,
}

// === impl ExpertCounts ===

impl ExpertCounts {
    /// Adds a layer's decisions; `valid` is 0 at padding.
    pub(super) fn add(&mut self, layer: usize, router: &RouterOutput, valid: &[f32]) -> Result<()> {
        let routing = &router.routing;
        let counts = self.layers.entry(layer).or_insert_with(|| LayerCounts::new(routing.experts()));
        for (slot, &expert) in routing.chosen().iter().enumerate() {
            counts.tokens[expert as usize] += u64::from(valid[slot / routing.per_token()] != 0.0);
        }
        with_slice(&router.logits, |logits| {
            let rows = logits.chunks_exact(routing.experts()).zip(valid).filter(|(_, valid)| **valid != 0.0);
            for (row, _) in rows {
                counts.entropy += entropy(row);
                counts.rows += 1;
            }
        })?;
        Ok(())
    }

    /// Adds a layer's decisions that were counted elsewhere: each expert's tokens, the sum of the tokens' entropies, and how many
    /// tokens there were.
    pub(crate) fn add_counted(&mut self, layer: usize, tokens: &[u32], entropy: f64, rows: u64) {
        let counts = self.layers.entry(layer).or_insert_with(|| LayerCounts::new(tokens.len()));
        counts.tokens.iter_mut().zip(tokens).for_each(|(sum, tokens)| *sum += u64::from(*tokens));
        counts.entropy += entropy;
        counts.rows += rows;
    }

    /// Adds the counts of others.
    pub fn merge(&mut self, other: &Self) {
        for (layer, added) in &other.layers {
            let counts = self.layers.entry(*layer).or_insert_with(|| LayerCounts::new(added.tokens.len()));
            counts.tokens.iter_mut().zip(&added.tokens).for_each(|(sum, tokens)| *sum += tokens);
            counts.entropy += added.entropy;
            counts.rows += added.rows;
        }
    }

    /// Every layer with routed experts.
    pub fn layers(&self) -> impl Iterator<Item = (usize, &LayerCounts)> {
        self.layers.iter().map(|(layer, counts)| (*layer, counts))
    }

    /// All of it in three numbers; `None` without routed experts.
    pub fn summary(&self) -> Option<ExpertUse> {
        let layers = self.layers.len() as f64;
        if self.layers.is_empty() {
            return None;
        }
        let (mut idle, mut experts, mut imbalance, mut entropy) = (0usize, 0usize, 0.0, 0.0);
        for counts in self.layers.values() {
            idle += counts.tokens.iter().filter(|tokens| **tokens == 0).count();
            experts += counts.tokens.len();
            imbalance += counts.imbalance();
            entropy += counts.router_entropy();
        }
        Some(ExpertUse {
            idle_share: idle as f64 / experts as f64,
            imbalance: imbalance / layers,
            router_entropy: entropy / layers,
        })
    }
}

// === impl LayerCounts ===

impl LayerCounts {
    fn new(experts: usize) -> Self {
        Self { tokens: vec![0; experts], entropy: 0.0, rows: 0 }
    }

    /// The busiest expert's tokens over those of the average one; 1 where there are none.
    fn imbalance(&self) -> f64 {
        let all: u64 = self.tokens.iter().sum();
        let most = self.tokens.iter().max().copied().unwrap_or(0);
        if all == 0 { 1.0 } else { most as f64 * self.tokens.len() as f64 / all as f64 }
    }

    /// As a share of the greatest possible entropy; 0 where there is no choice.
    pub fn router_entropy(&self) -> f64 {
        let greatest = (self.tokens.len() as f64).ln() * self.rows as f64;
        if greatest > 0.0 { self.entropy / greatest } else { 0.0 }
    }
}

/// `ln Σ exp(x) - Σ p x`, from the largest value so that nothing overflows.
fn entropy(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut sum, mut weighted) = (0.0, 0.0);
    for &logit in logits {
        let difference = f64::from(logit - largest);
        let weight = difference.exp();
        sum += weight;
        weighted += weight * difference;
    }
    sum.ln() - weighted / sum
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use brightrun_kernels::moe::Routing;
    use candle_core::{Device, Tensor};

    use super::*;

    fn router(logits: &[f32], experts: usize, per_token: usize) -> RouterOutput {
        let tokens = logits.len() / experts;
        let routing = Arc::new(Routing::from_logits(logits, experts, per_token).unwrap());
        let logits = Tensor::from_slice(logits, (tokens, experts), &Device::Cpu).unwrap();
        RouterOutput { weights: logits.clone(), logits, routing }
    }

    #[test]
    fn tokens_idle_experts_and_entropy_are_counted_without_padding() {
        let mut counts = ExpertCounts::default();
        // Two tokens that prefer the first expert, one of padding that prefers the last.
        let logits = [9.0, 1.0, 0.0, 0.0, 9.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 9.0];
        counts.add(3, &router(&logits, 4, 2), &[1.0, 1.0, 0.0]).unwrap();
        let (layer, found) = counts.layers().next().unwrap();
        assert_eq!((layer, &found.tokens[..]), (3, &[2, 1, 1, 0][..]));
        let summary = counts.summary().unwrap();
        assert_eq!((summary.idle_share, summary.imbalance), (0.25, 2.0));
        assert!(summary.router_entropy > 0.0 && summary.router_entropy < 0.01, "{summary:?}");

        let mut twice = counts.clone();
        twice.merge(&counts);
        assert_eq!(twice.layers().next().unwrap().1.tokens, [4, 2, 2, 0]);
        assert_eq!(twice.summary().unwrap(), summary);
        assert_eq!(ExpertCounts::default().summary(), None);
    }

    #[test]
    fn a_router_that_knows_nothing_has_all_the_entropy() {
        let mut counts = ExpertCounts::default();
        counts.add(0, &router(&[0.5; 16], 8, 2), &[1.0, 1.0]).unwrap();
        assert!((counts.summary().unwrap().router_entropy - 1.0).abs() < 1e-12);
        assert!((entropy(&[1.0, 1.0]) - 2.0f64.ln()).abs() < 1e-12);
        // p = 3/4, 1/4.
        let expected = -(0.75f64 * 0.75f64.ln() + 0.25 * 0.25f64.ln());
        assert!((entropy(&[3.0f32.ln(), 0.0]) - expected).abs() < 1e-7);
    }
}
