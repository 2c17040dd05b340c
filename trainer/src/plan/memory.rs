//! The peak of a step on a processor: what is always there, and the most that any moment of forward, loss and backward adds.

use std::collections::HashMap;

use brightrun_kernels::cross_entropy::CHUNK_ROWS;
use serde::Serialize;

use super::adapted::{Adapted, LayerLora};
use super::engine::Engine;
use super::inventory::{BaseSizes, Trained};
use super::layers::{self, BatchShape};
use super::tape::Cost;
use crate::config::{LayerConfig, MixerKind, MlpKind, ModelConfig};
use crate::run::{Parameters, PrecisionKind};
use crate::step::Recompute;

/// Memory of a run at its peak, in bytes. The parts add up to the peak.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Memory {
    /// The frozen base.
    pub base: u64,
    /// The adapters.
    pub adapters: u64,
    /// The optimiser's moments.
    pub optimizer: u64,
    /// Gradients of the adapters that are there at the peak; on a card all of them, always.
    pub gradients: u64,
    /// Inputs of layers that are kept for the way back.
    pub kept_inputs: u64,
    /// Graphs, activations and their gradients: of one layer, or of all where nothing is computed twice.
    pub activations: u64,
    /// Packed and decoded blocks of matrix products; on a card, what the vendor's library may use.
    pub workspace: u64,
    /// Ids, targets, positions and the table of rotations; on a card, lists of documents and chunks instead of the first.
    pub tokens: u64,
    /// Freed memory that the allocator holds on to; on a card, gaps that nothing fitted into.
    pub allocator: u64,
    /// The process or the device context itself.
    pub process: u64,
    /// All of them.
    pub peak: u64,
    /// When the peak is reached, as in `backward of layer 3`.
    pub peak_at: String,
    /// The most that is there while the base is read.
    pub loading: u64,
    /// The most that is there while the end is told.
    pub closing: u64,
    /// What the head and the loss take, logits included.
    pub head: u64,
    /// What one layer of each kind takes.
    pub layers: Vec<LayerMemory>,
}

/// What one layer takes, without its input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerMemory {
    /// Its mixer and its feed-forward part, as in `delta_net + experts`.
    pub kind: String,
    /// How many layers are like it.
    pub count: usize,
    /// Forward, where nothing is kept.
    pub forward: u64,
    /// What its graph keeps.
    pub graph: u64,
    /// Backward, graph included.
    pub backward: u64,
}

/// Everything the memory of a step depends on.
pub(super) struct Step<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) trained: &'a Trained,
    pub(super) adapted: &'a Adapted,
    pub(super) parameters: &'a Parameters,
    pub(super) engine: &'a Engine,
    pub(super) base: BaseSizes,
    pub(super) batch: BatchShape,
    /// An optimiser step has more than one micro-batch.
    pub(super) accumulates: bool,
    pub(super) recompute: Recompute,
}

/// A moment of a step.
#[derive(Debug, Clone, Default)]
struct Moment {
    kept_inputs: u64,
    gradients: u64,
    activations: u64,
    at: String,
}

// === impl Moment ===

impl Moment {
    fn total(&self) -> u64 {
        self.kept_inputs + self.gradients + self.activations
    }
}

// === impl Memory ===

impl Memory {
    /// The most that a run has at any time.
    pub fn most(&self) -> u64 {
        self.peak.max(self.loading).max(self.closing)
    }
}

// === impl Step ===

impl Step<'_> {
    pub(super) fn memory(&self) -> Memory {
        let costs = self.costs();
        let moments = self.moments(&costs);
        let most = moments.into_iter().max_by_key(Moment::total).unwrap_or_default();
        let (adapters, optimizer) = (4 * self.trained.values, self.trained.moments);
        let (workspace, tokens) = (self.engine.workspace, self.tokens());
        let (base, process) = (self.base.all, self.engine.process);
        let largest = costs.iter().map(|cost| cost.largest_buffer).max().unwrap_or_default();
        let allocator = self.engine.allocator(largest, self.parameters.base_precision == PrecisionKind::Nf4);
        let lasting = base + adapters + optimizer + workspace + tokens + process;
        Memory {
            base,
            adapters,
            optimizer,
            gradients: most.gradients,
            kept_inputs: most.kept_inputs,
            activations: most.activations,
            workspace,
            tokens,
            allocator,
            process,
            peak: lasting + allocator + most.total(),
            peak_at: most.at,
            loading: process + adapters + self.base.loading,
            closing: lasting + self.engine.closing,
            head: self.head(),
            layers: self.layer_kinds(&costs),
        }
    }

    /// The cost of every layer; layers that are alike are computed once.
    fn costs(&self) -> Vec<Cost> {
        let first = self.adapted.first();
        let quantised = self.parameters.base_precision == PrecisionKind::Nf4;
        let flags = |index: usize| (self.parameters.lora_dropout > 0.0, quantised, index > first);
        let mut known = HashMap::<(bool, bool, bool, bool, &LayerLora), Cost>::new();
        let mut cost = |(index, (layer, lora)): (usize, (&LayerConfig, _))| {
            let (dropout, quantised, wants) = flags(index);
            let key = (layer.mixer == MixerKind::Attention, layer.mlp == MlpKind::Sparse, wants, index >= first, lora);
            *known.entry(key).or_insert_with(|| {
                layers::cost(self.config, *layer, lora, self.engine, &self.batch, (dropout, quantised, wants))
            })
        };
        self.config.layers.iter().zip(&self.adapted.layers).enumerate().map(&mut cost).collect()
    }

    /// Every moment that may be the peak, as `step::accumulate` goes through them.
    fn moments(&self, costs: &[Cost]) -> Vec<Moment> {
        let first = self.adapted.first();
        let keeps_graphs = self.recompute == Recompute::None;
        let row = Engine::values(self.batch.tokens * self.config.hidden_size as u64);
        // Once a micro-batch is done, the gradients of all layers are there.
        let all: u64 = costs.iter().map(|cost| cost.gradients).sum::<u64>() + self.head_gradients();
        let before = if self.accumulates { all } else { 0 };
        let mut moments = Vec::with_capacity(2 * costs.len() + 1);
        let mut graphs = self.routers();
        let kept = |index: usize| (index + 1).saturating_sub(first) as u64 * row;
        for (index, cost) in costs.iter().enumerate() {
            let graph = keeps_graphs && index >= first;
            let own = if graph { cost.graph_peak } else { cost.plain_peak };
            // Layers before the first one that learns hand their input on.
            let input = if index < first { row } else { 0 };
            moments.push(Moment {
                kept_inputs: kept(index),
                gradients: before,
                activations: graphs + own + input,
                at: format!("forward of layer {index}"),
            });
            graphs += if graph { cost.held } else { 0 };
        }
        let last = costs.len().saturating_sub(1);
        moments.push(Moment {
            kept_inputs: kept(last),
            gradients: before,
            activations: graphs + self.head(),
            at: "loss".to_owned(),
        });
        let mut done = self.head_gradients();
        for (index, cost) in costs.iter().enumerate().skip(first).rev() {
            graphs -= if keeps_graphs { cost.held } else { 0 };
            // The output's gradient is there twice: as it came, and as the sum the pass begins with.
            let walk = if keeps_graphs { cost.backward_peak } else { cost.backward_peak.max(cost.graph_peak) } + row;
            // The pass is over: each new gradient is added to those of the micro-batches before.
            let sum = if self.accumulates { cost.largest_gradient } else { 0 };
            let taken = cost.held + 2 * row + cost.gradients + sum;
            moments.push(Moment {
                kept_inputs: kept(index),
                gradients: if self.accumulates { all } else { done },
                activations: graphs + walk.max(taken),
                at: format!("backward of layer {index}"),
            });
            done += cost.gradients;
        }
        moments
    }

    /// The load-balancing loss needs the logits and weights of all routers at the end.
    fn routers(&self) -> u64 {
        let sparse = self.config.layers.iter().filter(|layer| layer.mlp == MlpKind::Sparse).count();
        let width = (self.config.moe.experts + self.config.moe.per_token) as u64;
        if self.parameters.router_aux_loss { sparse as u64 * Engine::values(self.batch.tokens * width) } else { 0 }
    }

    fn head_gradients(&self) -> u64 {
        let (width, words) = (self.config.hidden_size, self.config.vocab_size);
        self.adapted.head.map_or(0, |rank| 4 * (rank * (width + words)) as u64)
    }

    /// The last layer's output as a leaf, its norm, and the loss. The gradient of the normed rows is made beside a chunk of
    /// logits and stays; scaled and summed it goes through the norm, whose gradient is summed too.
    fn head(&self) -> u64 {
        let (width, words) = (self.config.hidden_size as u64, self.config.vocab_size as u64);
        let row = Engine::values(self.batch.tokens * width);
        let rows = (CHUNK_ROWS as u64).min(self.batch.targets);
        let rank = self.adapted.head.unwrap_or_default() as u64;
        let dropped = if rank > 0 && self.parameters.lora_dropout > 0.0 { 2 * rows * width } else { 0 };
        // Logits are `f32`, as is what is gathered for them; the LoRA pair adds its low-rank rows and its gradients.
        let chunk = 4 * (rows * (words + 2 * width + 2 * rank) + dropped);
        let decoded = if self.head_is_quantised() { 4 * words * width } else { 0 };
        let forward = 3 * row + chunk + decoded + self.head_gradients();
        let backward = 6 * row + 3 * self.head_gradients();
        forward.max(backward)
    }

    fn head_is_quantised(&self) -> bool {
        self.parameters.precision().quantises("lm_head").is_some()
    }

    /// Ids, targets and positions, and cosines and sines up to the next power of two of the longest document.
    fn tokens(&self) -> u64 {
        let positions = self.batch.longest.next_power_of_two().max(512);
        self.batch.tokens * Engine::TOKEN + positions * 4 * self.config.attention.rotary_dim as u64
    }

    fn layer_kinds(&self, costs: &[Cost]) -> Vec<LayerMemory> {
        let mut kinds: Vec<LayerMemory> = Vec::new();
        // The first layer that learns gives no gradient to its input; those behind it are the rule.
        for (layer, cost) in self.config.layers.iter().zip(costs).rev() {
            let name = kind_name(*layer);
            match kinds.iter_mut().find(|kind| kind.kind == name) {
                Some(kind) => kind.count += 1,
                None => kinds.push(LayerMemory {
                    kind: name,
                    count: 1,
                    forward: cost.plain_peak,
                    graph: cost.held,
                    backward: cost.backward_peak,
                }),
            }
        }
        kinds
    }
}

pub(super) fn kind_name(layer: LayerConfig) -> String {
    let mixer = match layer.mixer {
        MixerKind::Attention => "attention",
        MixerKind::DeltaNet => "delta_net",
    };
    let mlp = match layer.mlp {
        MlpKind::Dense => "dense",
        MlpKind::Sparse => "experts",
    };
    format!("{mixer} + {mlp}")
}
