//! The trainable parameters of a run: one pair of matrices per adapted linear, and one flat parameter per layer for
//! all its routed experts.

mod inspect;
mod matrices;

use std::collections::BTreeMap;
use std::sync::Arc;

use brightrun_kernels::dropout::splitmix;
use brightrun_kernels::moe::{ExpertLoraLayout, ExpertProjection, ExpertRanks};
use brightrun_kernels::op::{update_in_place, with_slice};
use candle_core::{Device, Tensor, Var};
use rayon::prelude::*;

use crate::config::ModelConfig;
use crate::lora::{Adapter, AdapterTensors, LoraPlan, Matrix, ModuleLora};
use crate::weights::{ExpertPath, PROJECTIONS};
use crate::{Error, Result};

pub use matrices::{Factor, MatrixPlace};

/// LoRA of one linear.
#[derive(Debug, Clone)]
pub struct DenseAdapter {
    /// `A [rank, in]`.
    pub a: Var,
    /// `B [out, rank]`.
    pub b: Var,
    /// Rank of the update.
    pub rank: usize,
    /// Factor of the update.
    pub scale: f32,
    /// Names the module in dropout keys.
    pub id: u64,
}

/// LoRA of all routed experts of a layer.
#[derive(Debug, Clone)]
pub struct ExpertAdapter {
    /// Every expert's matrices, see [`ExpertLoraLayout`].
    pub values: Var,
    /// Where they are.
    pub layout: Arc<ExpertLoraLayout>,
    /// Names the module in dropout keys.
    pub id: u64,
}

/// One trainable tensor: what the optimiser and the gradients are indexed by.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// The values.
    pub var: Var,
    /// Names it among all parameters of the run: the path and `.lora_A`, `.lora_B` or, for routed experts, `.lora`.
    pub name: String,
    /// The path of the module, as in the base model's tensor names; for routed experts that of the list of experts.
    pub path: String,
    /// Which matrix of a pair it is; none for routed experts, whose parameter has both matrices of all their pairs.
    pub factor: Option<Factor>,
    /// For routed experts, where each expert's values are.
    pub experts: Option<Arc<ExpertLoraLayout>>,
}

/// All trainable parameters, by module.
#[derive(Debug, Clone, Default)]
pub struct Adapters {
    dense: BTreeMap<String, DenseAdapter>,
    experts: BTreeMap<String, ExpertAdapter>,
}

/// Values that one thread draws before it looks for other work: some ten microseconds of it.
const DRAWN_AT_ONCE: usize = 1 << 13;

fn module_id(path: &str) -> u64 {
    path.bytes().fold(0, |state, byte| splitmix(state ^ u64::from(byte)))
}

/// Replaces `values` by deterministic uniform ones in `(-bound, bound)`, each of which depends on its place only.
fn draw_uniform(values: &mut [f32], bound: f64, seed: u64) {
    let draw = |index: usize| (splitmix(seed ^ splitmix(index as u64)) >> 11) as f64 / (1u64 << 53) as f64;
    values.par_chunks_mut(DRAWN_AT_ONCE).enumerate().for_each(|(chunk, values)| {
        let first = chunk * DRAWN_AT_ONCE;
        for (index, value) in values.iter_mut().enumerate() {
            *value = ((2.0 * draw(first + index) - 1.0) * bound) as f32;
        }
    });
}

/// One parameter for all experts of a list, of which these modules are adapted.
fn expert_adapter(
    config: &ModelConfig,
    list: &str,
    modules: Vec<(ExpertPath, &ModuleLora)>,
    fill: impl Fn(&ModuleLora, &mut [f32], &mut [f32]) -> Result<()>,
) -> Result<ExpertAdapter> {
    let mut ranks: Vec<ExpertRanks> = vec![[None; 3]; config.moe.experts];
    for (place, module) in &modules {
        let own = ranks
            .get_mut(place.expert)
            .ok_or_else(|| Error::Invalid(format!("{}: the model has {} experts", module.path, config.moe.experts)))?;
        own[place.projection] = Some((module.rank, module.scale as f32));
    }
    let layout = ExpertLoraLayout::new(config.hidden_size, config.moe.intermediate_size, &ranks);
    let mut flat = vec![0.0; layout.len()];
    for (ExpertPath { expert, projection: which, .. }, module) in modules {
        let Some(place) = projection(&layout, expert, which) else { continue };
        let [a, b] = flat
            .get_disjoint_mut([place.a.clone(), place.b.clone()])
            .map_err(|error| Error::Invalid(format!("{}: the places of its matrices: {error}", module.path)))?;
        fill(module, a, b)?;
    }
    let length = layout.len();
    let values = Var::from_vec(flat, &[length], &Device::Cpu)?;
    Ok(ExpertAdapter { values, layout: layout.into(), id: module_id(list) })
}

fn projection(layout: &ExpertLoraLayout, expert: usize, which: usize) -> Option<&ExpertProjection> {
    let own = layout.expert(expert);
    [&own.gate, &own.up, &own.down][which].as_ref()
}

// === impl Parameter ===

impl Parameter {
    /// A copy of the values, bit by bit.
    pub fn values(&self) -> Result<Vec<f32>> {
        Ok(with_slice(self.var.as_tensor(), <[f32]>::to_vec)?)
    }

    /// Changes the values where they are, so that every layer that holds the variable sees them.
    pub fn set_values(&self, values: &[f32]) -> Result<()> {
        let expected = self.var.elem_count();
        if values.len() != expected {
            let found = values.len();
            return Err(Error::Invalid(format!("{}: found {found} values, expected {expected}", self.name)));
        }
        Ok(update_in_place(self.var.as_tensor(), |target| {
            target.copy_from_slice(values);
            Ok(())
        })?)
    }
}

// === impl Adapters ===

impl Adapters {
    /// No trainable parameters: the base model alone.
    pub fn none() -> Self {
        Self::default()
    }

    /// Freshly initialised as PEFT does: `A` uniform in ±1/√in (drawn from `seed` and the module's name), `B` zero.
    pub fn new(config: &ModelConfig, plan: &LoraPlan, seed: u64) -> Result<Self> {
        Self::build(config, plan, |module, a, _| {
            let bound = (module.inputs as f64).powf(-0.5);
            draw_uniform(a, bound, splitmix(seed) ^ module_id(&module.path));
            Ok(())
        })
    }

    /// With the values of a file.
    pub fn from_tensors(config: &ModelConfig, plan: &LoraPlan, tensors: &AdapterTensors) -> Result<Self> {
        Self::build(config, plan, |module, to_a, to_b| {
            let Adapter { a, b } = tensors
                .get(&module.path)
                .ok_or_else(|| Error::Invalid(format!("the adapter has no matrices for {}", module.path)))?;
            let expected = ((module.rank, module.inputs), (module.outputs, module.rank));
            let found = ((a.rows, a.columns), (b.rows, b.columns));
            if found != expected || (a.values.len(), b.values.len()) != (to_a.len(), to_b.len()) {
                return Err(Error::Invalid(format!(
                    "{}: expected A and B of shapes {expected:?}, found {found:?}",
                    module.path
                )));
            }
            to_a.copy_from_slice(&a.values);
            to_b.copy_from_slice(&b.values);
            Ok(())
        })
    }

    /// All modules of a plan, whose `A` and `B` are zeros until `fill` has had them.
    fn build(
        config: &ModelConfig,
        plan: &LoraPlan,
        fill: impl Fn(&ModuleLora, &mut [f32], &mut [f32]) -> Result<()> + Sync,
    ) -> Result<Self> {
        let mut dense = BTreeMap::new();
        let mut by_list: BTreeMap<&str, Vec<(ExpertPath, &ModuleLora)>> = BTreeMap::new();
        for module in &plan.modules {
            if let Some(place) = ExpertPath::parse(&module.path) {
                by_list.entry(place.list).or_default().push((place, module));
                continue;
            }
            let (mut a, mut b) = (vec![0.0; module.rank * module.inputs], vec![0.0; module.outputs * module.rank]);
            fill(module, &mut a, &mut b)?;
            dense.insert(
                module.path.clone(),
                DenseAdapter {
                    a: Var::from_vec(a, &[module.rank, module.inputs], &Device::Cpu)?,
                    b: Var::from_vec(b, &[module.outputs, module.rank], &Device::Cpu)?,
                    rank: module.rank,
                    scale: module.scale as f32,
                    id: module_id(&module.path),
                },
            );
        }
        let experts = by_list
            .into_par_iter()
            .map(|(list, modules)| Ok((list.to_string(), expert_adapter(config, list, modules, &fill)?)))
            .collect::<Result<_>>()?;
        Ok(Self { dense, experts })
    }

    /// The LoRA of a linear, if it is adapted.
    pub fn dense(&self, path: &str) -> Option<&DenseAdapter> {
        self.dense.get(path)
    }

    /// The LoRA of a layer's experts, if any is adapted.
    pub fn experts(&self, path: &str) -> Option<&ExpertAdapter> {
        self.experts.get(path)
    }

    /// Every trainable tensor, in a fixed order.
    pub fn parameters(&self) -> Vec<Parameter> {
        let dense = self.dense.iter().flat_map(|(path, adapter)| {
            [(&adapter.a, Factor::A), (&adapter.b, Factor::B)].map(|(var, factor)| Parameter {
                var: var.clone(),
                name: format!("{path}.{}", factor.name()),
                path: path.clone(),
                factor: Some(factor),
                experts: None,
            })
        });
        let experts = self.experts.iter().map(|(path, adapter)| Parameter {
            var: adapter.values.clone(),
            name: format!("{path}.lora"),
            path: path.clone(),
            factor: None,
            experts: Some(adapter.layout.clone()),
        });
        dense.chain(experts).collect()
    }

    /// Number of trainable values.
    pub fn parameter_count(&self) -> u64 {
        self.parameters().iter().map(|p| p.var.elem_count() as u64).sum()
    }

    /// The matrices of every module, as they stand.
    pub fn tensors(&self) -> Result<AdapterTensors> {
        self.split(|var| Ok(var.as_tensor().clone()))
    }

    /// Per-module matrices of anything that has the parameters' shapes (values, gradients).
    pub fn split(&self, of: impl Fn(&Var) -> Result<Tensor>) -> Result<AdapterTensors> {
        let mut out = AdapterTensors::new();
        let flat = |var: &Var| -> Result<Vec<f32>> { Ok(of(var)?.flatten_all()?.to_vec1::<f32>()?) };
        for (path, adapter) in &self.dense {
            let matrix = |var: &Var| -> Result<Matrix> {
                let (rows, columns) = var.dims2()?;
                Ok(Matrix { rows, columns, values: flat(var)? })
            };
            out.insert(path.clone(), Adapter { a: matrix(&adapter.a)?, b: matrix(&adapter.b)? });
        }
        for (list, adapter) in &self.experts {
            let values = flat(&adapter.values)?;
            for expert in 0..adapter.layout.experts() {
                for which in 0..PROJECTIONS.len() {
                    let Some(place) = projection(&adapter.layout, expert, which) else { continue };
                    let cut = |range: std::ops::Range<usize>, rows: usize| Matrix {
                        rows,
                        columns: range.len() / rows,
                        values: values[range].to_vec(),
                    };
                    let outputs = place.b.len() / place.rank;
                    let pair = Adapter { a: cut(place.a.clone(), place.rank), b: cut(place.b.clone(), outputs) };
                    out.insert(ExpertPath { list, expert, projection: which }.to_string(), pair);
                }
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uniform(count: usize, bound: f64, seed: u64) -> Vec<f32> {
        let mut values = vec![0.0; count];
        draw_uniform(&mut values, bound, seed);
        values
    }

    #[test]
    fn initial_values_fill_their_range() {
        let values = uniform(10_000, 0.5, 3);
        let mean: f32 = values.iter().sum::<f32>() / 10_000.0;
        let square: f32 = values.iter().map(|v| v * v).sum::<f32>() / 10_000.0;
        assert!(mean.abs() < 0.01 && (square - 0.25 / 3.0).abs() < 0.003, "{mean} {square}");
        assert!(values.iter().all(|v| v.abs() < 0.5));
        assert_ne!(values, uniform(10_000, 0.5, 4));
    }
    /// One after the other by the formula: a run that is repeated begins as it did, whatever the number of threads.
    #[test]
    fn initial_values_are_those_of_the_formula() {
        let value = |index: u64| {
            let draw = (splitmix(5 ^ splitmix(index)) >> 11) as f64 / 9_007_199_254_740_992.0;
            ((2.0 * draw - 1.0) * 0.25) as f32
        };
        for count in [0, 1, DRAWN_AT_ONCE, 3 * DRAWN_AT_ONCE + 7] {
            let expected: Vec<f32> = (0..count as u64).map(value).collect();
            assert_eq!(uniform(count, 0.25, 5), expected, "{count}");
        }
        let bits: Vec<u32> = uniform(3, 0.25, 5).iter().map(|value| value.to_bits()).collect();
        assert_eq!(bits, [0xbe02_9a27, 0x3dc5_1075, 0x3d29_ef58]);
    }
}
