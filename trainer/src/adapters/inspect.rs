//! Looking at adapters without changing them: how large their updates are, and what became of them since the start.

use std::collections::BTreeMap;

use brightrun_kernels::moe::ExpertProjection;
use brightrun_kernels::op::{with_slice, with_slices};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::{Adapters, projection};
use crate::proof::{AdapterDigest, Change, Digest, MAX_UNCHANGED, ModuleCount, ModuleUpdate, update_floats};
use crate::weights::{ExpertPath, PROJECTIONS};
use crate::{Error, Result};

/// The matrices of one adapted linear.
struct Module<'a> {
    /// `[rank, in]`.
    a: &'a [f32],
    /// `[out, rank]`.
    b: &'a [f32],
    rank: usize,
    scale: f32,
}

/// What one look at a module finds.
struct Look {
    digest: Digest,
    finite: bool,
    nothing: bool,
    norm: f64,
}

// === impl Module ===

impl Module<'_> {
    /// `‖scale · B·A‖²` as `scale² · tr((BᵀB)(AAᵀ))`, out of two matrices of `rank × rank`.
    fn squared_norm(&self) -> f64 {
        let rank = self.rank;
        let inputs = self.a.len() / rank;
        let dot = |x: &[f32], y: &[f32]| -> f64 { x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum() };
        let mut of_b = vec![0.0; rank * rank];
        for row in self.b.chunks_exact(rank) {
            for i in 0..rank {
                for j in i..rank {
                    of_b[i * rank + j] += f64::from(row[i]) * f64::from(row[j]);
                }
            }
        }
        let mut trace = 0.0;
        for i in 0..rank {
            for j in i..rank {
                let of_a = dot(&self.a[i * inputs..][..inputs], &self.a[j * inputs..][..inputs]);
                // Both matrices are symmetric.
                trace += of_b[i * rank + j] * of_a * if i == j { 1.0 } else { 2.0 };
            }
        }
        // A norm of almost nothing can round to below 0; what is not a number stays so.
        let squared = f64::from(self.scale).powi(2) * trace;
        if squared < 0.0 { 0.0 } else { squared }
    }

    fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        hash.update((self.rank as u64).to_le_bytes());
        update_floats(&mut hash, self.a);
        update_floats(&mut hash, self.b);
        Digest::finish(hash)
    }

    fn look(&self) -> Look {
        let zero = |values: &[f32]| values.iter().all(|value| *value == 0.0);
        Look {
            digest: self.digest(),
            finite: self.a.iter().chain(self.b).all(|value| value.is_finite()),
            nothing: zero(self.b) || zero(self.a),
            norm: self.squared_norm().sqrt(),
        }
    }
}

/// The layer a module belongs to; none for the head.
fn layer(path: &str) -> Option<usize> {
    path.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

// === impl Adapters ===

impl Adapters {
    /// Looks at every module, on all threads; the results are in a fixed order, routed experts last.
    fn each<T: Send>(&self, look: impl Fn(&Module) -> T + Sync) -> Result<Vec<(String, T)>> {
        let dense = self.dense.par_iter().map(|(path, adapter)| {
            let (rank, scale) = (adapter.rank, adapter.scale);
            let found = with_slices([&adapter.a, &adapter.b], |[a, b]| look(&Module { a, b, rank, scale }))?;
            Ok((path.clone(), found))
        });
        let mut all = dense.collect::<Result<Vec<_>>>()?;
        for (list, adapter) in &self.experts {
            let mut places: Vec<(String, &ExpertProjection)> = Vec::new();
            for expert in 0..adapter.layout.experts() {
                for which in 0..PROJECTIONS.len() {
                    let path = ExpertPath { list, expert, projection: which };
                    places.extend(projection(&adapter.layout, expert, which).map(|place| (path.to_string(), place)));
                }
            }
            with_slice(&adapter.values, |values| {
                all.par_extend(places.into_par_iter().map(|(path, place)| {
                    let (a, b) = (&values[place.a.clone()], &values[place.b.clone()]);
                    (path, look(&Module { a, b, rank: place.rank, scale: place.scale }))
                }));
            })?;
        }
        Ok(all)
    }

    /// Frobenius norm of the update `scale · B·A` of all adapters of a layer together, by layer. A layer without an
    /// adapter is not in it, and neither is the head.
    pub fn layer_norms(&self) -> Result<BTreeMap<usize, f64>> {
        let mut squares: BTreeMap<usize, f64> = BTreeMap::new();
        for (path, squared) in self.each(|module| module.squared_norm())? {
            if let Some(layer) = layer(&path) {
                *squares.entry(layer).or_default() += squared;
            }
        }
        Ok(squares.into_iter().map(|(layer, squared)| (layer, squared.sqrt())).collect())
    }

    /// The digests of all modules as they stand.
    pub fn digest(&self) -> Result<AdapterDigest> {
        Ok(AdapterDigest { modules: self.each(|module| module.digest())?.into_iter().collect() })
    }

    /// What became of the adapter since `initial` was taken of it.
    pub fn changed_since(&self, initial: &AdapterDigest) -> Result<Change> {
        let looks: BTreeMap<String, Look> = self.each(|module| module.look())?.into_iter().collect();
        if !looks.keys().eq(initial.modules.keys()) {
            return Err(Error::Invalid(format!(
                "the adapter has {} modules, and had {} others at the start of the run; compare it with its own start",
                looks.len(),
                initial.modules.len()
            )));
        }
        let after = AdapterDigest { modules: looks.iter().map(|(path, look)| (path.clone(), look.digest)).collect() };
        let mut change = Change {
            digest_before: initial.whole(),
            digest_after: after.whole(),
            modules: ModuleCount::default(),
            routed_experts: ModuleCount::default(),
            share_of_modules_changed: 0.0,
            unchanged: Vec::new(),
            modules_not_finite: 0,
            update_norm: 0.0,
            largest_update: None,
        };
        let mut squares = 0.0;
        for ((path, look), before) in looks.iter().zip(initial.modules.values()) {
            let routed = ExpertPath::parse(path).is_some();
            let count = if routed { &mut change.routed_experts } else { &mut change.modules };
            let changed = look.digest != *before;
            count.total += 1;
            count.changed += u64::from(changed);
            count.without_update += u64::from(look.nothing);
            if !changed && !routed && change.unchanged.len() < MAX_UNCHANGED {
                change.unchanged.push(path.clone());
            }
            if !look.finite {
                change.modules_not_finite += 1;
                continue;
            }
            squares += look.norm.powi(2);
            if look.norm > change.largest_update.as_ref().map_or(0.0, |largest| largest.norm) {
                change.largest_update = Some(ModuleUpdate { module: path.clone(), norm: look.norm });
            }
        }
        change.update_norm = squares.sqrt();
        let changed = change.modules.changed + change.routed_experts.changed;
        change.share_of_modules_changed = changed as f64 / looks.len().max(1) as f64;
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use brightrun_kernels::op::update_in_place;
    use candle_core::Var;

    use super::*;
    use crate::config::ModelConfig;
    use crate::lora::{Adapter, AdapterTensors, LoraOptions, LoraPlan, Matrix, TargetSet, plan};

    fn case() -> (ModelConfig, LoraPlan) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/qwen3_next_s1/base");
        let config = ModelConfig::read(&dir).unwrap();
        let options = LoraOptions {
            rank: 3,
            alpha: 4.5,
            dropout: 0.0,
            use_rslora: false,
            targets: TargetSet::Named(
                ["q_proj", "o_proj", "out_proj", "up_proj", "down_proj", "lm_head"].map(Into::into).into(),
            ),
            expert_rank: Some(2),
        };
        let plan = plan(&config, &options).unwrap();
        (config, plan)
    }

    fn change(var: &Var, edit: impl FnOnce(&mut [f32])) {
        update_in_place(var.as_tensor(), |values| {
            edit(values);
            Ok(())
        })
        .unwrap();
    }

    /// `‖scale · B·A‖²` element by element.
    fn explicit(a: &Matrix, b: &Matrix, scale: f64) -> f64 {
        let mut sum = 0.0;
        for row in 0..b.rows {
            for column in 0..a.columns {
                let product: f64 = (0..a.rows)
                    .map(|r| f64::from(b.values[row * b.columns + r]) * f64::from(a.values[r * a.columns + column]))
                    .sum();
                sum += (scale * product).powi(2);
            }
        }
        sum
    }

    #[test]
    fn norms_are_those_of_the_explicit_products() {
        let (config, plan) = case();
        let adapters = Adapters::new(&config, &plan, 1).unwrap();
        assert!(adapters.layer_norms().unwrap().values().all(|norm| *norm == 0.0), "B is zero at the start");
        for (index, parameter) in adapters.parameters().iter().enumerate() {
            change(&parameter.var, |values| {
                values.iter_mut().enumerate().for_each(|(i, v)| *v += ((i * 37 + index * 11) % 101) as f32 * 1e-3);
            });
        }
        let tensors: AdapterTensors = adapters.tensors().unwrap();
        let mut expected: BTreeMap<usize, f64> = BTreeMap::new();
        let mut seen = (0, 0);
        for module in &plan.modules {
            let Adapter { a, b } = &tensors[&module.path];
            let Some(layer) = layer(&module.path) else { continue };
            *expected.entry(layer).or_default() += explicit(a, b, f64::from(module.scale as f32));
            if ExpertPath::parse(&module.path).is_some() { seen.0 += 1 } else { seen.1 += 1 }
        }
        assert!(seen.0 > 0 && seen.1 > 0, "{seen:?}");
        let found = adapters.layer_norms().unwrap();
        assert!(found.keys().eq(expected.keys()) && found.len() == config.layers.len());
        for (layer, norm) in found {
            let expected = expected[&layer].sqrt();
            assert!((norm / expected - 1.0).abs() < 1e-9, "layer {layer}: {norm} {expected}");
        }
    }

    #[test]
    fn only_modules_of_layers_have_a_layer() {
        assert_eq!(layer("model.layers.12.self_attn.q_proj"), Some(12));
        assert_eq!(layer("lm_head"), None);
        assert_eq!(layer("model.layers.x.mlp"), None);
    }

    #[test]
    fn an_unchanged_adapter_is_a_problem() {
        let (config, plan) = case();
        let adapters = Adapters::new(&config, &plan, 1).unwrap();
        let start = adapters.digest().unwrap();
        assert_eq!(start, Adapters::new(&config, &plan, 1).unwrap().digest().unwrap());
        let change = adapters.changed_since(&start).unwrap();
        assert_eq!(change.digest_before, change.digest_after);
        assert_eq!((change.share_of_modules_changed, change.update_norm), (0.0, 0.0));
        assert_eq!(change.modules.without_update, change.modules.total);
        assert_eq!(change.largest_update, None);
        assert_eq!(change.unchanged.len(), MAX_UNCHANGED);
        let problem = change.problem().unwrap();
        assert!(problem.contains(&format!("none of the adapter's {} modules", plan.modules.len())), "{problem}");
    }

    #[test]
    fn what_changed_is_counted_and_idle_experts_are_no_problem() {
        let (config, plan) = case();
        let adapters = Adapters::new(&config, &plan, 1).unwrap();
        let start = adapters.digest().unwrap();
        let path = "model.layers.3.self_attn.o_proj";
        change(&adapters.dense(path).unwrap().b, |values| values[5] = 0.25);
        let experts = adapters.experts("model.layers.1.mlp.experts").unwrap();
        let place = experts.layout.expert(2).up.clone().unwrap();
        change(&experts.values, |values| values[place.b.end - 1] = -0.5);
        let change = adapters.changed_since(&start).unwrap();
        assert_eq!((change.modules.changed, change.routed_experts.changed), (1, 1));
        assert_eq!(change.modules.total + change.routed_experts.total, plan.modules.len() as u64);
        assert_eq!(change.modules.without_update, change.modules.total - 1);
        assert_eq!(change.share_of_modules_changed, 2.0 / plan.modules.len() as f64);
        assert!(!change.unchanged.contains(&path.to_owned()));
        assert!(change.unchanged.iter().all(|path| ExpertPath::parse(path).is_none()));
        assert_ne!(change.digest_before, change.digest_after);
        assert_eq!(change.problem(), None);
        let largest = change.largest_update.clone().unwrap();
        assert!(largest.norm > 0.0 && largest.norm <= change.update_norm);
        let json = serde_json::to_string(&change).unwrap();
        let read = serde_json::from_str::<Change>(&json).unwrap();
        assert_eq!((read.digest_after, read.routed_experts), (change.digest_after, change.routed_experts));
    }

    #[test]
    fn values_that_are_no_numbers_are_a_problem() {
        let (config, plan) = case();
        let adapters = Adapters::new(&config, &plan, 1).unwrap();
        let start = adapters.digest().unwrap();
        change(&adapters.dense("lm_head").unwrap().b, |values| values[0] = f32::NAN);
        let change = adapters.changed_since(&start).unwrap();
        assert_eq!(change.modules_not_finite, 1);
        assert!(change.update_norm.is_finite());
        assert!(change.problem().unwrap().contains("1 modules of the adapter hold values that are not finite"));
    }

    #[test]
    fn another_adapter_is_refused() {
        let (config, mut plan) = case();
        let start = Adapters::new(&config, &plan, 1).unwrap().digest().unwrap();
        plan.modules.pop();
        let error = Adapters::new(&config, &plan, 1).unwrap().changed_since(&start).unwrap_err().to_string();
        assert!(error.contains("compare it with its own start"), "{error}");
    }
}
