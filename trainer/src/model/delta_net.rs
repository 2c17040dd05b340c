//! Gated DeltaNet, the linear attention of Qwen3-Next.

use std::sync::Arc;

use brightrun_kernels::conv::{ConvWeight, HeadGroups, causal_conv_silu};
use brightrun_kernels::delta_rule::{Parameters, delta_rule, delta_rule_continued};
use brightrun_kernels::norm::gated;
use candle_core::Tensor;

use super::cache::DeltaNetCache;
use super::digest::Parts;
use super::linear::Linear;
use super::load::Loader;
use super::pass::Pass;
use crate::config::DeltaNetConfig;
use crate::{Error, Result};

/// `out_proj(norm(delta_rule(silu(conv(q, k, v)), b, a)) ⊙ silu(z))`.
#[derive(Debug)]
pub(super) struct DeltaNet {
    qkvz: Linear,
    ba: Linear,
    out: Linear,
    conv: ConvWeight,
    rule: Parameters,
    norm: Arc<[f32]>,
    epsilon: f32,
}

/// The heads of a layer, as the kernels know them.
pub(crate) fn groups(config: &DeltaNetConfig) -> HeadGroups {
    HeadGroups {
        key_heads: config.key_heads,
        value_heads: config.value_heads,
        key_dim: config.key_dim,
        value_dim: config.value_dim,
    }
}

impl DeltaNet {
    pub(super) fn load(loader: &Loader, path: &str) -> Result<Self> {
        let config = loader.config.delta_net.as_ref().ok_or_else(|| {
            Error::Invalid(format!("{path}: the configuration describes no linear attention, but a layer of it"))
        })?;
        let groups = groups(config);
        let linear = |name: &str| Linear::load(loader, &format!("{path}.{name}"), false);
        let taps = loader.vector(&format!("{path}.conv1d.weight"))?;
        Ok(Self {
            qkvz: linear("in_proj_qkvz")?,
            ba: linear("in_proj_ba")?,
            out: linear("out_proj")?,
            conv: ConvWeight::new(&taps, groups.convolved_width(), config.conv_kernel)?,
            rule: Parameters {
                groups,
                a_log: loader.vector(&format!("{path}.A_log"))?,
                dt_bias: loader.vector(&format!("{path}.dt_bias"))?,
            },
            norm: loader.vector(&format!("{path}.norm.weight"))?,
            epsilon: loader.epsilon(),
        })
    }

    pub(super) fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let x = match &pass.validity {
            Some(validity) => &x.broadcast_mul(validity)?,
            None => x,
        };
        let groups = &self.rule.groups;
        let qkvz = self.qkvz.forward(x, pass)?;
        let ba = self.ba.forward(x, pass)?;
        let qkv = causal_conv_silu(&qkvz, &self.conv, groups, &pass.documents)?;
        let out = delta_rule(&qkv, &ba, &self.rule, &pass.documents)?;
        let out = gated(&out, &qkvz, &self.norm, groups, self.epsilon)?;
        self.out.forward(&out, pass)
    }

    pub(super) fn frozen<'a>(&'a self, path: &str, parts: &mut Parts<'a>) {
        for (name, linear) in [("in_proj_qkvz", &self.qkvz), ("in_proj_ba", &self.ba), ("out_proj", &self.out)] {
            parts.linear(&format!("{path}.{name}"), linear);
        }
        for (name, values) in [
            ("conv1d.weight", self.conv.values()),
            ("A_log", &self.rule.a_log),
            ("dt_bias", &self.rule.dt_bias),
            ("norm.weight", &self.norm),
        ] {
            parts.vector(format!("{path}.{name}"), values);
        }
    }

    /// The tokens that follow those of the cache.
    pub(super) fn continued(&self, x: &Tensor, pass: &Pass, cache: &mut DeltaNetCache) -> Result<Tensor> {
        let groups = &self.rule.groups;
        let qkvz = self.qkvz.forward(x, pass)?;
        let ba = self.ba.forward(x, pass)?;
        let qkv = cache.convolve(&qkvz, &self.conv, groups)?;
        let out = delta_rule_continued(&qkv, &ba, &self.rule, &mut cache.state)?;
        let out = gated(&out, &qkvz, &self.norm, groups, self.epsilon)?;
        self.out.forward(&out, pass)
    }

    pub(super) fn is_adapted(&self) -> bool {
        [&self.qkvz, &self.ba, &self.out].into_iter().any(Linear::is_adapted)
    }
}
