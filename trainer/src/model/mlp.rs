//! The feed-forward parts: dense SwiGLU, and the mixture of experts with its shared expert.

use std::sync::Arc;

use brightrun_kernels::moe::{self, Call, Expert, ExpertLoraLayout, Routing, routing_weights};
use brightrun_kernels::op::with_slice;
use brightrun_kernels::swiglu::{scale_rows, swiglu};
use candle_core::{DType, Device, Tensor};

use super::digest::Parts;
use super::linear::Linear;
use super::load::Loader;
use super::pass::Pass;
use crate::Result;
use crate::adapters::ExpertAdapter;

/// `down(silu(gate x) ⊙ up x)`.
#[derive(Debug)]
pub(super) struct DenseMlp {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl DenseMlp {
    pub(super) fn load(loader: &Loader, path: &str) -> Result<Self> {
        let linear = |name: &str| Linear::load(loader, &format!("{path}.{name}"), false);
        Ok(Self { gate: linear("gate_proj")?, up: linear("up_proj")?, down: linear("down_proj")? })
    }

    pub(super) fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let hidden = swiglu(&self.gate.forward(x, pass)?, &self.up.forward(x, pass)?)?;
        self.down.forward(&hidden, pass)
    }

    pub(super) fn frozen<'a>(&'a self, path: &str, parts: &mut Parts<'a>) {
        for (name, linear) in [("gate_proj", &self.gate), ("up_proj", &self.up), ("down_proj", &self.down)] {
            parts.linear(&format!("{path}.{name}"), linear);
        }
    }

    pub(super) fn is_adapted(&self) -> bool {
        [&self.gate, &self.up, &self.down].into_iter().any(Linear::is_adapted)
    }
}

/// What a sparse layer's router decided.
#[derive(Debug, Clone)]
pub struct RouterOutput {
    /// `[N, experts]`, before the softmax; part of the graph when there is one.
    pub logits: Tensor,
    /// `[N, per_token]`: the weights of the chosen experts.
    pub weights: Tensor,
    /// Who was chosen.
    pub routing: Arc<Routing>,
}

impl RouterOutput {
    /// The same decision, outside of any graph.
    pub fn detached(&self) -> Self {
        Self { logits: self.logits.detach(), weights: self.weights.detach(), routing: self.routing.clone() }
    }
}

/// Routed experts, plus the shared expert scaled by its gate.
#[derive(Debug)]
pub(super) struct SparseMoe {
    router: Linear,
    experts: Arc<[Expert]>,
    adapter: Option<ExpertAdapter>,
    no_lora: (Tensor, Arc<ExpertLoraLayout>),
    shared: Option<(DenseMlp, Linear)>,
    per_token: usize,
    normalise: bool,
}

impl SparseMoe {
    pub(super) fn load(loader: &Loader, path: &str) -> Result<Self> {
        let config = &loader.config.moe;
        let list = format!("{path}.experts");
        let expert = |index: usize| -> Result<Expert> {
            let weight = |name: &str| loader.weight(&format!("{list}.{index}.{name}"));
            Ok(Expert::new(weight("gate_proj")?, weight("up_proj")?, weight("down_proj")?)?)
        };
        let shared = match config.shared_intermediate_size {
            Some(_) => Some((
                DenseMlp::load(loader, &format!("{path}.shared_expert"))?,
                Linear::load(loader, &format!("{path}.shared_expert_gate"), false)?,
            )),
            None => None,
        };
        let nothing = ExpertLoraLayout::new(
            loader.config.hidden_size,
            config.intermediate_size,
            &vec![[None; 3]; config.experts],
        );
        Ok(Self {
            router: Linear::load(loader, &format!("{path}.gate"), false)?,
            experts: (0..config.experts).map(expert).collect::<Result<_>>()?,
            adapter: loader.adapters.experts(&list).cloned(),
            no_lora: (Tensor::zeros(0, DType::F32, &Device::Cpu)?, nothing.into()),
            shared,
            per_token: config.per_token,
            normalise: config.normalise_top_k,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, pass: &Pass) -> Result<(Tensor, RouterOutput)> {
        let logits = self.router.forward(x, pass)?;
        let routing = with_slice(&logits, |values| Routing::from_logits(values, self.experts.len(), self.per_token))??;
        let routing = Arc::new(routing);
        let weights = routing_weights(&logits, &routing, self.normalise)?;
        let adapter = self.adapter.as_ref().filter(|_| pass.adapted);
        let (lora, layout) = match adapter {
            Some(adapter) => (pass.learnt(&adapter.values), &adapter.layout),
            None => (self.no_lora.0.clone(), &self.no_lora.1),
        };
        let dropout = adapter.and_then(|adapter| pass.expert_dropout(adapter.id));
        let call = Call { experts: self.experts.clone(), routing: routing.clone(), lora: layout.clone(), dropout };
        let mut out = moe::experts(x, &weights, &lora, &call)?;
        if let Some((shared, gate)) = &self.shared {
            out = (out + scale_rows(&shared.forward(x, pass)?, &gate.forward(x, pass)?)?)?;
        }
        Ok((out, RouterOutput { logits, weights, routing }))
    }

    pub(super) fn frozen<'a>(&'a self, path: &str, parts: &mut Parts<'a>) {
        parts.linear(&format!("{path}.gate"), &self.router);
        for (index, expert) in self.experts.iter().enumerate() {
            for (name, weight) in expert.weights() {
                parts.weight(&format!("{path}.experts.{index}.{name}.weight"), weight);
            }
        }
        if let Some((mlp, gate)) = &self.shared {
            mlp.frozen(&format!("{path}.shared_expert"), parts);
            parts.linear(&format!("{path}.shared_expert_gate"), gate);
        }
    }

    pub(super) fn is_adapted(&self) -> bool {
        self.adapter.is_some()
            || self.router.is_adapted()
            || self.shared.as_ref().is_some_and(|(mlp, gate)| mlp.is_adapted() || gate.is_adapted())
    }
}
