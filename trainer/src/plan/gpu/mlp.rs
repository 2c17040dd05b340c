//! The feed-forward parts on a card: `gpu::mlp`.

use super::experts::{Experts, Routing};
use super::layer::Place;
use super::linear::Linear;
use super::room::Piece;
use super::walk::Walk;
use crate::config::MlpKind;

/// The feed-forward part of a layer.
pub(super) enum Mlp {
    Dense(Dense),
    Sparse(Box<Sparse>),
}

/// What a forward pass keeps.
pub(super) enum Tape {
    Dense(DenseTape),
    Sparse(Box<SparseTape>),
}

/// `down(silu(gate x) ⊙ up x)`.
pub(super) struct Dense {
    gate: Linear,
    up: Linear,
    down: Linear,
}

pub(super) struct DenseTape {
    _gate: Piece,
    _up: Piece,
    _inner: Piece,
    _kept: [Option<Piece>; 3],
}

/// Routed experts and, in some models, a shared one with its gate.
pub(super) struct Sparse {
    router: Linear,
    experts: Experts,
    shared: Option<(Dense, Linear)>,
}

pub(super) struct SparseTape {
    _router: RouterUse,
    kept: [Piece; 4],
    shared: Option<SharedTape>,
}

/// What the router decided.
struct RouterUse {
    _logits: Piece,
    _kept: Option<Piece>,
    _routing: Routing,
}

struct SharedTape {
    tape: DenseTape,
    out: Piece,
    _gates: Piece,
    _kept_gate: Option<Piece>,
}

// === impl Mlp ===

impl Mlp {
    pub(super) fn of(walk: &Walk<'_>, place: &Place<'_>, kind: MlpKind) -> Self {
        match kind {
            MlpKind::Dense => Self::Dense(Dense::of(walk, place, "mlp", walk.config.intermediate_size as u64)),
            MlpKind::Sparse => Self::Sparse(Box::new(Sparse::of(walk, place))),
        }
    }

    pub(super) fn forward(&self, walk: &Walk<'_>) -> (Piece, Tape) {
        match self {
            Self::Dense(dense) => {
                let (out, tape) = dense.forward(walk);
                (out, Tape::Dense(tape))
            }
            Self::Sparse(sparse) => {
                let (out, tape) = sparse.forward(walk);
                (out, Tape::Sparse(Box::new(tape)))
            }
        }
    }

    /// What the backward pass needs, without the output.
    pub(super) fn forward_again(&self, walk: &Walk<'_>) -> Tape {
        match self {
            Self::Dense(dense) => Tape::Dense(dense.forward(walk).1),
            Self::Sparse(sparse) => Tape::Sparse(Box::new(sparse.forward_again(walk))),
        }
    }

    /// The gradient of the argument.
    pub(super) fn backward(&self, walk: &Walk<'_>, tape: Tape) -> Piece {
        let d_x = walk.rows(walk.hidden());
        match (self, tape) {
            (Self::Sparse(sparse), Tape::Sparse(tape)) => sparse.backward(walk, *tape),
            (Self::Dense(dense), Tape::Dense(tape)) => dense.backward(walk, tape),
            _ => {}
        }
        d_x
    }
}

// === impl Dense ===

impl Dense {
    fn of(walk: &Walk<'_>, place: &Place<'_>, path: &str, width: u64) -> Self {
        let linear = |name: &str, inputs, outputs| {
            walk.linear(place.lora, place.layer, &format!("{path}.{name}"), inputs, outputs)
        };
        let hidden = walk.hidden();
        Self {
            gate: linear("gate_proj", hidden, width),
            up: linear("up_proj", hidden, width),
            down: linear("down_proj", width, hidden),
        }
    }

    fn forward(&self, walk: &Walk<'_>) -> (Piece, DenseTape) {
        let (gate, kept_gate) = self.gate.forward(walk, false);
        let (up, kept_up) = self.up.forward(walk, false);
        let inner = walk.rows(self.up.outputs);
        let (out, kept_down) = self.down.forward(walk, false);
        (out, DenseTape { _gate: gate, _up: up, _inner: inner, _kept: [kept_gate, kept_up, kept_down] })
    }

    fn backward(&self, walk: &Walk<'_>, _tape: DenseTape) {
        let d_inner = walk.rows(self.up.outputs);
        self.down.backward(walk);
        let (_d_gate, _d_up) = (walk.rows(self.gate.outputs), walk.rows(self.up.outputs));
        drop(d_inner);
        self.gate.backward(walk);
        self.up.backward(walk);
    }
}

// === impl Sparse ===

impl Sparse {
    fn of(walk: &Walk<'_>, place: &Place<'_>) -> Self {
        let (moe, hidden) = (&walk.config.moe, walk.hidden());
        let linear = |path: &str, outputs| walk.linear(place.lora, place.layer, path, hidden, outputs);
        let shared = moe.shared_intermediate_size.map(|width| {
            (Dense::of(walk, place, "mlp.shared_expert", width as u64), linear("mlp.shared_expert_gate", 1))
        });
        Self { router: linear("mlp.gate", moe.experts as u64), experts: Experts::of(walk, place), shared }
    }

    fn forward(&self, walk: &Walk<'_>) -> (Piece, SparseTape) {
        let (router, out) = (self.route(walk), walk.rows(walk.hidden()));
        let kept = self.experts.forward(walk);
        (out, SparseTape { _router: router, kept, shared: self.shared(walk) })
    }

    fn forward_again(&self, walk: &Walk<'_>) -> SparseTape {
        let (router, kept) = (self.route(walk), self.experts.forward_again(walk));
        SparseTape { _router: router, kept, shared: self.shared(walk) }
    }

    fn route(&self, walk: &Walk<'_>) -> RouterUse {
        let (logits, kept) = self.router.forward(walk, true);
        RouterUse { _logits: logits, _kept: kept, _routing: Routing::of(walk) }
    }

    fn shared(&self, walk: &Walk<'_>) -> Option<SharedTape> {
        let (mlp, gate) = self.shared.as_ref()?;
        let (own, tape) = mlp.forward(walk);
        let (gates, kept_gate) = gate.forward(walk, false);
        Some(SharedTape { tape, out: own, _gates: gates, _kept_gate: kept_gate })
    }

    fn backward(&self, walk: &Walk<'_>, tape: SparseTape) {
        let SparseTape { _router, kept, shared } = tape;
        let _d_weights = walk.floats(self.experts.rows(walk));
        self.experts.backward(walk);
        drop(kept);
        let _d_logits = walk.rows(self.router.outputs);
        self.router.backward(walk);
        if let (Some((mlp, gate)), Some(shared)) = (&self.shared, shared) {
            let (_d_own, _d_gates) = (walk.rows(walk.hidden()), walk.rows(1));
            drop(shared.out);
            mlp.backward(walk, shared.tape);
            gate.backward(walk);
        }
    }
}
