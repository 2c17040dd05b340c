//! The feed-forward parts: dense SwiGLU, and the mixture of experts with its shared expert.

use brightrun_kernels::gpu::Buffer;
use brightrun_kernels::moe::{Balance, ExpertsCall, GpuExperts, GpuRouting, Gradients, Kept as ExpertsKept};
use brightrun_kernels::swiglu;
use half::bf16;

use super::digest::Parts;
use super::experts::ExpertAdapter;
use super::linear::{Kept, Linear};
use super::load::Loader;
use super::pass::Pass;
use crate::config::MlpKind;
use crate::{Error, Result};

/// The feed-forward part of a layer.
pub(super) enum Mlp {
    Dense(Box<Dense>),
    Sparse(Box<Sparse>),
}

/// What the backward pass needs besides the part's input.
pub(super) enum Tape {
    Dense(DenseTape),
    Sparse(Box<SparseTape>),
}

/// `down(silu(gate x) ⊙ up x)`.
pub(super) struct Dense {
    gate: Linear,
    up: Linear,
    down: Linear,
    width: usize,
}

pub(super) struct DenseTape {
    gate: Buffer<bf16>,
    up: Buffer<bf16>,
    inner: Buffer<bf16>,
    kept: [Kept; 3],
}

/// Routed experts, plus the shared expert scaled by its gate.
pub(super) struct Sparse {
    router: Linear,
    experts: GpuExperts,
    adapter: Option<ExpertAdapter>,
    shared: Option<(Dense, Linear)>,
    per_token: usize,
    normalise: bool,
}

pub(super) struct SparseTape {
    router: RouterUse,
    kept_router: Kept,
    kept: ExpertsKept,
    shared: Option<SharedTape>,
}

struct SharedTape {
    tape: DenseTape,
    out: Buffer<bf16>,
    gates: Buffer<bf16>,
    kept_gate: Kept,
}

/// What a router decided.
pub(super) struct RouterUse {
    pub(super) logits: Buffer<f32>,
    pub(super) routing: GpuRouting,
}

/// The load-balancing loss of a micro-batch.
pub(super) struct Balancing {
    pub(super) shares: Buffer<f32>,
    pub(super) valid: Buffer<f32>,
    pub(super) factor: f32,
}

// === impl Mlp ===

impl Mlp {
    pub(super) fn load(loader: &Loader<'_>, path: &str, kind: MlpKind) -> Result<Self> {
        Ok(match kind {
            MlpKind::Dense => Self::Dense(Box::new(Dense::load(loader, path, loader.config.intermediate_size)?)),
            MlpKind::Sparse => Self::Sparse(Box::new(Sparse::load(loader, path)?)),
        })
    }

    pub(super) fn is_adapted(&self) -> bool {
        match self {
            Self::Dense(dense) => dense.is_adapted(),
            Self::Sparse(sparse) => sparse.is_adapted(),
        }
    }

    /// The LoRA of the routed experts, if they learn.
    pub(super) fn adapter(&self) -> Option<&ExpertAdapter> {
        match self {
            Self::Dense(_) => None,
            Self::Sparse(sparse) => sparse.adapter.as_ref(),
        }
    }

    /// The LoRA of the routed experts, as the optimiser changes it.
    pub(super) fn adapter_mut(&mut self) -> Option<&mut ExpertAdapter> {
        match self {
            Self::Dense(_) => None,
            Self::Sparse(sparse) => sparse.adapter.as_mut(),
        }
    }

    pub(super) fn frozen(&self, path: &str, parts: &mut Parts) {
        match self {
            Self::Dense(dense) => dense.frozen(path, parts),
            Self::Sparse(sparse) => sparse.frozen(path, parts),
        }
    }

    pub(super) fn forward(&self, x: &Buffer<bf16>, pass: &Pass<'_>) -> Result<(Buffer<bf16>, Tape)> {
        Ok(match self {
            Self::Dense(dense) => {
                let (out, tape) = dense.forward(x, pass)?;
                (out, Tape::Dense(tape))
            }
            Self::Sparse(sparse) => {
                let (out, tape) = sparse.forward(x, pass)?;
                (out, Tape::Sparse(Box::new(tape)))
            }
        })
    }

    /// What [`Mlp::forward`] keeps, without the result.
    pub(super) fn forward_again(&self, x: &Buffer<bf16>, pass: &Pass<'_>) -> Result<Tape> {
        Ok(match self {
            Self::Dense(dense) => Tape::Dense(dense.forward(x, pass)?.1),
            Self::Sparse(sparse) => Tape::Sparse(Box::new(sparse.forward_again(x, pass)?)),
        })
    }

    /// The gradient of `x` from that of the result; those of adapters are added to theirs.
    pub(super) fn backward(
        &self,
        x: &Buffer<bf16>,
        tape: Tape,
        d_out: &Buffer<bf16>,
        balance: Option<&Balancing>,
        pass: &Pass<'_>,
    ) -> Result<Buffer<bf16>> {
        let mut d_x = pass.gpu.empty(x.len())?;
        match (self, tape) {
            (Self::Dense(dense), Tape::Dense(tape)) => dense.backward(x, tape, d_out, pass, &mut d_x, false)?,
            (Self::Sparse(sparse), Tape::Sparse(tape)) => sparse.backward(x, *tape, d_out, balance, pass, &mut d_x)?,
            _ => return Err(Error::Invalid("the tape is that of another layer".into())),
        }
        Ok(d_x)
    }
}

impl Tape {
    /// What the router decided, in sparse layers.
    pub(super) fn router(&self) -> Option<&RouterUse> {
        match self {
            Self::Dense(_) => None,
            Self::Sparse(tape) => Some(&tape.router),
        }
    }
}

// === impl Dense ===

impl Dense {
    fn load(loader: &Loader<'_>, path: &str, width: usize) -> Result<Self> {
        let hidden = loader.config.hidden_size;
        let linear = |name: &str, outputs, inputs| loader.linear(&format!("{path}.{name}"), outputs, inputs, false);
        Ok(Self {
            gate: linear("gate_proj", width, hidden)?,
            up: linear("up_proj", width, hidden)?,
            down: linear("down_proj", hidden, width)?,
            width,
        })
    }

    fn frozen(&self, path: &str, parts: &mut Parts) {
        for (name, linear) in [("gate_proj", &self.gate), ("up_proj", &self.up), ("down_proj", &self.down)] {
            linear.frozen(&format!("{path}.{name}"), parts);
        }
    }

    fn is_adapted(&self) -> bool {
        [&self.gate, &self.up, &self.down].into_iter().any(Linear::is_adapted)
    }

    fn forward(&self, x: &Buffer<bf16>, pass: &Pass<'_>) -> Result<(Buffer<bf16>, DenseTape)> {
        let (gate, kept_gate) = self.gate.forward(x, pass)?;
        let (up, kept_up) = self.up.forward(x, pass)?;
        let mut inner = pass.rows(self.width)?;
        swiglu::gpu::forward(&gate, &up, &mut inner)?;
        let (out, kept_down) = self.down.forward(&inner, pass)?;
        Ok((out, DenseTape { gate, up, inner, kept: [kept_gate, kept_up, kept_down] }))
    }

    fn backward(
        &self,
        x: &Buffer<bf16>,
        tape: DenseTape,
        d_out: &Buffer<bf16>,
        pass: &Pass<'_>,
        d_x: &mut Buffer<bf16>,
        add: bool,
    ) -> Result<()> {
        let [kept_gate, kept_up, kept_down] = &tape.kept;
        let mut d_inner = pass.rows(self.width)?;
        self.down.backward(&tape.inner, kept_down, d_out, pass, &mut d_inner, false)?;
        let (mut d_gate, mut d_up) = (pass.rows(self.width)?, pass.rows(self.width)?);
        swiglu::gpu::backward(&tape.gate, &tape.up, &d_inner, &mut d_gate, &mut d_up)?;
        drop(d_inner);
        self.gate.backward(x, kept_gate, &d_gate, pass, d_x, add)?;
        self.up.backward(x, kept_up, &d_up, pass, d_x, true)
    }
}

// === impl Sparse ===

impl Sparse {
    fn load(loader: &Loader<'_>, path: &str) -> Result<Self> {
        let config = &loader.config.moe;
        let hidden = loader.config.hidden_size;
        let list = format!("{path}.experts");
        let shared = match config.shared_intermediate_size {
            Some(width) => Some((
                Dense::load(loader, &format!("{path}.shared_expert"), width)?,
                loader.linear(&format!("{path}.shared_expert_gate"), 1, hidden, false)?,
            )),
            None => None,
        };
        Ok(Self {
            router: loader.linear(&format!("{path}.gate"), config.experts, hidden, false)?,
            experts: loader.experts(&list)?,
            adapter: loader.expert_adapter(&list)?,
            shared,
            per_token: config.per_token,
            normalise: config.normalise_top_k,
        })
    }

    fn frozen(&self, path: &str, parts: &mut Parts) {
        self.router.frozen(&format!("{path}.gate"), parts);
        for (name, own) in ["gate_up_proj", "down_proj"].into_iter().zip(self.experts.frozen()) {
            parts.add(&format!("{path}.experts.{name}"), own);
        }
        if let Some((mlp, gate)) = &self.shared {
            mlp.frozen(&format!("{path}.shared_expert"), parts);
            gate.frozen(&format!("{path}.shared_expert_gate"), parts);
        }
    }

    fn is_adapted(&self) -> bool {
        let shared = self.shared.as_ref().is_some_and(|(mlp, gate)| mlp.is_adapted() || gate.is_adapted());
        self.adapter.is_some() || self.router.is_adapted() || shared
    }

    fn call<'a>(&'a self, routing: &'a GpuRouting, pass: &Pass<'_>) -> ExpertsCall<'a> {
        let adapter = self.adapter.as_ref().filter(|_| pass.adapted);
        let dropout = adapter.and_then(|adapter| pass.expert_dropout(adapter.id));
        ExpertsCall { experts: &self.experts, routing, lora: adapter.map(|adapter| &adapter.lora), dropout }
    }

    fn forward(&self, x: &Buffer<bf16>, pass: &Pass<'_>) -> Result<(Buffer<bf16>, SparseTape)> {
        let (router, kept_router) = self.route(x, pass)?;
        let mut out = pass.gpu.empty(x.len())?;
        let kept = self.call(&router.routing, pass).forward(x, &mut out, false)?;
        let shared = self.shared(x, pass)?;
        if let Some(shared) = &shared {
            swiglu::gpu::add_scaled_rows(&shared.out, &shared.gates, &mut out)?;
        }
        Ok((out, SparseTape { router, kept_router, kept, shared }))
    }

    fn forward_again(&self, x: &Buffer<bf16>, pass: &Pass<'_>) -> Result<SparseTape> {
        let (router, kept_router) = self.route(x, pass)?;
        let kept = self.call(&router.routing, pass).forward_again(x)?;
        Ok(SparseTape { router, kept_router, kept, shared: self.shared(x, pass)? })
    }

    fn route(&self, x: &Buffer<bf16>, pass: &Pass<'_>) -> Result<(RouterUse, Kept)> {
        let (logits, kept) = self.router.forward_wide(x, pass)?;
        let routing = GpuRouting::from_logits(&logits, self.experts.experts(), self.per_token, self.normalise)?;
        Ok((RouterUse { logits, routing }, kept))
    }

    /// The shared expert, whose gate's gradient asks for its output.
    fn shared(&self, x: &Buffer<bf16>, pass: &Pass<'_>) -> Result<Option<SharedTape>> {
        let Some((mlp, gate)) = &self.shared else { return Ok(None) };
        let (out, tape) = mlp.forward(x, pass)?;
        let (gates, kept_gate) = gate.forward(x, pass)?;
        Ok(Some(SharedTape { tape, out, gates, kept_gate }))
    }

    fn backward(
        &self,
        x: &Buffer<bf16>,
        tape: SparseTape,
        d_out: &Buffer<bf16>,
        balance: Option<&Balancing>,
        pass: &Pass<'_>,
        d_x: &mut Buffer<bf16>,
    ) -> Result<()> {
        let SparseTape { router: RouterUse { logits, routing }, kept_router, kept, shared } = tape;
        let mut d_weights = pass.gpu.empty(routing.slots().len())?;
        let mut d_lora = match &self.adapter {
            Some(adapter) => Some(pass.adapters.get(adapter.parameter)?.gradient.shared()),
            None => None,
        };
        let gradients = Gradients { x: Some((&mut *d_x, false)), weights: &mut d_weights, lora: d_lora.as_mut() };
        self.call(&routing, pass).backward(x, &kept, d_out, gradients)?;
        drop(kept);
        let mut d_logits = pass.gpu.empty(logits.len())?;
        let balance = balance.map(|balance| Balance {
            shares: &balance.shares,
            valid: Some(&balance.valid),
            factor: balance.factor,
        });
        routing.backward(&logits, &d_weights, balance.as_ref(), None, Some(&mut d_logits))?;
        self.router.backward(x, &kept_router, &d_logits, pass, d_x, true)?;
        if let (Some((mlp, gate)), Some(shared)) = (&self.shared, shared) {
            let (mut d_own, mut d_gates) = (pass.gpu.empty(shared.out.len())?, pass.gpu.empty(shared.gates.len())?);
            swiglu::gpu::scale_rows_backward(&shared.out, &shared.gates, d_out, &mut d_own, &mut d_gates)?;
            drop(shared.out);
            mlp.backward(x, shared.tape, &d_own, pass, d_x, true)?;
            gate.backward(x, &shared.kept_gate, &d_gates, pass, d_x, true)?;
        }
        Ok(())
    }
}
