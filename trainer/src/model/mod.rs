//! The three Qwen MoE families as forward code over shared parts. What differs between them is in their
//! [`ModelConfig`]; what a layer is made of is in `attention`, `delta_net` and `mlp`.
//!
//! ```text
//! h = embed[ids]
//! h = h + Mixer_l(norm(h));  h = h + Mlp_l(norm(h))      for every layer l
//! loss = Σ cross_entropy(head(norm(h)))
//! ```

mod attention;
mod cache;
mod delta_net;
mod digest;
mod linear;
mod load;
mod mlp;
mod open;
mod pass;

use std::sync::{Arc, Mutex, PoisonError};

use brightrun_kernels::rope::RopeTable;
use brightrun_kernels::{Documents, FrozenWeight, cross_entropy};
use candle_core::{Device, Tensor};

pub use cache::Cache;
pub(crate) use delta_net::groups;
pub use load::Nf4Arithmetic;
pub(crate) use load::norm_kind;
pub use mlp::RouterOutput;
pub use pass::{Pass, PassDropout};

use crate::adapters::Adapters;
use crate::config::{MixerKind, MlpKind, ModelConfig};
use crate::stop::Stop;
use crate::weights::{BasePrecision, Checkpoint};
use crate::{Error, Result};
use attention::Attention;
use brightrun_kernels::lora_linear::FrozenLinear;
use cache::LayerCache;
use delta_net::DeltaNet;
use digest::Parts;
use linear::Linear;
use load::{Loader, Norm};
use mlp::{DenseMlp, SparseMoe};

/// A causal language model with its adapters.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    embedding: Arc<[f32]>,
    layers: Vec<Layer>,
    norm: Norm,
    head: Linear,
    rope: Mutex<RopeTable>,
    stop: Stop,
}

/// One decoder layer.
#[derive(Debug)]
pub struct Layer {
    input_norm: Norm,
    mixer: Mixer,
    post_norm: Norm,
    mlp: Mlp,
}

#[derive(Debug)]
enum Mixer {
    Attention(Box<Attention>),
    DeltaNet(Box<DeltaNet>),
}

#[derive(Debug)]
enum Mlp {
    Dense(Box<DenseMlp>),
    Sparse(Box<SparseMoe>),
}

/// What a layer hands on.
#[derive(Debug)]
pub struct LayerOutput {
    /// The residual stream after the layer.
    pub hidden: Tensor,
    /// What the router decided, in sparse layers.
    pub router: Option<RouterOutput>,
}

// === impl Layer ===

impl Layer {
    fn load(loader: &Loader, index: usize) -> Result<Self> {
        let path = format!("model.layers.{index}");
        let kind = loader.config.layers[index];
        let mixer = match kind.mixer {
            MixerKind::Attention => Mixer::Attention(Box::new(Attention::load(loader, &format!("{path}.self_attn"))?)),
            MixerKind::DeltaNet => Mixer::DeltaNet(Box::new(DeltaNet::load(loader, &format!("{path}.linear_attn"))?)),
        };
        let mlp = match kind.mlp {
            MlpKind::Dense => Mlp::Dense(Box::new(DenseMlp::load(loader, &format!("{path}.mlp"))?)),
            MlpKind::Sparse => Mlp::Sparse(Box::new(SparseMoe::load(loader, &format!("{path}.mlp"))?)),
        };
        Ok(Self {
            input_norm: loader.norm(&format!("{path}.input_layernorm"))?,
            mixer,
            post_norm: loader.norm(&format!("{path}.post_attention_layernorm"))?,
            mlp,
        })
    }

    /// Runs the layer; the graph is kept if `hidden` or an adapter asks for it.
    pub fn forward(&self, hidden: &Tensor, pass: &Pass) -> Result<LayerOutput> {
        pass.go_on()?;
        let x = self.input_norm.forward(hidden)?;
        let mixed = match &self.mixer {
            Mixer::Attention(attention) => attention.forward(&x, pass)?,
            Mixer::DeltaNet(delta_net) => delta_net.forward(&x, pass)?,
        };
        self.after_mixer(hidden, mixed, pass)
    }

    /// Runs the layer on the tokens that follow those of the cache, which takes them too.
    fn continued(&self, hidden: &Tensor, pass: &Pass, cache: &mut LayerCache) -> Result<Tensor> {
        let x = self.input_norm.forward(hidden)?;
        let mixed = match (&self.mixer, cache) {
            (Mixer::Attention(attention), LayerCache::Attention(cache)) => attention.continued(&x, pass, cache)?,
            (Mixer::DeltaNet(delta_net), LayerCache::DeltaNet(cache)) => delta_net.continued(&x, pass, cache)?,
            _ => return Err(Error::Invalid("the cache is another model's: its layers are of other kinds".into())),
        };
        Ok(self.after_mixer(hidden, mixed, pass)?.hidden)
    }

    fn after_mixer(&self, hidden: &Tensor, mixed: Tensor, pass: &Pass) -> Result<LayerOutput> {
        let hidden = (hidden + mixed)?;
        let x = self.post_norm.forward(&hidden)?;
        let (out, router) = match &self.mlp {
            Mlp::Dense(mlp) => (mlp.forward(&x, pass)?, None),
            Mlp::Sparse(moe) => {
                let (out, router) = moe.forward(&x, pass)?;
                (out, Some(router))
            }
        };
        Ok(LayerOutput { hidden: (hidden + out)?, router })
    }

    fn frozen<'a>(&'a self, path: &str, parts: &mut Parts<'a>) {
        self.input_norm.frozen(&format!("{path}.input_layernorm"), parts);
        match &self.mixer {
            Mixer::Attention(attention) => attention.frozen(&format!("{path}.self_attn"), parts),
            Mixer::DeltaNet(delta_net) => delta_net.frozen(&format!("{path}.linear_attn"), parts),
        }
        self.post_norm.frozen(&format!("{path}.post_attention_layernorm"), parts);
        match &self.mlp {
            Mlp::Dense(mlp) => mlp.frozen(&format!("{path}.mlp"), parts),
            Mlp::Sparse(moe) => moe.frozen(&format!("{path}.mlp"), parts),
        }
    }

    /// Whether any part of the layer learns.
    pub fn is_adapted(&self) -> bool {
        let mixer = match &self.mixer {
            Mixer::Attention(attention) => attention.is_adapted(),
            Mixer::DeltaNet(delta_net) => delta_net.is_adapted(),
        };
        let mlp = match &self.mlp {
            Mlp::Dense(mlp) => mlp.is_adapted(),
            Mlp::Sparse(moe) => moe.is_adapted(),
        };
        mixer || mlp
    }
}

// === impl Model ===

/// Positions the rotation table starts with; it grows with the longest document.
const FIRST_POSITIONS: usize = 512;

impl Model {
    /// Loads a checkpoint in the given precision, with these adapters attached. Whoever may stop the reading may stop what is
    /// computed with the model too, between two layers.
    pub fn load(
        config: &ModelConfig,
        checkpoint: &Checkpoint,
        precision: &BasePrecision,
        adapters: &Adapters,
    ) -> Result<Self> {
        Self::load_with_arithmetic(config, checkpoint, precision, adapters, Nf4Arithmetic::Exact)
    }

    /// [`Model::load`] with a choice of the arithmetic of NF4 weights.
    pub fn load_with_arithmetic(
        config: &ModelConfig,
        checkpoint: &Checkpoint,
        precision: &BasePrecision,
        adapters: &Adapters,
        arithmetic: Nf4Arithmetic,
    ) -> Result<Self> {
        let loader = Loader { config, checkpoint, precision, adapters, arithmetic };
        let embedding: Arc<[f32]> = checkpoint.matrix("model.embed_tokens.weight")?.into();
        let head = if config.tie_word_embeddings {
            let weight =
                FrozenWeight::Plain { rows: config.vocab_size, columns: config.hidden_size, values: embedding.clone() };
            Linear::new(FrozenLinear { weight, bias: None }, &loader, "lm_head")
        } else {
            Linear::load(&loader, "lm_head", false)?
        };
        let layers = (0..config.layers.len()).map(|index| Layer::load(&loader, index)).collect::<Result<_>>()?;
        let rope = RopeTable::new(config.attention.rotary_dim, config.attention.rope_theta, FIRST_POSITIONS)?;
        let norm = loader.norm("model.norm")?;
        let (rope, stop) = (Mutex::new(rope), checkpoint.stop().clone());
        Ok(Self { config: config.clone(), embedding, layers, norm, head, rope, stop })
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The decoder layers, first to last.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Prepares a pass over a packed row.
    pub fn pass(&self, documents: &Documents, dropout: Option<PassDropout>) -> Result<Pass> {
        let longest = documents.iter().map(|d| d.len()).max().unwrap_or(0);
        if longest > self.config.max_position_embeddings {
            return Err(Error::Invalid(format!(
                "a document of {longest} tokens is longer than the model's {} positions; shorten max_seq_length",
                self.config.max_position_embeddings
            )));
        }
        Ok(Pass::new(documents, self.rope(longest)?, dropout)?.until(&self.stop))
    }

    /// A pass over `new` tokens of one document that follow `past` others, without a graph.
    fn pass_after(&self, past: usize, new: usize) -> Result<Pass> {
        if past + new > self.config.max_position_embeddings {
            return Err(Error::Invalid(format!(
                "a conversation of {} tokens is longer than the model's {} positions",
                past + new,
                self.config.max_position_embeddings
            )));
        }
        Ok(Pass::new(&Documents::from_lengths(&[new])?, self.rope(past + new)?, None)?.without_graph().after(past))
    }

    /// The rotations of so many positions.
    fn rope(&self, positions: usize) -> Result<RopeTable> {
        let mut rope = self.rope.lock().unwrap_or_else(PoisonError::into_inner);
        if rope.positions() < positions {
            let attention = &self.config.attention;
            *rope = RopeTable::new(attention.rotary_dim, attention.rope_theta, positions.next_power_of_two())?;
        }
        Ok(rope.clone())
    }

    /// The embeddings of tokens, `[N, hidden]`.
    pub fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let width = self.config.hidden_size;
        let mut rows = Vec::with_capacity(tokens.len() * width);
        for (position, &token) in tokens.iter().enumerate() {
            let row = self.embedding.get(token as usize * width..(token as usize + 1) * width).ok_or_else(|| {
                Error::Invalid(format!(
                    "token {token} at position {position} is outside of the vocabulary of {}; is this the model's own tokenizer?",
                    self.config.vocab_size
                ))
            })?;
            rows.extend_from_slice(row);
        }
        Ok(Tensor::from_vec(rows, (tokens.len(), width), &Device::Cpu)?)
    }

    /// The final norm.
    pub fn final_norm(&self, hidden: &Tensor) -> Result<Tensor> {
        self.norm.forward(hidden)
    }

    /// Sum of the cross-entropies of all positions that have a target, from the last layer's output.
    pub fn loss_sum(&self, hidden: &Tensor, targets: &[Option<u32>], pass: &Pass) -> Result<Tensor> {
        let hidden = self.norm.forward(hidden)?;
        let adapter = self.head.adapter().filter(|_| pass.adapted);
        let matrices = adapter.map(|adapter| (pass.learnt(&adapter.a), pass.learnt(&adapter.b)));
        let lora = adapter.zip(matrices.as_ref()).map(|(adapter, (a, b))| cross_entropy::Lora {
            a,
            b,
            scale: adapter.scale,
            dropout: pass.dropout(adapter.id),
        });
        let weight = &self.head.frozen().weight;
        Ok(cross_entropy::fused(&hidden, lora, weight, targets, cross_entropy::CHUNK_ROWS)?)
    }

    /// Logits `[N, vocab]` from the last layer's output: for looking at, not for training.
    pub fn logits(&self, hidden: &Tensor, pass: &Pass) -> Result<Tensor> {
        self.head.forward(&self.norm.forward(hidden)?, pass)
    }
}
