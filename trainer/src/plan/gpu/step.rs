//! A micro-batch and what is there before it: `gpu::step`.

use brightrun_kernels::gpu::arena::rounded;

use super::card::Card;
use super::head::Head;
use super::lasting::Lasting;
use super::layer::{Layer, Place};
use super::linear::Linear;
use super::room::{Moment, Piece, Room};
use super::walk::Walk;
use crate::config::{CheckpointFormat, ModelConfig};
use crate::lora::LoraPlan;
use crate::plan::adapted::Adapted;
use crate::plan::inventory::BaseSizes;
use crate::plan::layers::BatchShape;
use crate::plan::machine::MachineKind;
use crate::plan::memory::{LayerMemory, Memory, kind_name};
use crate::run::Parameters;
use crate::weights::BasePrecision;

const MIB: u64 = 1 << 20;
/// What a CUDA context with its modules takes on a data-centre card (400 to 550 MiB are commonly reported), and what the
/// program leaves to the driver (`kernels::gpu`).
const PROCESS: u64 = (550 + 512) * MIB;
/// What the vendor's library of products may use.
const LIBRARY: u64 = 32 * MIB;
/// Positions that the table of rotations has at least.
const FIRST_POSITIONS: u64 = 512;
/// Lists of a row begin at multiples of so many numbers.
const LIST_GRAIN: u64 = 64;
/// Sums of a layer's use of experts (`moe::ExpertUse`), in 64 bits.
const USE_SHARES: u64 = 64;
/// Tokens whose routing is summed together for the load-balancing loss.
const SUMMED: u64 = 64;

/// Everything the memory of a step on a card depends on.
pub(in crate::plan) struct GpuStep<'a> {
    pub(in crate::plan) config: &'a ModelConfig,
    pub(in crate::plan) plan: &'a LoraPlan,
    pub(in crate::plan) adapted: &'a Adapted,
    pub(in crate::plan) parameters: &'a Parameters,
    pub(in crate::plan) machine: &'a MachineKind,
    pub(in crate::plan) base: BaseSizes,
    pub(in crate::plan) batch: BatchShape,
    /// Steps of the run.
    pub(in crate::plan) steps: u64,
}

// === impl GpuStep ===

impl GpuStep<'_> {
    pub(in crate::plan) fn memory(&self) -> Memory {
        let precision = self.precision();
        let (room, card) = (Room::new(), Card::of(self.machine));
        let walk = Walk { room, config: self.config, precision: &precision, batch: self.batch, card };
        let Lasting { adapters, gradients, optimizer } =
            Lasting::of(self.config, self.plan, self.parameters, self.steps);
        let base = self.base.all;
        let _lasting = [LIBRARY, adapters, gradients, base, optimizer].map(|bytes| walk.room.take(bytes));
        let _row = self.row(&walk);
        let tokens = walk.room.used() - LIBRARY - adapters - gradients - base - optimizer;
        let layers = self.layers(&walk);
        self.step(&walk, &layers);
        let most = walk.room.most();
        let always = LIBRARY + adapters + gradients + base + optimizer + tokens;
        Memory {
            base,
            adapters,
            optimizer,
            gradients,
            kept_inputs: most.kept,
            activations: most.bytes - always - most.kept,
            workspace: LIBRARY,
            tokens,
            allocator: walk.room.reach() - most.bytes,
            process: PROCESS,
            peak: PROCESS + walk.room.reach(),
            peak_at: most.moment.to_string(),
            loading: PROCESS + LIBRARY + adapters + gradients + base,
            closing: PROCESS + always,
            head: self.head_alone(&walk.elsewhere()),
            layers: self.layer_kinds(&walk, &layers),
        }
    }

    /// What bitsandbytes quantised stays so whatever is asked for.
    fn precision(&self) -> BasePrecision {
        match self.config.checkpoint {
            CheckpointFormat::Bnb4bit => BasePrecision::nf4(),
            _ => self.parameters.precision(),
        }
    }

    /// Where documents and chunks begin, the rotations, and how often experts are used.
    fn row(&self, walk: &Walk<'_>) -> Vec<Piece> {
        let BatchShape { tokens, documents, longest, chunks, .. } = self.batch;
        let positions = if longest > FIRST_POSITIONS { longest.next_power_of_two() } else { FIRST_POSITIONS };
        let lists = 3 * tokens.next_multiple_of(LIST_GRAIN) + (documents + 1).next_multiple_of(LIST_GRAIN);
        let rotations = positions * self.config.attention.rotary_dim as u64;
        let sparse = self.config.layers.len() as u64;
        let uses = [sparse * self.config.moe.experts as u64, sparse * 2 * USE_SHARES];
        let always = [rotations, lists, 4 * documents, 4 * chunks].into_iter().chain(uses);
        always.map(|count| walk.floats(count)).collect()
    }

    fn layers(&self, walk: &Walk<'_>) -> Vec<Layer> {
        let layers = self.config.layers.iter().zip(&self.adapted.layers).enumerate();
        layers.map(|(layer, (kind, lora))| Layer::of(walk, Place { layer, lora }, *kind)).collect()
    }

    fn head(&self, walk: &Walk<'_>) -> Head {
        let (inputs, outputs) = (walk.hidden(), self.config.vocab_size as u64);
        // A head that is the embedding is not quantised.
        let quantised = !self.config.tie_word_embeddings && walk.precision.quantises("lm_head").is_some();
        let rank = self.adapted.head.map(|rank| rank as u64);
        Head { linear: Linear { inputs, outputs, rank, quantised } }
    }

    /// Forward, loss and backward.
    fn step(&self, walk: &Walk<'_>, layers: &[Layer]) {
        let (room, first) = (&walk.room, self.adapted.first());
        let row = rounded(2 * walk.tokens() * walk.hidden());
        let kept = |index: usize| (index + 1).saturating_sub(first) as u64 * row;
        let mut hidden = self.embed(walk);
        if self.parameters.neftune_noise_alpha > 0.0 {
            drop(walk.floats(walk.tokens()));
        }
        let load = self.parameters.router_aux_loss.then(|| self.load(walk));
        let _valid = walk.floats(walk.tokens());
        let mut inputs = Vec::with_capacity(layers.len());
        for (index, layer) in layers.iter().enumerate() {
            room.enter(Moment::Forward(index), kept(index));
            let (out, tape) = layer.forward(walk);
            if load.is_some() {
                drop(walk.floats(walk.tokens().div_ceil(SUMMED) * self.config.moe.experts as u64));
            }
            drop(tape);
            inputs.push((index >= first).then_some(hidden));
            hidden = out;
        }
        // Shares and the loss.
        let _balance = load.map(|sums| {
            let made = [walk.floats(self.config.moe.experts as u64), walk.floats(1)];
            drop(sums);
            made
        });
        room.enter(Moment::Loss, kept(layers.len().saturating_sub(1)));
        let _sum = room.take(8);
        let mut upstream = self.head(walk).loss(walk);
        drop(hidden);
        for (index, layer) in layers.iter().enumerate().skip(first).rev() {
            room.enter(Moment::Backward(index), kept(index));
            let _input = inputs.pop();
            let tape = layer.forward_again(walk);
            upstream = layer.backward(walk, tape);
        }
        drop(upstream);
    }

    fn embed(&self, walk: &Walk<'_>) -> Piece {
        let _ids = walk.floats(walk.tokens());
        walk.rows(walk.hidden())
    }

    /// What the load-balancing loss has of all layers: counts and probabilities.
    fn load(&self, walk: &Walk<'_>) -> [Piece; 2] {
        [self.config.moe.experts as u64; 2].map(|count| walk.floats(count))
    }

    fn head_alone(&self, walk: &Walk<'_>) -> u64 {
        drop(self.head(walk).loss(walk));
        walk.room.most().bytes
    }

    /// What one layer of each kind takes by itself.
    fn layer_kinds(&self, walk: &Walk<'_>, layers: &[Layer]) -> Vec<LayerMemory> {
        let mut kinds: Vec<LayerMemory> = Vec::new();
        for (kind, layer) in self.config.layers.iter().zip(layers) {
            let name = kind_name(*kind);
            match kinds.iter_mut().find(|known| known.kind == name) {
                Some(known) => known.count += 1,
                None => kinds.push(alone(name, &walk.elsewhere(), layer)),
            }
        }
        kinds
    }
}

fn alone(kind: String, walk: &Walk<'_>, layer: &Layer) -> LayerMemory {
    let (out, tape) = layer.forward(walk);
    let forward = walk.room.most().bytes;
    drop((out, tape));
    let tape = layer.forward_again(walk);
    let graph = walk.room.used();
    let _upstream = walk.rows(walk.hidden());
    walk.room.forget_most();
    drop(layer.backward(walk, tape));
    LayerMemory { kind, count: 1, forward, graph, backward: walk.room.most().bytes }
}
