//! Which linears are adapted.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::Linear;
use super::cover::ends;
use crate::config::ModelConfig;
use crate::weights::{PROJECTIONS, TensorSpec, expected_tensors, is_routed_expert};
use crate::{Error, Result};

/// PEFT's word for every linear except the head.
pub(super) const ALL_LINEAR: &str = "all-linear";
/// The most names a list may have; more than the linears of any model there is.
const MAX_NAMES: usize = 1 << 17;
/// The path of the head.
pub(super) const HEAD: &str = "lm_head";
/// The projections of softmax attention.
const ATTENTION: [&str; 4] = ["q_proj", "k_proj", "v_proj", "o_proj"];

/// A set of linears to adapt; in JSON the name of a set or a list of module names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum TargetSet {
    /// Attention (q k v o), the large projections of DeltaNet (`in_proj_qkvz`, `out_proj`) and the MLP every token passes:
    /// the shared expert, or the dense MLP of a layer that has no experts.
    Default,
    /// The seven names of dense models (`q_proj k_proj v_proj o_proj gate_proj up_proj down_proj`), so all experts too.
    Classic,
    /// [`TargetSet::Default`] and the routed experts.
    All,
    /// [`TargetSet::Default`] without `in_proj_*`, which inference servers may slice wrongly.
    Servable,
    /// The projections of softmax attention.
    Attention,
    /// Modules by name, with PEFT's meaning: a whole path or the end of one, at a dot. The single entry `all-linear`
    /// stands for every linear except the head.
    Named(Vec<String>),
}

/// [`TargetSet`] as JSON has it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Set(String),
    Names(Vec<String>),
}

const SETS: [(&str, TargetSet); 5] = [
    ("default", TargetSet::Default),
    ("classic", TargetSet::Classic),
    ("all", TargetSet::All),
    ("servable", TargetSet::Servable),
    ("attention", TargetSet::Attention),
];

impl TryFrom<Written> for TargetSet {
    type Error = String;

    fn try_from(written: Written) -> std::result::Result<Self, String> {
        match written {
            Written::Names(names) => Ok(Self::Named(names)),
            Written::Set(name) if name == ALL_LINEAR => Ok(Self::Named(vec![name])),
            Written::Set(name) => match SETS.into_iter().find(|(known, _)| *known == name) {
                Some((_, set)) => Ok(set),
                None => {
                    let known = SETS.map(|(known, _)| known).join(", ");
                    Err(format!("found {name:?}, expected {known}, {ALL_LINEAR} or a list of module names"))
                }
            },
        }
    }
}

impl From<TargetSet> for Written {
    fn from(set: TargetSet) -> Self {
        match set {
            TargetSet::Named(names) => Self::Names(names),
            set => {
                let name = SETS.into_iter().find(|(_, known)| *known == set).map(|(name, _)| name);
                Self::Set(name.unwrap_or_default().to_owned())
            }
        }
    }
}

/// The module paths that are adapted, layer by layer in the order of transformers' modules.
pub fn resolve(config: &ModelConfig, targets: &TargetSet) -> Result<Vec<String>> {
    Ok(resolve_linears(config, targets)?.into_iter().map(|linear| linear.path).collect())
}

pub(super) fn resolve_linears(config: &ModelConfig, targets: &TargetSet) -> Result<Vec<Linear>> {
    let tensors = expected_tensors(config);
    let linears = Linear::among(&tensors);
    if let TargetSet::Named(names) = targets {
        return named(linears, names, &tensors);
    }
    let chosen = |path: &str| {
        let leaf = leaf(path);
        let attention = ATTENTION.contains(&leaf);
        let swiglu = PROJECTIONS.contains(&leaf);
        // `swiglu` without routed experts is the shared expert or a dense MLP.
        let default = attention || ["in_proj_qkvz", "out_proj"].contains(&leaf) || (swiglu && !is_routed_expert(path));
        match targets {
            TargetSet::Default => default,
            TargetSet::Classic => attention || swiglu,
            TargetSet::All => default || swiglu,
            TargetSet::Servable => default && leaf != "in_proj_qkvz",
            TargetSet::Attention => attention,
            TargetSet::Named(_) => false,
        }
    };
    let linears: Vec<_> = linears.into_iter().filter(|linear| chosen(&linear.path)).collect();
    if linears.is_empty() {
        return Err(Error::Invalid(format!("targets: {targets:?} adapts nothing in this model")));
    }
    Ok(linears)
}

fn named(linears: Vec<Linear>, names: &[String], tensors: &[TensorSpec]) -> Result<Vec<Linear>> {
    if names.is_empty() || names.len() > MAX_NAMES {
        let (count, known) = (names.len(), leaf_names(&linears));
        return Err(Error::Invalid(format!("targets: found {count} names, expected 1 to {MAX_NAMES} of: {known}")));
    }
    if let [name] = names
        && name == ALL_LINEAR
    {
        return Ok(linears.into_iter().filter(|linear| linear.path != HEAD).collect());
    }
    let known: HashSet<&str> = linears.iter().flat_map(|linear| ends(&linear.path)).collect();
    let unknown: Vec<&String> = names.iter().filter(|name| !known.contains(name.as_str())).collect();
    if !unknown.is_empty() {
        let problems = why_unknown(tensors, &unknown, &leaf_names(&linears));
        return Err(Error::Invalid(crate::error::listed(&problems)));
    }
    let names: HashSet<&str> = names.iter().map(String::as_str).collect();
    Ok(linears.into_iter().filter(|linear| ends(&linear.path).any(|end| names.contains(end))).collect())
}

/// Only linears carry LoRA; a name may still be that of another module, or of a container of modules.
fn why_unknown(tensors: &[TensorSpec], unknown: &[&String], linears: &str) -> Vec<String> {
    let modules = tensors.iter().flat_map(|tensor| tensor.name.match_indices('.').map(|(end, _)| &tensor.name[..end]));
    let others: HashSet<&str> = modules.flat_map(ends).collect();
    let why = |name: &&String| match others.contains(name.as_str()) {
        true => format!("targets: {name:?} is not a linear; the linears are: {linears}"),
        false => format!("targets: {name:?} matches no module of this model; its linears are: {linears}"),
    };
    unknown.iter().map(why).collect()
}

fn leaf(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

fn leaf_names(linears: &[Linear]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for linear in linears {
        let name = leaf(&linear.path);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}
