//! Reading an adapter back, of either dialect, to continue from it.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::cover::ends;
use super::file::{CONFIG_FILE, TENSORS_FILE};
use super::fused::{self, DOWN, GATE_UP, OF_DOWN, OF_GATE_UP};
use super::layout::{PREFIX, key};
use super::peft::{PeftConfig, Target};
use super::targets::HEAD;
use super::{Adapter, AdapterTensors, Linear, LoraOptions, LoraPlan, Matrix, TargetSet, cover};
use crate::config::ModelConfig;
use crate::weights::{ExpertPath, SafetensorsFile, Stored, TensorSpec, expected_tensors, floats, is_routed_expert};
use crate::{Error, Result};

/// Reads the adapter in `dir`, which must be one for the model of `config`.
///
/// Ranks and scales are those of its description, checked against its tensors; every tensor that is missing, unexpected,
/// not finite, or of a wrong shape or type is named in one error.
pub fn read(dir: &Path, config: &ModelConfig) -> Result<(LoraPlan, AdapterTensors)> {
    let path = dir.join(CONFIG_FILE);
    let description = PeftConfig::read(&path)?;
    let tensors = expected_tensors(config);
    let pairs = pairs(config, &tensors, &description);
    if pairs.is_empty() {
        return Err(Error::file(path, "target_modules and target_parameters match nothing in this model"));
    }
    let found = read_pairs(dir.join(TENSORS_FILE), config, pairs)?;
    Ok(assemble(&tensors, &description, split(config, description.use_rslora, found)))
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
    /// Gate and up of all experts of the list at this path.
    GateUp(String),
    /// Down of all experts of the list at this path.
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
fn pairs(config: &ModelConfig, tensors: &[TensorSpec], description: &PeftConfig) -> Vec<Pair> {
    let is_fused = !description.target_parameters.is_empty();
    let is_target = |parameter: &str| ends(parameter).any(|end| description.target_parameters.contains(end));
    let mut pairs = Vec::new();
    for Linear { path, inputs, outputs } in Linear::among(tensors) {
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
    for list in fused::expert_lists(config) {
        let [gate_up, down] = [GATE_UP, DOWN].map(|name| fused::parameter(&list, name));
        let inner = if is_target(&down) { fused::inner_wrapper(&list) } else { list.clone() };
        for (name, path, inputs, outputs, holds) in [
            (gate_up, inner, hidden, 2 * width, Holds::GateUp(list.clone())),
            (down, list.clone(), width, hidden, Holds::Down(list)),
        ] {
            if is_target(&name) {
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
            Holds::Down(list) => {
                for expert in 0..experts {
                    let path = ExpertPath { list: &list, expert, projection: OF_DOWN.start };
                    modules.insert(path.to_string(), (fused::expert(&adapter, experts, expert), alpha));
                }
            }
            Holds::GateUp(list) => {
                // Half the rank at the same scale.
                let shrink = match (halves, use_rslora) {
                    (false, _) => 1.0,
                    (true, false) => 2.0,
                    (true, true) => std::f64::consts::SQRT_2,
                };
                for expert in 0..experts {
                    let pair = fused::split_gate_up(&fused::expert(&adapter, experts, expert), halves);
                    for (projection, adapter) in OF_GATE_UP.zip(pair) {
                        let path = ExpertPath { list: &list, expert, projection };
                        modules.insert(path.to_string(), (adapter, alpha / shrink));
                    }
                }
            }
        }
    }
    modules
}

/// The plan of these adapters, in the order of the model's modules.
fn assemble(
    expected: &[TensorSpec],
    description: &PeftConfig,
    mut found: HashMap<String, (Adapter, f64)>,
) -> (LoraPlan, AdapterTensors) {
    let mut modules = Vec::new();
    let mut tensors = AdapterTensors::new();
    for linear in Linear::among(expected) {
        if let Some((adapter, alpha)) = found.remove(&linear.path) {
            tensors.insert(linear.path.clone(), adapter);
            let rank = tensors[&linear.path].a.rows;
            modules.push(linear.adapted(rank, alpha, description.use_rslora));
        }
    }
    let chosen: Vec<&str> = modules.iter().map(|module| module.path.as_str()).collect();
    let targets = cover::suffixes(&chosen, expected.iter().filter_map(TensorSpec::module));
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
