//! Softmax attention of all three families: grouped queries, RoPE, and where the family has them query/key norms,
//! biases and the sigmoid output gate.

use brightrun_kernels::attention::{Heads, attention};
use brightrun_kernels::rope::{HeadNorm, HeadNormRope, HeadShape, head_norm_rope, sigmoid_gate};
use candle_core::Tensor;

use super::cache::KeyValues;
use super::digest::Parts;
use super::linear::Linear;
use super::load::Loader;
use super::pass::Pass;
use crate::Result;

/// `o_proj(attention(rope(norm(q)), rope(norm(k)), v) [⊙ σ(gate)])`.
#[derive(Debug)]
pub(super) struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    query_norm: Option<HeadNorm>,
    key_norm: Option<HeadNorm>,
    heads: Heads,
    output_gate: bool,
}

impl Attention {
    pub(super) fn load(loader: &Loader, path: &str) -> Result<Self> {
        let config = &loader.config.attention;
        let norm = |name: &str| -> Result<Option<HeadNorm>> {
            if !config.query_key_norm {
                return Ok(None);
            }
            let weight = loader.vector(&format!("{path}.{name}.weight"))?;
            Ok(Some(HeadNorm { weight, kind: loader.norm_kind(), epsilon: loader.epsilon() }))
        };
        let linear = |name: &str, bias: bool| Linear::load(loader, &format!("{path}.{name}"), bias);
        Ok(Self {
            q: linear("q_proj", config.qkv_bias)?,
            k: linear("k_proj", config.qkv_bias)?,
            v: linear("v_proj", config.qkv_bias)?,
            o: linear("o_proj", config.output_bias)?,
            query_norm: norm("q_norm")?,
            key_norm: norm("k_norm")?,
            heads: Heads { query: config.heads, key_value: config.key_value_heads, width: config.head_dim },
            output_gate: config.output_gate,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        self.around(x, pass, |q, k, v| Ok(attention(q, k, v, self.heads, &pass.documents)?))
    }

    /// The tokens that follow those of the cache.
    pub(super) fn continued(&self, x: &Tensor, pass: &Pass, cache: &mut KeyValues) -> Result<Tensor> {
        self.around(x, pass, |q, k, v| cache.attend(q, k, v, self.heads))
    }

    fn around(
        &self,
        x: &Tensor,
        pass: &Pass,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Heads { query, key_value, width } = self.heads;
        let projected = self.q.forward(x, pass)?;
        let stride = if self.output_gate { 2 * width } else { width };
        let q = self.rotate(&projected, query, stride, &self.query_norm, pass)?;
        let k = self.rotate(&self.k.forward(x, pass)?, key_value, width, &self.key_norm, pass)?;
        let v = self.v.forward(x, pass)?;
        let mut out = attend(&q, &k, &v)?;
        if self.output_gate {
            out = sigmoid_gate(&out, &projected, query, width)?;
        }
        self.o.forward(&out, pass)
    }

    fn rotate(&self, x: &Tensor, heads: usize, stride: usize, norm: &Option<HeadNorm>, pass: &Pass) -> Result<Tensor> {
        let rope = HeadNormRope {
            shape: HeadShape { heads, head_dim: self.heads.width, source_stride: stride },
            norm: norm.clone(),
            table: pass.rope.clone(),
            positions: pass.positions.clone(),
        };
        Ok(head_norm_rope(x, rope)?)
    }

    pub(super) fn frozen<'a>(&'a self, path: &str, parts: &mut Parts<'a>) {
        for (name, linear) in [("q_proj", &self.q), ("k_proj", &self.k), ("v_proj", &self.v), ("o_proj", &self.o)] {
            parts.linear(&format!("{path}.{name}"), linear);
        }
        for (name, norm) in [("q_norm", &self.query_norm), ("k_norm", &self.key_norm)] {
            if let Some(norm) = norm {
                parts.vector(format!("{path}.{name}.weight"), &norm.weight);
            }
        }
    }

    pub(super) fn is_adapted(&self) -> bool {
        [&self.q, &self.k, &self.v, &self.o].into_iter().any(Linear::is_adapted)
    }
}
