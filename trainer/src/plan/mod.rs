//! The plan of a run, before it costs anything: does it fit, in how much memory, how long will it take, what will it cost,
//! and if it does not fit, what would.
//!
//! ```text
//! peak = base + adapters + moments + workspace + tokens + allocator + process
//!      + max over all moments of a step (kept layer inputs + gradients so far + what that moment holds)
//! ```
//! What a moment holds is found by walking through a step: on a CPU through the ops of a layer as the tensor library does
//! ([`tape`]), on a card through all that our own step asks of the arena ([`gpu`]). Tests hold the first against what
//! processes take, and the second against an emulated card ([`Basis`]).

mod adapted;
mod compute;
mod engine;
mod eta;
mod facts;
mod gpu;
mod inventory;
mod layers;
mod machine;
mod memory;
mod rates;
mod refusal;
mod table;
mod tape;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::Result;
use crate::config::ModelConfig;
use crate::lora::{self, LoraPlan};
use crate::run::{Data, Parameters};
use crate::step::Recompute;
use adapted::Adapted;
use compute::{Load, Passes};
use engine::Engine;
use gpu::GpuStep;
use inventory::{Base, BaseSizes, Trained};
use memory::Step;

pub use compute::{Again, Operations, Time, operations_of_token};
pub use engine::Basis;
pub use eta::TimeEstimate;
pub use facts::{DataFacts, Work};
pub use inventory::{ParameterCounts, PartCount, PartKind};
pub use layers::BatchShape;
pub use machine::{Machine, MachineKind};
pub use memory::{LayerMemory, Memory};
pub use refusal::{Refusal, Suggestion};
pub use table::{duration, gigabytes};

/// What a run will be on one machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// What it is planned for.
    pub machine: Machine,
    /// What memory was compared with.
    pub basis: Basis,
    /// Parameters and the adapter's size.
    pub parameters: ParameterCounts,
    /// Steps and tokens.
    pub work: Work,
    /// How a step is computed: the fastest way that fits, or the smallest where none does.
    pub choice: Choice,
    /// Every way that was looked at, the chosen one among them.
    pub choices: Vec<Choice>,
    /// Memory of the chosen way.
    pub memory: Memory,
    /// What a plan may fill of the machine's memory.
    pub usable_bytes: u64,
    /// Whether the peak stays within it.
    pub fits: bool,
    /// Operations a token.
    pub operations: Operations,
    /// Time and cost.
    pub time: Time,
}

/// A way to compute a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Choice {
    /// Most tokens of a micro-batch.
    pub micro_batch_tokens: u32,
    /// What is kept of the forward pass.
    #[serde(serialize_with = "recompute_name")]
    pub recompute: Recompute,
    /// Its peak.
    pub peak_bytes: u64,
    /// Its time for an optimiser step.
    pub step_seconds: f64,
}

/// Plans one model and job for any number of machines.
#[derive(Debug, Clone)]
pub struct Planner<'a> {
    config: &'a ModelConfig,
    plan: &'a LoraPlan,
    parameters: &'a Parameters,
    facts: &'a DataFacts<'a>,
    base: Arc<Base>,
    adapted: Adapted,
    trained: Trained,
    /// What the job decides by itself.
    micro_batch_tokens: Option<u32>,
    recompute: Option<Recompute>,
}

/// Micro-batches that are looked at hold up to so many times what the job's settings say.
const LARGEST_FACTOR: u32 = 8;
/// The smallest micro-batch that is looked at, where no example is longer.
const SMALLEST_MICRO_BATCH: u32 = 512;
/// Of ways that take about as long, within this share, the one that takes least memory is chosen.
const SAME_TIME: f64 = 0.02;

fn recompute_name<S: Serializer>(recompute: &Recompute, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(match recompute {
        Recompute::Layers => "layers",
        Recompute::None => "none",
    })
}

// === impl Plan ===

impl Plan {
    /// The plan of a run whose dataset is read: one more call of [`Planner::refusal`] says what would fit where it does not.
    pub fn for_run(
        config: &ModelConfig,
        plan: &LoraPlan,
        parameters: &Parameters,
        data: &Data,
        machine: &Machine,
    ) -> Result<Self> {
        Planner::new(config, plan, parameters, &DataFacts::of(data)).plan(machine)
    }

    /// What the rest of a run takes, to be corrected step by step.
    pub fn time_estimate(&self) -> TimeEstimate {
        TimeEstimate::new(self.work.steps, self.work.tokens, self.time.step_seconds * self.work.steps as f64)
    }
}

// === impl Planner ===

impl<'a> Planner<'a> {
    /// A planner; the tensors of the model are listed once.
    pub fn new(
        config: &'a ModelConfig,
        plan: &'a LoraPlan,
        parameters: &'a Parameters,
        facts: &'a DataFacts<'a>,
    ) -> Self {
        Self::with_base(config, plan, parameters, facts, Arc::new(Base::new(config)))
    }

    fn with_base(
        config: &'a ModelConfig,
        plan: &'a LoraPlan,
        parameters: &'a Parameters,
        facts: &'a DataFacts<'a>,
        base: Arc<Base>,
    ) -> Self {
        let (adapted, trained) = (Adapted::new(config, plan), Trained::new(plan, parameters));
        Self { config, plan, parameters, facts, base, adapted, trained, micro_batch_tokens: None, recompute: None }
    }

    /// The same, with what a job decides by itself: then there is nothing to choose.
    #[must_use]
    pub fn fixed(self, micro_batch_tokens: Option<u32>, recompute: Option<Recompute>) -> Self {
        Self { micro_batch_tokens, recompute, ..self }
    }

    /// The same as [`run`](crate::run::run) does it: micro-batches are those of the settings, since their size decides the
    /// order of sums; what is kept of the forward pass is chosen where the settings leave it open.
    #[must_use]
    pub fn as_run(self) -> Self {
        let recompute = self.parameters.recompute.map(|on| if on { Recompute::Layers } else { Recompute::None });
        let tokens = self.parameters.dataset().micro_batch_tokens;
        self.fixed(Some(tokens), recompute)
    }

    /// The fastest way to run that fits, or the smallest where none does.
    pub fn plan(&self, machine: &Machine) -> Result<Plan> {
        let capacities = self.micro_batch_tokens.map_or_else(|| self.capacities(), |tokens| vec![tokens]);
        self.plan_among(machine, &capacities, &self.kinds(machine))
    }

    /// What is kept of the forward pass: on a card always the inputs of layers and no more.
    fn kinds(&self, machine: &Machine) -> Vec<Recompute> {
        match (&machine.kind, self.recompute) {
            (MachineKind::Gpu { .. }, _) => vec![Recompute::Layers],
            (MachineKind::Cpu { .. }, None) => vec![Recompute::None, Recompute::Layers],
            (MachineKind::Cpu { .. }, Some(kind)) => vec![kind],
        }
    }

    /// What a job asks for that this machine does otherwise. The result is the same.
    pub fn warning(&self, machine: &Machine) -> Option<String> {
        let card = matches!(machine.kind, MachineKind::Gpu { .. });
        (card && self.parameters.recompute == Some(false)).then(|| {
            "recompute is false, but on a card layers are always computed again; the result is the same".to_owned()
        })
    }

    /// The memory of a step with exactly this micro-batch; `accumulates`: it is not the only one of its step.
    pub fn step_memory(&self, machine: &Machine, batch: BatchShape, accumulates: bool, recompute: Recompute) -> Memory {
        let base = self.base.sizes(self.config, &self.parameters.precision(), &machine.kind);
        self.memory(machine, base, (batch, accumulates), recompute, 1)
    }

    /// The memory of a run of so many steps.
    fn memory(
        &self,
        machine: &Machine,
        base: BaseSizes,
        (batch, accumulates): (BatchShape, bool),
        recompute: Recompute,
        steps: u64,
    ) -> Memory {
        let (config, adapted, parameters) = (self.config, &self.adapted, self.parameters);
        match &machine.kind {
            MachineKind::Cpu { threads, .. } => {
                let (trained, engine) = (&self.trained, &Engine::cpu(*threads));
                Step { config, trained, adapted, parameters, engine, base, batch, accumulates, recompute }.memory()
            }
            MachineKind::Gpu { .. } => {
                let (plan, machine) = (self.plan, &machine.kind);
                GpuStep { config, plan, adapted, parameters, machine, base, batch, steps }.memory()
            }
        }
    }

    /// Micro-batches from the longest example (or a floor) to what a step can fill, by doubling and halving what the
    /// settings say.
    fn capacities(&self) -> Vec<u32> {
        let set = self.parameters.dataset().micro_batch_tokens;
        let longest = self.facts.longest();
        let least = longest.max(SMALLEST_MICRO_BATCH.min(set));
        let step = u64::from(longest) * self.parameters.batch_size as u64;
        let mut list = vec![set];
        let mut smaller = set;
        while smaller > least {
            smaller = (smaller / 2).max(least);
            list.push(smaller);
        }
        let mut factor = 2;
        while factor <= LARGEST_FACTOR && u64::from(set) * u64::from(factor / 2) < step {
            list.push(set.saturating_mul(factor));
            factor *= 2;
        }
        list.sort_unstable();
        list
    }

    fn plan_among(&self, machine: &Machine, capacities: &[u32], kinds: &[Recompute]) -> Result<Plan> {
        let precision = self.parameters.precision();
        let base = self.base.sizes(self.config, &precision, &machine.kind);
        let counts = self.base.counts(self.config, &precision, &self.trained, &machine.kind);
        let mut plans = Vec::new();
        for &capacity in capacities {
            let work = self.facts.work(self.parameters, capacity)?;
            for &recompute in kinds {
                plans.push(self.one(machine, base, &counts, &work, capacity, recompute));
            }
        }
        let choices: Vec<Choice> = plans.iter().map(|plan| plan.choice).collect();
        let chosen = choose(&plans);
        Ok(Plan { choices, ..plans.swap_remove(chosen) })
    }

    fn one(
        &self,
        machine: &Machine,
        base: BaseSizes,
        counts: &ParameterCounts,
        work: &Work,
        capacity: u32,
        recompute: Recompute,
    ) -> Plan {
        let memory = self.memory(machine, base, (work.largest, work.accumulates), recompute, work.steps);
        let targets = work.target_tokens as f64 / work.computed_tokens.max(1) as f64;
        let again = Again::of(&machine.kind, recompute);
        let passes = Passes::of(self.config, &self.adapted, again, work.mean_document, targets);
        let load = Load {
            work,
            passes,
            base,
            base_parameters: counts.base,
            trainable: counts.trainable,
            config: self.config,
            recompute,
        };
        let time = load.time(machine);
        let peak_bytes = memory.most();
        let usable_bytes = machine.usable_bytes();
        Plan {
            machine: machine.clone(),
            basis: Basis::of(&machine.kind),
            parameters: counts.clone(),
            work: work.clone(),
            choice: Choice { micro_batch_tokens: capacity, recompute, peak_bytes, step_seconds: time.step_seconds },
            choices: Vec::new(),
            fits: peak_bytes <= usable_bytes,
            memory,
            usable_bytes,
            operations: passes.operations(),
            time,
        }
    }

    /// The same job with other parameters.
    fn with<'b>(&self, plan: &'b LoraPlan, parameters: &'b Parameters, facts: &'b DataFacts<'b>) -> Planner<'b>
    where
        'a: 'b,
    {
        Planner::with_base(self.config, plan, parameters, facts, self.base.clone())
            .fixed(self.micro_batch_tokens, self.recompute)
    }

    /// Plans the same job with other parameters for a machine.
    fn plan_with(&self, parameters: &Parameters, machine: &Machine) -> Result<Plan> {
        let plan = lora::plan(self.config, &parameters.lora())?;
        if parameters.max_seq_length < self.parameters.max_seq_length {
            let facts = self.facts.cut(parameters.max_seq_length);
            return self.with(&plan, parameters, &facts).plan(machine);
        }
        self.with(&plan, parameters, self.facts).plan(machine)
    }
}

/// Of the plans that fit, the fastest; of those that take about as long, the smallest. Where none fits, the smallest.
fn choose(plans: &[Plan]) -> usize {
    let peak = |index: &usize| plans[*index].choice.peak_bytes;
    let seconds = |index: &usize| plans[*index].choice.step_seconds;
    let fitting: Vec<usize> = (0..plans.len()).filter(|&index| plans[index].fits).collect();
    let fastest = fitting.iter().map(seconds).fold(f64::INFINITY, f64::min);
    let good = fitting.into_iter().filter(|index| seconds(index) <= fastest * (1.0 + SAME_TIME));
    good.min_by_key(peak).or_else(|| (0..plans.len()).min_by_key(peak)).unwrap_or_default()
}
