//! What a model remembers of the tokens it has seen, so that the next one costs one token's work: keys and values where
//! a layer attends, the state of the delta rule and the convolution's last inputs where it does not.

use brightrun_kernels::conv::{ConvWeight, HeadGroups, causal_conv_silu};
use brightrun_kernels::delta_rule::State;
use brightrun_kernels::op::{tensor, with_slice, with_slices};
use brightrun_kernels::{Documents, attention};
use candle_core::Tensor;

use super::Model;
use crate::config::MixerKind;
use crate::{Error, Result};

/// A conversation so far, as one model with or without its adapters has read it.
#[derive(Debug, Clone)]
pub struct Cache {
    pub(super) layers: Vec<LayerCache>,
    tokens: usize,
}

/// The memory of one layer.
#[derive(Debug, Clone)]
pub(super) enum LayerCache {
    Attention(KeyValues),
    DeltaNet(Box<DeltaNetCache>),
}

/// Keys (rotated) and values of all tokens so far.
#[derive(Debug, Clone, Default)]
pub(super) struct KeyValues {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// What Gated DeltaNet remembers.
#[derive(Debug, Clone)]
pub(super) struct DeltaNetCache {
    /// The last inputs of the convolution, one fewer than it has taps; fewer at the beginning.
    tail: Option<Tensor>,
    pub(super) state: State,
}

// === impl Cache ===

impl Cache {
    /// Tokens that were read.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

// === impl KeyValues ===

impl KeyValues {
    /// Takes the new tokens' keys and values, and gives what their queries find.
    pub(super) fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, heads: attention::Heads) -> Result<Tensor> {
        let out = with_slices([q, k, v], |[q, k, v]| {
            self.keys.extend_from_slice(k);
            self.values.extend_from_slice(v);
            attention::attend(heads, q, &self.keys, &self.values)
        })??;
        Ok(tensor(out, q.shape())?)
    }
}

// === impl DeltaNetCache ===

impl DeltaNetCache {
    /// The convolution of the new rows: the last rows before them go through it again, and what they give is dropped.
    pub(super) fn convolve(&mut self, qkvz: &Tensor, weight: &ConvWeight, groups: &HeadGroups) -> Result<Tensor> {
        let with_tail = match &self.tail {
            Some(tail) => Tensor::cat(&[tail, qkvz], 0)?,
            None => qkvz.clone(),
        };
        let (rows, new) = (with_tail.dim(0)?, qkvz.dim(0)?);
        let out = causal_conv_silu(&with_tail, weight, groups, &Documents::from_lengths(&[rows])?)?;
        let kept = (weight.taps() - 1).min(rows);
        // A copy of its own: a view would keep all rows of a long prompt.
        self.tail = match kept {
            0 => None,
            _ => {
                let tail = with_tail.narrow(0, rows - kept, kept)?;
                Some(tensor(with_slice(&tail, <[f32]>::to_vec)?, tail.shape())?)
            }
        };
        Ok(out.narrow(0, rows - new, new)?.contiguous()?)
    }
}

// === impl Model ===

impl Model {
    /// The cache of a conversation that has not begun.
    pub fn cache(&self) -> Cache {
        let layer = |kind: &crate::config::LayerConfig| match (kind.mixer, &self.config.delta_net) {
            (MixerKind::DeltaNet, Some(delta)) => {
                let state = State::new(&super::delta_net::groups(delta));
                LayerCache::DeltaNet(Box::new(DeltaNetCache { tail: None, state }))
            }
            _ => LayerCache::Attention(KeyValues::default()),
        };
        Cache { layers: self.config.layers.iter().map(layer).collect(), tokens: 0 }
    }

    /// Reads the next tokens of a conversation and gives the logits `[vocab]` after the last of them, with the adapters
    /// or without. After an error the cache is of no more use.
    pub fn continued(&self, tokens: &[u32], cache: &mut Cache, adapted: bool) -> Result<Vec<f32>> {
        if tokens.is_empty() || cache.layers.len() != self.layers.len() {
            return Err(Error::Invalid("there is no token to go on from, or the cache is another model's".into()));
        }
        let pass = self.pass_after(cache.tokens, tokens.len())?.with_adapters(adapted);
        let mut hidden = self.embed(tokens)?;
        for (layer, cache) in self.layers.iter().zip(&mut cache.layers) {
            hidden = layer.continued(&hidden, &pass, cache)?;
        }
        cache.tokens += tokens.len();
        let last = hidden.narrow(0, tokens.len() - 1, 1)?.contiguous()?;
        Ok(self.logits(&last, &pass)?.flatten_all()?.to_vec1()?)
    }
}
