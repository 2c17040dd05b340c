//! Reading an adapter back, of either dialect, to continue from it.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::cover::ends;
use super::file::{CONFIG_FILE, TENSORS_FILE};
use super::fused::{self, DOWN, GATE_UP, INNER, OUTER};
use super::layout::{PREFIX, key};
use super::peft::{PeftConfig, Target};
use super::targets::HEAD;
use super::{
    Adapter, AdapterTensors, EXPERTS, Linear, LoraOptions, LoraPlan, Matrix, TargetSet, cover, is_routed_expert,
};
use crate::config::ModelConfig;
use crate::weights::{SafetensorsFile, Stored, expected_tensors, floats};
use crate::{Error, Result};

/// Reads the adapter in `dir`, which must be one for the model of `config`.
///
/// Ranks and scales are those of its description, checked against its tensors; every tensor that is missing, unexpected,
/// not finite, or of a wrong shape or type is named in one error.
pub fn read(dir: &Path, config: &ModelConfig) -> Result<(LoraPlan, AdapterTensors)> {
    let path = dir.join(CONFIG_FILE);
    let description = PeftConfig::read(&path)?;
    let pairs = pairs(config, &description);
    if pairs.is_empty() {
        return Err(Error::file(path, "target_modules and target_parameters match nothing in this model"));
    }
    let found = read_pairs(dir.join(TENSORS_FILE), config, pairs)?;
    Ok(assemble(config, &description, split(config, description.use_rslora, found)))
}

/// A pair of matrices that the file must hold.
struct Pair {
    /// Path in the file, between PEFT's prefix and `lora_A`.
    path: String,
    target: Target,
    inputs: usize,
    outputs: usize,
    holds: Holds,
}

/// What a pair adapts.
enum Holds {
    Linear,
    /// Gate and up of all experts of the layer at this path.
    GateUp(String),
    /// Down of all experts of the layer at this path.
    Down(String),
}

// === impl Pair ===

impl Pair {
    fn shapes(&self, config: &ModelConfig) -> [(&'static str, [usize; 2]); 2] {
        let experts = if matches!(self.holds, Holds::Linear) { 1 } else { config.moe.experts };
        let rank = self.target.rank * experts;
        [("lora_A", [rank, self.inputs]), ("lora_B", [self.outputs, rank])]
    }
}

/// Everything the description adapts in this model.
fn pairs(config: &ModelConfig, description: &PeftConfig) -> Vec<Pair> {
    let is_fused = !description.target_parameters.is_empty();
    let is_target = |parameter: &str| ends(parameter).any(|end| description.target_parameters.contains(end));
    let mut pairs = Vec::new();
    for Linear { path, inputs, outputs } in Linear::all(config) {
        if is_fused && is_routed_expert(&path) {
            continue;
        }
        let parameter = format!("{path}.weight");
        let target = match () {
            () if description.target_modules.contain(&path) => description.target(&path),
            () if is_target(&parameter) => description.target(&parameter),
            () => continue,
        };
        pairs.push(Pair { path, target, inputs, outputs, holds: Holds::Linear });
    }
    if !is_fused {
        return pairs;
    }
    let (hidden, width) = (config.hidden_size, config.moe.intermediate_size);
    for layer in fused::sparse_layers(config) {
        let [gate_up, down] = [GATE_UP, DOWN].map(|parameter| format!("{layer}{EXPERTS}{parameter}"));
        let inner = if is_target(&down) { INNER } else { OUTER };
        for (name, wrapper, inputs, outputs, holds) in [
            (gate_up, inner, hidden, 2 * width, Holds::GateUp(layer.clone())),
            (down, OUTER, width, hidden, Holds::Down(layer.clone())),
        ] {
            if is_target(&name) {
                let path = format!("{layer}.{wrapper}");
                pairs.push(Pair { path, target: description.target(&name), inputs, outputs, holds });
            }
        }
    }
    pairs
}

/// Every pair with its values, in order.
fn read_pairs(path: std::path::PathBuf, config: &ModelConfig, pairs: Vec<Pair>) -> Result<Vec<(Pair, Adapter)>> {
    let file = SafetensorsFile::open(path)?;
    let mut stored: HashMap<String, Stored> = file.tensors().collect();
    let mut problems = Vec::new();
    let mut found = Vec::new();
    for pair in pairs {
        let [a, b] = pair.shapes(config).map(|(matrix, shape)| {
            let key = key(&pair.path, matrix);
            match stored.remove(&key) {
                Some(stored) => read_matrix(&file, &key, &stored, shape),
                None => Err(format!("{key}: missing, expected {shape:?}")),
            }
        });
        match (a, b) {
            (Ok(a), Ok(b)) => found.push((pair, Adapter { a, b })),
            (a, b) => problems.extend([a.err(), b.err()].into_iter().flatten()),
        }
    }
    if found.iter().any(|(pair, _)| pair.path == HEAD) {
        // PEFT saves the frozen weight beside the adapter of a head.
        stored.remove(&format!("{PREFIX}{HEAD}.base_layer.weight"));
    }
    let mut extra: Vec<_> = stored.into_keys().collect();
    extra.sort();
    problems.extend(extra.iter().map(|key| format!("{key}: not expected by {CONFIG_FILE} for this model")));
    if problems.is_empty() { Ok(found) } else { Err(Error::problems(file.path(), &problems)) }
}

fn read_matrix(
    file: &SafetensorsFile,
    key: &str,
    stored: &Stored,
    shape: [usize; 2],
) -> std::result::Result<Matrix, String> {
    if stored.shape != shape {
        return Err(format!("{key}: found shape {:?}, expected {shape:?}", stored.shape));
    }
    let values = floats(file, key, stored).map_err(|error| match error {
        // The file is named once, for all problems together.
        Error::File { reason, .. } => reason,
        other => other.to_string(),
    })?;
    Ok(Matrix { rows: shape[0], columns: shape[1], values })
}

/// Adapters with their alpha, by module path; those of fused experts taken apart.
fn split(config: &ModelConfig, use_rslora: bool, found: Vec<(Pair, Adapter)>) -> HashMap<String, (Adapter, f64)> {
    let experts = config.moe.experts;
    // One answer for the whole file, so that all experts have one rank.
    let halves = found.iter().all(|(pair, adapter)| match pair.holds {
        Holds::GateUp(_) => fused::is_block_diagonal(&adapter.b, pair.target.rank),
        _ => true,
    });
    let mut modules = HashMap::new();
    for (pair, adapter) in found {
        let alpha = pair.target.alpha;
        match pair.holds {
            Holds::Linear => {
                modules.insert(pair.path, (adapter, alpha));
            }
            Holds::Down(layer) => {
                for expert in 0..experts {
                    let adapter = fused::expert(&adapter, experts, expert);
                    modules.insert(format!("{layer}{EXPERTS}{expert}.down_proj"), (adapter, alpha));
                }
            }
            Holds::GateUp(layer) => {
                // Half the rank at the same scale.
                let shrink = match (halves, use_rslora) {
                    (false, _) => 1.0,
                    (true, false) => 2.0,
                    (true, true) => std::f64::consts::SQRT_2,
                };
                for expert in 0..experts {
                    let [gate, up] = fused::split_gate_up(&fused::expert(&adapter, experts, expert), halves);
                    modules.insert(format!("{layer}{EXPERTS}{expert}.gate_proj"), (gate, alpha / shrink));
                    modules.insert(format!("{layer}{EXPERTS}{expert}.up_proj"), (up, alpha / shrink));
                }
            }
        }
    }
    modules
}

/// The plan of these adapters, in the order of the model's modules.
fn assemble(
    config: &ModelConfig,
    description: &PeftConfig,
    mut found: HashMap<String, (Adapter, f64)>,
) -> (LoraPlan, AdapterTensors) {
    let mut modules = Vec::new();
    let mut tensors = AdapterTensors::new();
    for linear in Linear::all(config) {
        if let Some((adapter, alpha)) = found.remove(&linear.path) {
            tensors.insert(linear.path.clone(), adapter);
            let rank = tensors[&linear.path].a.rows;
            modules.push(linear.adapted(rank, alpha, description.use_rslora));
        }
    }
    let chosen: Vec<&str> = modules.iter().map(|module| module.path.as_str()).collect();
    let names = expected_tensors(config);
    let targets = cover::suffixes(&chosen, names.iter().filter_map(|tensor| tensor.name.strip_suffix(".weight")));
    let expert_ranks: HashSet<usize> =
        modules.iter().filter(|module| is_routed_expert(&module.path)).map(|module| module.rank).collect();
    let options = LoraOptions {
        rank: description.rank,
        alpha: description.alpha,
        dropout: description.dropout,
        use_rslora: description.use_rslora,
        targets: TargetSet::Named(targets),
        expert_rank: expert_ranks.iter().next().copied().filter(|_| expert_ranks.len() == 1),
    };
    (LoraPlan { options, modules }, tensors)
}
