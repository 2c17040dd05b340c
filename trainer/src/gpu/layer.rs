//! One decoder layer, forward and backward: `h' = h + Mixer(norm(h))`, `out = h' + Mlp(norm(h'))`.

use brightrun_kernels::elements;
use brightrun_kernels::gpu::Buffer;
use brightrun_kernels::norm::GpuNorm;
use half::bf16;

use super::attention::{self, Attention};
use super::delta_net::{self, DeltaNet};
use super::digest::Parts;
use super::experts::ExpertAdapter;
use super::load::Loader;
use super::mlp::{self, Mlp, RouterUse};
use super::pass::Pass;
use crate::Result;
use crate::config::MixerKind;

/// One decoder layer.
pub(super) struct Layer {
    input_norm: GpuNorm,
    mixer: Mixer,
    post_norm: GpuNorm,
    mlp: Mlp,
}

enum Mixer {
    Attention(Attention),
    DeltaNet(DeltaNet),
}

enum MixerTape {
    Attention(attention::Tape),
    DeltaNet(delta_net::Tape),
}

/// What the backward pass needs besides the layer's input.
pub(super) struct Tape {
    first: FirstHalf,
    mlp: mlp::Tape,
}

/// What it needs of the way to `y = norm(h')`.
struct FirstHalf {
    x: Buffer<bf16>,
    mixer: MixerTape,
    middle: Buffer<bf16>,
    y: Buffer<bf16>,
}

// === impl Layer ===

impl Layer {
    pub(super) fn load(loader: &Loader<'_>, index: usize) -> Result<Self> {
        let path = format!("model.layers.{index}");
        let kind = loader.config.layers[index];
        Ok(Self {
            input_norm: loader.norm(&format!("{path}.input_layernorm"))?,
            mixer: match kind.mixer {
                MixerKind::Attention => Mixer::Attention(Attention::load(loader, &format!("{path}.self_attn"))?),
                MixerKind::DeltaNet => Mixer::DeltaNet(DeltaNet::load(loader, &format!("{path}.linear_attn"))?),
            },
            post_norm: loader.norm(&format!("{path}.post_attention_layernorm"))?,
            mlp: Mlp::load(loader, &format!("{path}.mlp"), kind.mlp)?,
        })
    }

    /// What of the layer never changes.
    pub(super) fn frozen(&self, path: &str, parts: &mut Parts) {
        parts.add(&format!("{path}.input_layernorm"), self.input_norm.frozen());
        match &self.mixer {
            Mixer::Attention(attention) => attention.frozen(&format!("{path}.self_attn"), parts),
            Mixer::DeltaNet(delta_net) => delta_net.frozen(&format!("{path}.linear_attn"), parts),
        }
        parts.add(&format!("{path}.post_attention_layernorm"), self.post_norm.frozen());
        self.mlp.frozen(&format!("{path}.mlp"), parts);
    }

    /// Whether any part of the layer learns.
    pub(super) fn is_adapted(&self) -> bool {
        let mixer = match &self.mixer {
            Mixer::Attention(attention) => attention.is_adapted(),
            Mixer::DeltaNet(delta_net) => delta_net.is_adapted(),
        };
        mixer || self.mlp.is_adapted()
    }

    /// The LoRA of the layer's routed experts, if they learn.
    pub(super) fn expert_adapter(&self) -> Option<&ExpertAdapter> {
        self.mlp.adapter()
    }

    /// The LoRA of the layer's routed experts, as the optimiser changes it.
    pub(super) fn expert_adapter_mut(&mut self) -> Option<&mut ExpertAdapter> {
        self.mlp.adapter_mut()
    }

    /// The layer's output, and what its backward pass needs.
    pub(super) fn forward(&self, h: &Buffer<bf16>, pass: &Pass<'_>) -> Result<(Buffer<bf16>, Tape)> {
        let first = self.first_half(h, pass)?;
        let (mut out, mlp) = self.mlp.forward(&first.y, pass)?;
        elements::add(&first.middle, &mut out)?;
        Ok((out, Tape { first, mlp }))
    }

    /// The same without the output, for a layer that is run again to go back through it.
    pub(super) fn forward_again(&self, h: &Buffer<bf16>, pass: &Pass<'_>) -> Result<Tape> {
        let first = self.first_half(h, pass)?;
        let mlp = self.mlp.forward_again(&first.y, pass)?;
        Ok(Tape { first, mlp })
    }

    fn first_half(&self, h: &Buffer<bf16>, pass: &Pass<'_>) -> Result<FirstHalf> {
        let mut x = pass.gpu.empty(h.len())?;
        self.input_norm.forward(h, &mut x)?;
        let (mixed, mixer) = match &self.mixer {
            Mixer::Attention(attention) => {
                let (mixed, tape) = attention.forward(&x, pass)?;
                (mixed, MixerTape::Attention(tape))
            }
            Mixer::DeltaNet(delta_net) => {
                let (mixed, tape) = delta_net.forward(&x, pass)?;
                (mixed, MixerTape::DeltaNet(tape))
            }
        };
        let (mut middle, mut y) = (pass.gpu.empty(h.len())?, pass.gpu.empty(h.len())?);
        self.post_norm.forward_sum(h, &mixed, &mut middle, &mut y)?;
        Ok(FirstHalf { x, mixer, middle, y })
    }

    /// The gradient of the layer's input from that of its output; those of adapters are added to theirs.
    pub(super) fn backward(
        &self,
        h: &Buffer<bf16>,
        tape: Tape,
        d_out: &Buffer<bf16>,
        balance: Option<&mlp::Balancing>,
        pass: &Pass<'_>,
    ) -> Result<Buffer<bf16>> {
        let Tape { first: tape, mlp } = tape;
        let d_y = self.mlp.backward(&tape.y, mlp, d_out, balance, pass)?;
        let mut d_middle = pass.gpu.empty(h.len())?;
        self.post_norm.backward(&tape.middle, &d_y, Some(d_out), &mut d_middle)?;
        drop((d_y, tape.y, tape.middle));
        let d_x = match (&self.mixer, tape.mixer) {
            (Mixer::Attention(attention), MixerTape::Attention(own)) => {
                attention.backward(&tape.x, own, &d_middle, pass)?
            }
            (Mixer::DeltaNet(delta_net), MixerTape::DeltaNet(own)) => {
                delta_net.backward(&tape.x, own, &d_middle, pass)?
            }
            _ => return Err(crate::Error::Invalid("the tape is that of another layer".into())),
        };
        let mut d_h = pass.gpu.empty(h.len())?;
        self.input_norm.backward(h, &d_x, Some(&d_middle), &mut d_h)?;
        Ok(d_h)
    }
}

impl Tape {
    /// What the router decided, in sparse layers.
    pub(super) fn router(&self) -> Option<&RouterUse> {
        self.mlp.router()
    }
}
