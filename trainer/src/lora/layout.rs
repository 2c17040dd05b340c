//! Which tensors stand in an adapter's file in either dialect, and what PEFT must be told to expect exactly those.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use super::fused::{self, Parts};
use super::peft::Target;
use super::{AdapterTensors, LoraPlan, Matrix, ModuleLora, cover};
use crate::config::ModelConfig;
use crate::weights::{ExpertPath, PROJECTIONS, TensorSpec, expected_tensors};
use crate::{Error, Result};

/// What PEFT puts before every module path.
pub(super) const PREFIX: &str = "base_model.model.";

/// A tensor to write.
pub(super) struct Entry<'a> {
    pub(super) key: String,
    pub(super) shape: [usize; 2],
    source: Source<'a>,
}

/// Where its values come from; joined ones are made only while they are written.
enum Source<'a> {
    Matrix(&'a Matrix),
    JoinedA(Vec<Parts<'a>>),
    JoinedB(Vec<Parts<'a>>),
}

// === impl Entry ===

impl Entry<'_> {
    pub(super) fn values(&self) -> Cow<'_, [f32]> {
        match &self.source {
            Source::Matrix(matrix) => Cow::Borrowed(&matrix.values),
            Source::JoinedA(experts) => Cow::Owned(fused::join_a(experts)),
            Source::JoinedB(experts) => Cow::Owned(fused::join_b(experts)),
        }
    }
}

/// Everything that a dialect decides.
#[derive(Default)]
pub(super) struct Layout<'a> {
    pub(super) entries: Vec<Entry<'a>>,
    pub(super) target_modules: Vec<String>,
    pub(super) target_parameters: Vec<String>,
    pub(super) targets: Vec<Target>,
}

// === impl Layout ===

impl<'a> Layout<'a> {
    /// A pair of matrices for each adapted linear.
    pub(super) fn per_expert(config: &ModelConfig, plan: &LoraPlan, tensors: &'a AdapterTensors) -> Self {
        let expected = expected_tensors(config);
        let universe = expected.iter().filter_map(TensorSpec::module);
        let chosen: Vec<&str> = plan.modules.iter().map(|module| module.path.as_str()).collect();
        let mut layout = Self { target_modules: cover::suffixes(&chosen, universe), ..Self::default() };
        for module in &plan.modules {
            layout.module(module, module.path.clone(), tensors);
        }
        layout
    }

    /// Routed experts as two parameters per layer.
    pub(super) fn fused(config: &ModelConfig, plan: &LoraPlan, tensors: &'a AdapterTensors) -> Result<Self> {
        let mut layout = Self::default();
        let mut experts = BTreeMap::<&str, ExpertModules>::new();
        for module in &plan.modules {
            match ExpertPath::parse(&module.path) {
                Some(ExpertPath { list, expert, projection }) => {
                    experts.entry(list).or_default().insert((expert, projection), module);
                }
                None => layout.module(module, fused::target_name(&module.path), tensors),
            }
        }
        for (list, modules) in experts {
            let fuse = |projections: Range<usize>| join(config.moe.experts, list, &modules, projections, plan, tensors);
            let (gate_up, down) = (fuse(fused::OF_GATE_UP)?, fuse(fused::OF_DOWN)?);
            let inner = if down.is_some() { fused::inner_wrapper(list) } else { list.to_owned() };
            layout.joined(inner, fused::parameter(list, fused::GATE_UP), gate_up);
            layout.joined(list.to_owned(), fused::parameter(list, fused::DOWN), down);
        }
        let names = fused::Names::of(config, &expected_tensors(config));
        layout.target_modules = layout.cover(&names.modules);
        layout.target_parameters = layout.cover(&names.parameters);
        Ok(layout)
    }

    fn cover(&self, universe: &[String]) -> Vec<String> {
        let known: HashSet<&str> = universe.iter().map(String::as_str).collect();
        let chosen: Vec<&str> =
            self.targets.iter().map(|target| &*target.name).filter(|name| known.contains(name)).collect();
        cover::suffixes(&chosen, universe.iter().map(String::as_str))
    }

    fn module(&mut self, module: &ModuleLora, name: String, tensors: &'a AdapterTensors) {
        let adapter = &tensors[&module.path];
        self.entry(&module.path, "lora_A", [module.rank, module.inputs], Source::Matrix(&adapter.a));
        self.entry(&module.path, "lora_B", [module.outputs, module.rank], Source::Matrix(&adapter.b));
        self.targets.push(Target { name, rank: module.rank, alpha: module.alpha });
    }

    fn joined(&mut self, wrapper: String, name: String, joined: Option<Joined<'a>>) {
        let Some(Joined { experts, rank, alpha }) = joined else { return };
        let inputs = experts[0][0].a.columns;
        let outputs = experts[0].iter().map(|part| part.b.rows).sum();
        let all_ranks = rank * experts.len();
        self.entry(&wrapper, "lora_A", [all_ranks, inputs], Source::JoinedA(experts.clone()));
        self.entry(&wrapper, "lora_B", [outputs, all_ranks], Source::JoinedB(experts));
        self.targets.push(Target { name, rank, alpha });
    }

    fn entry(&mut self, path: &str, matrix: &str, shape: [usize; 2], source: Source<'a>) {
        self.entries.push(Entry { key: key(path, matrix), shape, source });
    }
}

/// The key of a matrix in the file.
pub(super) fn key(path: &str, matrix: &str) -> String {
    format!("{PREFIX}{path}.{matrix}.weight")
}

/// One fused parameter of a layer: the adapters of all its experts, and the rank and alpha they have together.
struct Joined<'a> {
    experts: Vec<Parts<'a>>,
    rank: usize,
    alpha: f64,
}

/// The adapted modules of a layer's experts, by expert and projection.
type ExpertModules<'a> = BTreeMap<(usize, usize), &'a ModuleLora>;

/// The experts' adapters of these projections; nothing where none is adapted, an error where only some are.
fn join<'a>(
    count: usize,
    list: &str,
    modules: &ExpertModules,
    projections: Range<usize>,
    plan: &LoraPlan,
    tensors: &'a AdapterTensors,
) -> Result<Option<Joined<'a>>> {
    let wanted = (0..count).flat_map(|expert| projections.clone().map(move |projection| (expert, projection)));
    let found: Vec<&ModuleLora> = wanted.filter_map(|place| modules.get(&place).copied()).collect();
    let Some(first) = found.first() else { return Ok(None) };
    let alike = found.iter().all(|module| module.rank == first.rank && module.alpha == first.alpha);
    if found.len() != count * projections.len() || !alike {
        return Err(Error::Invalid(format!(
            "adapter dialect fused: {list}: transformers 5 holds {} of all experts as one parameter, so all \
             or none of them must be adapted, with one rank and alpha; found {} of {} adapted{}",
            PROJECTIONS[projections.clone()].join(" and "),
            found.len(),
            count * projections.len(),
            if alike { "" } else { ", with different ranks or alphas" }
        )));
    }
    // Parts multiply the rank; alpha grows so that the scale stays what was trained.
    let parts = projections.len() as f64;
    let growth = if plan.options.use_rslora { parts.sqrt() } else { parts };
    let adapters = found.chunks_exact(projections.len());
    let experts = adapters.map(|parts| parts.iter().map(|module| &tensors[&module.path]).collect()).collect();
    Ok(Some(Joined { experts, rank: first.rank * projections.len(), alpha: first.alpha * growth }))
}
