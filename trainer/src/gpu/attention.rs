//! Softmax attention with its projections: `o_proj(attention(rope(norm(q)), rope(norm(k)), v) [⊙ σ(gate)])`.

use brightrun_kernels::attention::{GpuAttended, GpuAttention, Heads};
use brightrun_kernels::gpu::Buffer;
use brightrun_kernels::rope::gpu::{sigmoid_gate, sigmoid_gate_backward};
use brightrun_kernels::rope::{GpuHeadNormRope, HeadNorm, HeadShape};
use half::bf16;

use super::digest::Parts;
use super::linear::{Kept, Linear};
use super::load::Loader;
use super::pass::Pass;
use crate::Result;

/// The attention of a layer.
pub(super) struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    query: GpuHeadNormRope,
    key: GpuHeadNormRope,
    heads: Heads,
    output_gate: bool,
}

/// What the backward pass needs besides the layer's input.
pub(super) struct Tape {
    raw_q: Buffer<bf16>,
    raw_k: Buffer<bf16>,
    q: Buffer<bf16>,
    k: Buffer<bf16>,
    v: Buffer<bf16>,
    out: Buffer<bf16>,
    log_sums: Buffer<f32>,
    /// After the gate, where there is one.
    gated: Option<Buffer<bf16>>,
    kept: [Kept; 4],
}

impl Attention {
    pub(super) fn load(loader: &Loader<'_>, path: &str) -> Result<Self> {
        let config = &loader.config.attention;
        let width = config.head_dim;
        let stride = if config.output_gate { 2 * width } else { width };
        let (query, key_value) = (config.heads, config.key_value_heads);
        let hidden = loader.config.hidden_size;
        let head = |name: &str, heads: usize, source_stride: usize| -> Result<GpuHeadNormRope> {
            let shape = HeadShape { heads, head_dim: width, source_stride };
            if !config.query_key_norm {
                return Ok(GpuHeadNormRope::of(loader.gpu, shape, None)?);
            }
            let weight = loader.vector(&format!("{path}.{name}.weight"), width)?.into();
            let norm = HeadNorm { weight, kind: loader.norm_kind(), epsilon: loader.epsilon() };
            Ok(GpuHeadNormRope::of(loader.gpu, shape, Some(&norm))?)
        };
        let linear = |name: &str, outputs: usize, inputs: usize, bias: bool| {
            loader.linear(&format!("{path}.{name}"), outputs, inputs, bias)
        };
        Ok(Self {
            q: linear("q_proj", query * stride, hidden, config.qkv_bias)?,
            k: linear("k_proj", key_value * width, hidden, config.qkv_bias)?,
            v: linear("v_proj", key_value * width, hidden, config.qkv_bias)?,
            o: linear("o_proj", hidden, query * width, config.output_bias)?,
            query: head("q_norm", query, stride)?,
            key: head("k_norm", key_value, width)?,
            heads: Heads { query, key_value, width },
            output_gate: config.output_gate,
        })
    }

    pub(super) fn is_adapted(&self) -> bool {
        [&self.q, &self.k, &self.v, &self.o].into_iter().any(Linear::is_adapted)
    }

    pub(super) fn frozen(&self, path: &str, parts: &mut Parts) {
        for (name, linear) in [("q_proj", &self.q), ("k_proj", &self.k), ("v_proj", &self.v), ("o_proj", &self.o)] {
            linear.frozen(&format!("{path}.{name}"), parts);
        }
        parts.add(&format!("{path}.q_norm"), self.query.frozen());
        parts.add(&format!("{path}.k_norm"), self.key.frozen());
    }

    fn attention<'a>(&self, pass: &'a Pass<'_>) -> GpuAttention<'a> {
        GpuAttention { heads: self.heads, documents: &pass.documents }
    }

    pub(super) fn forward(&self, x: &Buffer<bf16>, pass: &Pass<'_>) -> Result<(Buffer<bf16>, Tape)> {
        let Heads { query, key_value, width } = self.heads;
        let (raw_q, kept_q) = self.q.forward(x, pass)?;
        let (raw_k, kept_k) = self.k.forward(x, pass)?;
        let (v, kept_v) = self.v.forward(x, pass)?;
        let (mut q, mut k) = (pass.rows(query * width)?, pass.rows(key_value * width)?);
        self.query.forward(&raw_q, pass.rope, &pass.documents, &mut q)?;
        self.key.forward(&raw_k, pass.rope, &pass.documents, &mut k)?;
        let (mut out, mut log_sums) = (pass.rows(query * width)?, pass.gpu.empty(query * pass.tokens())?);
        self.attention(pass).forward([&q, &k, &v], &mut out, &mut log_sums)?;
        let gated = match self.output_gate {
            true => {
                let mut gated = pass.rows(query * width)?;
                sigmoid_gate(&out, &raw_q, width, &mut gated)?;
                Some(gated)
            }
            false => None,
        };
        let (mixed, kept_o) = self.o.forward(gated.as_ref().unwrap_or(&out), pass)?;
        let kept = [kept_q, kept_k, kept_v, kept_o];
        Ok((mixed, Tape { raw_q, raw_k, q, k, v, out, log_sums, gated, kept }))
    }

    /// The gradient of `x` from that of the result; those of adapters are added to theirs.
    pub(super) fn backward(
        &self,
        x: &Buffer<bf16>,
        tape: Tape,
        d_mixed: &Buffer<bf16>,
        pass: &Pass<'_>,
    ) -> Result<Buffer<bf16>> {
        let Heads { query, key_value, width } = self.heads;
        let [kept_q, kept_k, kept_v, kept_o] = &tape.kept;
        let mut d_out = pass.rows(query * width)?;
        self.o.backward(tape.gated.as_ref().unwrap_or(&tape.out), kept_o, d_mixed, pass, &mut d_out, false)?;
        let mut d_raw_q = pass.gpu.empty(tape.raw_q.len())?;
        if self.output_gate {
            let mut d_attention = pass.rows(query * width)?;
            sigmoid_gate_backward(&tape.out, &tape.raw_q, width, &d_out, &mut d_attention, &mut d_raw_q)?;
            d_out = d_attention;
        }
        let (mut d_q, mut d_k) = (pass.rows(query * width)?, pass.rows(key_value * width)?);
        let mut d_v = pass.rows(key_value * width)?;
        let attended = GpuAttended { q: &tape.q, k: &tape.k, v: &tape.v, out: &tape.out, log_sums: &tape.log_sums };
        self.attention(pass).backward(&attended, &d_out, [&mut d_q, &mut d_k, &mut d_v])?;
        drop(d_out);
        self.query.backward(&tape.raw_q, pass.rope, &pass.documents, &d_q, &mut d_raw_q)?;
        let mut d_raw_k = pass.rows(key_value * width)?;
        self.key.backward(&tape.raw_k, pass.rope, &pass.documents, &d_k, &mut d_raw_k)?;
        drop((d_q, d_k));
        let mut d_x = pass.gpu.empty(x.len())?;
        self.q.backward(x, kept_q, &d_raw_q, pass, &mut d_x, false)?;
        self.k.backward(x, kept_k, &d_raw_k, pass, &mut d_x, true)?;
        self.v.backward(x, kept_v, &d_v, pass, &mut d_x, true)?;
        Ok(d_x)
    }
}
