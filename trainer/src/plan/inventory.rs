//! What is there whatever the batch: the base's tensors, the adapters, their file, the optimiser's moments.

use std::collections::{BTreeMap, HashMap};

use brightrun_kernels::adamw::MOMENT_BLOCK;
use brightrun_kernels::nf4::{BLOCK, NESTED_BLOCK};
use serde::Serialize;

use super::gpu::base_bytes;
use super::machine::MachineKind;
use crate::config::{CheckpointFormat, ModelConfig};
use crate::lora::{AdapterDtype, Dialect, LoraPlan, ModuleLora};
use crate::optim::OptimizerKind;
use crate::run::Parameters;
use crate::weights::{BasePrecision, ExpertPath, TensorKind, expected_tensors, is_routed_expert};

/// What a part of the model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    /// The token embedding.
    Embedding,
    /// The projections of softmax attention.
    Attention,
    /// Those of Gated DeltaNet.
    DeltaNet,
    /// Routers and the gates of shared experts.
    Router,
    /// Routed experts.
    RoutedExperts,
    /// Shared experts.
    SharedExperts,
    /// Feed-forward parts of layers without experts.
    DenseMlp,
    /// The output projection.
    Head,
    /// Norms, biases, convolutions, decays.
    Other,
}

/// The parameters of one kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartCount {
    /// Which kind.
    pub kind: PartKind,
    /// Tensors of the base.
    pub tensors: u64,
    /// Their values.
    pub base: u64,
    /// What they take in memory.
    pub base_bytes: u64,
    /// Values that are trained beside them.
    pub trainable: u64,
}

/// How many parameters there are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ParameterCounts {
    /// Values of the frozen base.
    pub base: u64,
    /// Values that are trained.
    pub trainable: u64,
    /// Linears with an adapter.
    pub adapted_linears: u64,
    /// Both by what they belong to.
    pub by_kind: Vec<PartCount>,
    /// Size of `adapter_model.safetensors`.
    pub adapter_file_bytes: u64,
}

/// Tensors that are alike: of one kind, shape and name.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) kind: PartKind,
    pub(super) count: u64,
    /// Of one of them.
    pub(super) values: u64,
    /// The module of one of them, where they are weights of linears.
    pub(super) linear: Option<String>,
}

/// The tensors of a base model, those that are loaded first in front; nothing of it depends on the job.
#[derive(Debug, Clone)]
pub(super) struct Base {
    groups: Vec<Group>,
}

/// What is trained.
#[derive(Debug, Clone)]
pub(super) struct Trained {
    /// Values by what they belong to.
    by_kind: BTreeMap<PartKind, u64>,
    /// All values.
    pub(super) values: u64,
    linears: u64,
    file_bytes: u64,
    /// What the optimiser keeps of them.
    pub(super) moments: u64,
}

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BaseSizes {
    pub(super) all: u64,
    /// What quantised weights have as bytes; they are read and decoded in every pass.
    pub(super) quantised: u64,
    /// The most that is in memory while they are read, those read so far included.
    pub(super) loading: u64,
}

// === impl PartKind ===

impl PartKind {
    /// Of a module of the official names, or of a tensor that is no linear's weight.
    fn of(path: &str) -> Self {
        let has = |part: &str| path.contains(part);
        let leaf = path.rsplit('.').next().unwrap_or(path);
        match path {
            _ if has(".mlp.experts.") => Self::RoutedExperts,
            _ if has(".mlp.shared_expert.") => Self::SharedExperts,
            _ if has(".mlp.") && ["gate", "shared_expert_gate"].contains(&leaf) => Self::Router,
            _ if has(".mlp.") => Self::DenseMlp,
            _ if has(".self_attn.") && leaf.ends_with("_proj") => Self::Attention,
            _ if has(".linear_attn.") && (leaf.starts_with("in_proj") || leaf == "out_proj") => Self::DeltaNet,
            _ if path.starts_with("model.embed_tokens") => Self::Embedding,
            _ if path.starts_with("lm_head") => Self::Head,
            _ => Self::Other,
        }
    }

    /// The name for people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::DeltaNet => "delta net",
            Self::Router => "routers, gates",
            Self::RoutedExperts => "routed experts",
            Self::SharedExperts => "shared experts",
            Self::DenseMlp => "dense mlp",
            Self::Head => "head",
            Self::Other => "norms, others",
        }
    }
}

/// Bytes of a matrix in NF4 with double quantisation: half a byte a value, one code for 64 of them, one scale for 256 codes.
fn nf4_bytes(values: u64) -> u64 {
    let blocks = values.div_ceil(BLOCK as u64);
    values.div_ceil(2) + blocks + 4 * blocks.div_ceil(NESTED_BLOCK as u64)
}

// === impl Group ===

impl Group {
    /// What all of them take, and whether they are quantised.
    fn bytes(&self, config: &ModelConfig, precision: &BasePrecision, machine: &MachineKind) -> (u64, bool) {
        // What bitsandbytes quantised stays so whatever is asked for; by default that is what we quantise.
        let nf4 = BasePrecision::nf4();
        let precision = if config.checkpoint == CheckpointFormat::Bnb4bit { &nf4 } else { precision };
        let quantised = self.linear.as_deref().and_then(|path| precision.quantises(path));
        let bytes = match (machine, quantised) {
            (MachineKind::Gpu { .. }, _) => base_bytes(self, config.moe.experts as u64, quantised),
            (MachineKind::Cpu { .. }, Some(_)) => self.count * nf4_bytes(self.values),
            (MachineKind::Cpu { .. }, None) => self.count * self.values * 4,
        };
        (bytes, quantised.is_some())
    }
}

// === impl Base ===

impl Base {
    pub(super) fn new(config: &ModelConfig) -> Self {
        let mut known = HashMap::<(PartKind, u64, String), usize>::new();
        let mut groups: Vec<Group> = Vec::new();
        for tensor in expected_tensors(config) {
            let values = tensor.shape.iter().map(|side| *side as u64).product();
            let linear = tensor.module().filter(|_| tensor.kind == TensorKind::Linear);
            let kind = PartKind::of(linear.unwrap_or(&tensor.name));
            let leaf = linear.map_or("", |path| path.rsplit('.').next().unwrap_or(path));
            let place = *known.entry((kind, values, leaf.to_owned())).or_insert_with(|| {
                groups.push(Group { kind, count: 0, values, linear: linear.map(str::to_owned) });
                groups.len() - 1
            });
            groups[place].count += 1;
        }
        // The model reads its embedding and its head before its layers.
        groups.sort_by_key(|group| !matches!(group.kind, PartKind::Embedding | PartKind::Head));
        Self { groups }
    }

    pub(super) fn sizes(&self, config: &ModelConfig, precision: &BasePrecision, machine: &MachineKind) -> BaseSizes {
        let mut sizes = BaseSizes { all: 0, quantised: 0, loading: 0 };
        for group in &self.groups {
            let (all, quantised) = group.bytes(config, precision, machine);
            // The last one is read as `f32`, then either quantised (its codes beside it) or copied to where it is shared; a card
            // gets it as it stays.
            let beside = if matches!(machine, MachineKind::Cpu { .. }) { 4 * group.values } else { 0 };
            sizes.loading = sizes.loading.max(sizes.all + all + beside);
            sizes.all += all;
            sizes.quantised += if quantised { all } else { 0 };
        }
        sizes
    }

    /// Parameters of base and adapters.
    pub(super) fn counts(
        &self,
        config: &ModelConfig,
        precision: &BasePrecision,
        trained: &Trained,
        machine: &MachineKind,
    ) -> ParameterCounts {
        let mut by_kind = BTreeMap::<PartKind, PartCount>::new();
        for group in &self.groups {
            let kind = group.kind;
            let trainable = trained.by_kind.get(&kind).copied().unwrap_or_default();
            let empty = PartCount { kind, tensors: 0, base: 0, base_bytes: 0, trainable };
            let part = by_kind.entry(kind).or_insert(empty);
            part.tensors += group.count;
            part.base += group.count * group.values;
            part.base_bytes += group.bytes(config, precision, machine).0;
        }
        ParameterCounts {
            base: by_kind.values().map(|part| part.base).sum(),
            trainable: trained.values,
            adapted_linears: trained.linears,
            adapter_file_bytes: trained.file_bytes,
            by_kind: by_kind.into_values().collect(),
        }
    }
}

// === impl Trained ===

impl Trained {
    pub(super) fn new(plan: &LoraPlan, parameters: &Parameters) -> Self {
        let mut by_kind = BTreeMap::new();
        for module in &plan.modules {
            *by_kind.entry(PartKind::of(&module.path)).or_default() += trainable(module);
        }
        Self {
            values: by_kind.values().sum(),
            by_kind,
            linears: plan.modules.len() as u64,
            file_bytes: file_bytes(plan, parameters),
            moments: moment_bytes(plan, parameters),
        }
    }
}

fn trainable(module: &ModuleLora) -> u64 {
    module.rank as u64 * (module.inputs + module.outputs) as u64
}

/// The matrices of every pair, with what the header says of each: prefix, suffix, type, shape, place.
fn file_bytes(plan: &LoraPlan, parameters: &Parameters) -> u64 {
    const HEADER_ENTRY: u64 = 110;
    let width = match parameters.adapter_dtype {
        AdapterDtype::Bf16 => 2,
        AdapterDtype::F32 => 4,
    };
    let fused = parameters.adapter_dialect == Dialect::Fused;
    let bytes = |module: &ModuleLora| {
        let values = trainable(module);
        if !fused || !is_routed_expert(&module.path) {
            return values * width + 2 * (module.path.len() as u64 + HEADER_ENTRY);
        }
        // Gate and up share one pair of twice the rank, in whose `B` half of the values are zero.
        let zeros = if module.path.ends_with("down_proj") { 0 } else { (module.rank * module.outputs) as u64 };
        (values + zeros) * width
    };
    plan.modules.iter().map(bytes).sum()
}

/// The moments of both kinds of optimiser: two `f32` a value, or two bytes and two scales for 256 of them. The 8-bit blocks
/// begin anew with every matrix; with every routed expert as long as all its matrices have one learning rate.
fn moment_bytes(plan: &LoraPlan, parameters: &Parameters) -> u64 {
    let values: u64 = plan.modules.iter().map(trainable).sum();
    if parameters.optimizer == OptimizerKind::AdamW {
        return 8 * values;
    }
    let blocks_of = |values: usize| values.div_ceil(MOMENT_BLOCK) as u64;
    let mut blocks = 0;
    let mut experts = HashMap::<(&str, usize), usize>::new();
    for module in &plan.modules {
        let (a, b) = (module.rank * module.inputs, module.outputs * module.rank);
        match ExpertPath::parse(&module.path) {
            Some(place) if parameters.loraplus_lr_ratio == 1.0 => {
                *experts.entry((place.list, place.expert)).or_default() += a + b;
            }
            _ => blocks += blocks_of(a) + blocks_of(b),
        }
    }
    blocks += experts.into_values().map(blocks_of).sum::<u64>();
    2 * values + 8 * blocks
}
