//! Gated DeltaNet: `out_proj(norm(delta_rule(silu(conv(q, k, v)), b, a)) ⊙ silu(z))`.

use brightrun_kernels::conv::{ConvWeight, GpuConv, HeadGroups};
use brightrun_kernels::delta_rule::{GpuDeltaRule, GpuSaved, Parameters};
use brightrun_kernels::gpu::Buffer;
use brightrun_kernels::norm::GpuGatedNorm;
use half::bf16;

use super::digest::Parts;
use super::linear::{Kept, Linear};
use super::load::Loader;
use super::pass::Pass;
use crate::model::groups;
use crate::{Error, Result};

/// The linear attention of a layer.
pub(super) struct DeltaNet {
    qkvz: Linear,
    ba: Linear,
    out: Linear,
    conv: GpuConv,
    rule: GpuDeltaRule,
    norm: GpuGatedNorm,
    groups: HeadGroups,
}

/// What the backward pass needs besides the layer's input.
pub(super) struct Tape {
    /// The input without padding, where there was any.
    clean: Option<Buffer<bf16>>,
    qkvz: Buffer<bf16>,
    ba: Buffer<bf16>,
    qkv: Buffer<bf16>,
    out: Buffer<bf16>,
    gated: Buffer<bf16>,
    rule: GpuSaved,
    kept: [Kept; 3],
}

impl DeltaNet {
    pub(super) fn load(loader: &Loader<'_>, path: &str) -> Result<Self> {
        let config = loader.config.delta_net.as_ref().ok_or_else(|| {
            Error::Invalid(format!("{path}: the configuration describes no linear attention, but a layer of it"))
        })?;
        let groups = groups(config);
        let hidden = loader.config.hidden_size;
        let linear = |name: &str, outputs: usize, inputs: usize| {
            loader.linear(&format!("{path}.{name}"), outputs, inputs, false)
        };
        let vector = |name: &str, length: usize| loader.vector(&format!("{path}.{name}"), length);
        let taps = vector("conv1d.weight", groups.convolved_width() * config.conv_kernel)?;
        let conv = ConvWeight::new(&taps, groups.convolved_width(), config.conv_kernel)?;
        let (a_log, dt_bias) = (vector("A_log", groups.value_heads)?, vector("dt_bias", groups.value_heads)?);
        let rule = Parameters { groups, a_log: a_log.into(), dt_bias: dt_bias.into() };
        Ok(Self {
            qkvz: linear("in_proj_qkvz", groups.projection_width(), hidden)?,
            ba: linear("in_proj_ba", 2 * groups.value_heads, hidden)?,
            out: linear("out_proj", hidden, groups.value_width())?,
            conv: GpuConv::of(loader.gpu, &conv, &groups)?,
            rule: GpuDeltaRule::of(loader.gpu, &rule)?,
            norm: GpuGatedNorm::of(loader.gpu, &vector("norm.weight", groups.value_dim)?, &groups, loader.epsilon())?,
            groups,
        })
    }

    pub(super) fn is_adapted(&self) -> bool {
        [&self.qkvz, &self.ba, &self.out].into_iter().any(Linear::is_adapted)
    }

    pub(super) fn frozen(&self, path: &str, parts: &mut Parts) {
        for (name, linear) in [("in_proj_qkvz", &self.qkvz), ("in_proj_ba", &self.ba), ("out_proj", &self.out)] {
            linear.frozen(&format!("{path}.{name}"), parts);
        }
        parts.add(&format!("{path}.conv1d"), self.conv.frozen());
        parts.add(path, self.rule.frozen());
        parts.add(&format!("{path}.norm"), self.norm.frozen());
    }

    pub(super) fn forward(&self, x: &Buffer<bf16>, pass: &Pass<'_>) -> Result<(Buffer<bf16>, Tape)> {
        let clean = match pass.has_padding() {
            true => {
                let mut clean = pass.gpu.empty(x.len())?;
                clean.copy_from(x)?;
                pass.clear_padding(&clean)?;
                Some(clean)
            }
            false => None,
        };
        let x = clean.as_ref().unwrap_or(x);
        let (qkvz, kept_qkvz) = self.qkvz.forward(x, pass)?;
        let (ba, kept_ba) = self.ba.forward(x, pass)?;
        let mut qkv = pass.rows(self.groups.convolved_width())?;
        self.conv.forward(&qkvz, &pass.documents, &mut qkv)?;
        let mut out = pass.rows(self.groups.value_width())?;
        let rule = self.rule.forward_saving(&qkv, &ba, &pass.chunks, &mut out)?;
        let mut gated = pass.rows(self.groups.value_width())?;
        self.norm.forward(&out, &qkvz, &mut gated)?;
        let (mixed, kept_out) = self.out.forward(&gated, pass)?;
        Ok((mixed, Tape { clean, qkvz, ba, qkv, out, gated, rule, kept: [kept_qkvz, kept_ba, kept_out] }))
    }

    /// The gradient of `x` from that of the result; those of adapters are added to theirs.
    pub(super) fn backward(
        &self,
        x: &Buffer<bf16>,
        tape: Tape,
        d_mixed: &Buffer<bf16>,
        pass: &Pass<'_>,
    ) -> Result<Buffer<bf16>> {
        let x = tape.clean.as_ref().unwrap_or(x);
        let [kept_qkvz, kept_ba, kept_out] = &tape.kept;
        let mut d_gated = pass.rows(self.groups.value_width())?;
        self.out.backward(&tape.gated, kept_out, d_mixed, pass, &mut d_gated, false)?;
        // q, k and v come out of the convolution's backward pass, z out of the norm's: together they are all of it.
        let (mut d_out, mut d_qkvz) = (pass.rows(self.groups.value_width())?, pass.gpu.empty(tape.qkvz.len())?);
        self.norm.backward(&tape.out, &tape.qkvz, &d_gated, &mut d_out, &mut d_qkvz)?;
        drop(d_gated);
        let (mut d_qkv, mut d_ba) = (pass.gpu.empty(tape.qkv.len())?, pass.gpu.empty(tape.ba.len())?);
        self.rule.backward(&tape.qkv, &tape.ba, &pass.chunks, &tape.rule, &d_out, (&mut d_qkv, &mut d_ba))?;
        drop(d_out);
        self.conv.backward(&tape.qkvz, &pass.documents, &d_qkv, &mut d_qkvz)?;
        drop(d_qkv);
        let mut d_x = pass.gpu.empty(x.len())?;
        self.qkvz.backward(x, kept_qkvz, &d_qkvz, pass, &mut d_x, false)?;
        self.ba.backward(x, kept_ba, &d_ba, pass, &mut d_x, true)?;
        pass.clear_padding(&d_x)?;
        Ok(d_x)
    }
}
