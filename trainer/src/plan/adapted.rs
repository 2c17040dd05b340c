//! Which linears of which layer carry LoRA, in the form the rest of the plan asks for.

use std::collections::BTreeMap;

use crate::config::ModelConfig;
use crate::lora::LoraPlan;
use crate::weights::ExpertPath;

/// The adapters of one layer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LayerLora {
    /// Rank by the path below the layer, as in `self_attn.q_proj`.
    linears: BTreeMap<String, usize>,
    /// Sum of the ranks of all experts' gate, up and down, and the largest of them.
    expert_rank_sums: [u64; 3],
    most_expert_ranks: [u64; 3],
    /// Values of the flat parameter of the routed experts.
    pub(super) expert_values: u64,
}

/// The adapters of a model.
#[derive(Debug, Clone, Default)]
pub(super) struct Adapted {
    pub(super) layers: Vec<LayerLora>,
    /// Rank of the head's.
    pub(super) head: Option<usize>,
}

// === impl LayerLora ===

impl LayerLora {
    pub(super) fn rank(&self, path: &str) -> Option<usize> {
        self.linears.get(path).copied()
    }

    pub(super) fn has_experts(&self) -> bool {
        self.expert_values > 0
    }

    /// Mean rank of gate, up and down over all experts.
    pub(super) fn expert_ranks(&self, experts: usize) -> [f64; 3] {
        self.expert_rank_sums.map(|sum| sum as f64 / experts.max(1) as f64)
    }

    /// The largest rank of any expert's gate, up and down.
    pub(super) fn most_expert_ranks(&self) -> [u64; 3] {
        self.most_expert_ranks
    }

    pub(super) fn is_adapted(&self) -> bool {
        self.has_experts() || !self.linears.is_empty()
    }
}

// === impl Adapted ===

impl Adapted {
    pub(super) fn new(config: &ModelConfig, plan: &LoraPlan) -> Self {
        let mut adapted = Self { layers: vec![LayerLora::default(); config.layers.len()], head: None };
        for module in &plan.modules {
            let place = module.path.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
            let Some((layer, path)) =
                place.and_then(|(index, path)| Some((adapted.layers.get_mut(index.parse::<usize>().ok()?)?, path)))
            else {
                adapted.head = Some(module.rank);
                continue;
            };
            match ExpertPath::parse(&module.path) {
                Some(expert) => {
                    let most = &mut layer.most_expert_ranks[expert.projection];
                    *most = (*most).max(module.rank as u64);
                    layer.expert_rank_sums[expert.projection] += module.rank as u64;
                    layer.expert_values += (module.rank * (module.inputs + module.outputs)) as u64;
                }
                None => drop(layer.linears.insert(path.to_owned(), module.rank)),
            }
        }
        adapted
    }

    /// Layers before the first one that learns keep nothing and are not walked back.
    pub(super) fn first(&self) -> usize {
        self.layers.iter().position(LayerLora::is_adapted).unwrap_or(self.layers.len())
    }
}
