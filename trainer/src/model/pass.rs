//! What a forward pass knows besides its tensors: the packed row's documents and positions, and the dropout's key.

use std::sync::Arc;

use brightrun_kernels::Documents;
use brightrun_kernels::dropout::Dropout;
use brightrun_kernels::rope::RopeTable;
use candle_core::{Device, Tensor, Var};

use super::linear::keyed;
use crate::stop::Stop;
use crate::{Error, Result};

/// Dropout on the LoRA path for one micro-batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PassDropout {
    /// Chance of an element to be dropped.
    pub probability: f32,
    /// The run's seed, step and micro-batch mixed into one number.
    pub key: u64,
}

// === impl PassDropout ===

impl PassDropout {
    /// That of the linear with this number.
    pub(crate) fn of(&self, id: u64) -> Dropout {
        keyed(self.probability, self.key, id, 0)
    }

    /// Those of gate, up and down of routed experts.
    pub(crate) fn of_experts(&self, id: u64) -> [Dropout; 3] {
        [1, 2, 3].map(|which| keyed(self.probability, self.key, id, which))
    }
}

/// One forward pass over one packed row. A recomputed layer gets the same pass, and so the same masks.
#[derive(Debug, Clone)]
pub struct Pass {
    pub(super) documents: Documents,
    pub(super) positions: Arc<[u32]>,
    pub(super) rope: RopeTable,
    /// `[N, 1]`, 0 at padding; only when there is any.
    pub(super) validity: Option<Tensor>,
    /// Adapters take part.
    pub(super) adapted: bool,
    dropout: Option<PassDropout>,
    graph: bool,
    stop: Stop,
}

impl Pass {
    pub(super) fn new(documents: &Documents, rope: RopeTable, dropout: Option<PassDropout>) -> Result<Self> {
        let validity = match documents.has_padding() {
            true => Some(Tensor::from_vec(documents.validity(), (documents.tokens(), 1), &Device::Cpu)?),
            false => None,
        };
        Ok(Self {
            documents: documents.clone(),
            positions: documents.positions().into(),
            rope,
            validity,
            adapted: true,
            dropout: dropout.filter(|d| d.probability > 0.0),
            graph: true,
            stop: Stop::default(),
        })
    }

    /// The same pass, which ends with an error at the next layer once somebody asks to stop: a micro-batch of a large model
    /// takes longer than people wait.
    pub(super) fn until(self, stop: &Stop) -> Self {
        Self { stop: stop.clone(), ..self }
    }

    /// An error where somebody asked to stop.
    pub(crate) fn go_on(&self) -> Result<()> {
        if self.stop.asked().is_some() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// The same pass without a graph: parameters count as constants, so that no op keeps anything for a backward pass.
    pub fn without_graph(&self) -> Self {
        Self { graph: false, ..self.clone() }
    }

    /// The same pass with the adapters or without them: then it is the base model's.
    pub fn with_adapters(&self, adapted: bool) -> Self {
        Self { adapted, ..self.clone() }
    }

    /// The same pass for tokens that follow `past` others of their document.
    pub(super) fn after(&self, past: usize) -> Self {
        Self { positions: self.positions.iter().map(|position| position + past as u32).collect(), ..self.clone() }
    }

    /// A parameter as this pass sees it.
    pub(super) fn learnt(&self, var: &Var) -> Tensor {
        if self.graph { var.as_tensor().clone() } else { var.as_detached_tensor() }
    }

    pub(super) fn dropout(&self, id: u64) -> Option<Dropout> {
        self.dropout.map(|dropout| dropout.of(id))
    }

    /// Dropout of gate, up and down of routed experts.
    pub(super) fn expert_dropout(&self, id: u64) -> Option<[Dropout; 3]> {
        self.dropout.map(|dropout| dropout.of_experts(id))
    }
}
