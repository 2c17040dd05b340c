//! The layer-by-layer step, with recompute and without, gives the gradient of the whole graph.

use brightrun_tests::steps::{PLAIN, gradients, without_gradient, worst_difference};
use brightrun_tests::toy::{Shape, Toy};
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::batch::{IGNORED, MicroBatch};
use brightrun_trainer::config::Family;
use brightrun_trainer::lora::{AdapterTensors, TargetSet};
use brightrun_trainer::model::{Model, PassDropout};
use brightrun_trainer::step::{Position, Recompute, StepOptions, whole_graph_loss};
use candle_core::{Device, Tensor};

const FIRST: Position = Position { step: 0, micro_batch: 0, micro_batches: 1 };

struct Case {
    model: Model,
    adapters: Adapters,
    batch: MicroBatch,
}

fn case(family: Family, targets: impl Fn(&Toy) -> TargetSet, padded: bool) -> Case {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::write(dir.path(), &Shape { layers: 3, ..Shape::tiny(family) }, 1).unwrap();
    let adapters = toy.adapters(&toy.plan(targets(&toy)).unwrap(), 2).unwrap();
    let mut sequences = toy.sequences(&[70, 1, 37], 0.7, 3);
    if padded {
        sequences[2].tokens.resize(50, 0);
        sequences[2].labels.resize(50, IGNORED);
    }
    Case { model: toy.model(&adapters).unwrap(), adapters, batch: MicroBatch::from_sequences(&sequences).unwrap() }
}

fn whole_graph(case: &Case, loss: &Tensor) -> AdapterTensors {
    let store = loss.backward().unwrap();
    let of = |var: &candle_core::Var| Ok(store.get(var).cloned().unwrap_or(var.as_tensor().zeros_like()?));
    case.adapters.split(of).unwrap()
}

fn assert_close(what: &str, found: &AdapterTensors, expected: &AdapterTensors) {
    let (worst, place) = worst_difference(found, expected).unwrap();
    assert!(worst <= 1e-6, "{what}: the gradient of {place} differs by {worst:e}");
}

fn check(what: &str, case: &Case, options: StepOptions) {
    let batches = std::slice::from_ref(&case.batch);
    let recomputed = gradients(&case.model, &case.adapters, batches, &options).unwrap();
    let silent = without_gradient(&recomputed).unwrap();
    assert!(silent.is_empty(), "{what}: no gradient for {silent:?}");
    let kept = StepOptions { recompute: Recompute::None, ..options };
    let kept = gradients(&case.model, &case.adapters, batches, &kept).unwrap();
    assert!(recomputed.by_module == kept.by_module, "{what}: recompute changes bits");
    assert_eq!(recomputed.loss_sum.to_bits(), kept.loss_sum.to_bits());

    let sum = whole_graph_loss(&case.model, &case.batch, &options, FIRST).unwrap();
    assert_eq!(f64::from(sum.to_scalar::<f32>().unwrap()), recomputed.loss_sum);
    let loss = (sum / recomputed.targets as f64).unwrap();
    assert_close(what, &recomputed.by_module, &whole_graph(case, &loss));
}

#[test]
fn every_linear_gets_the_gradient_of_the_whole_graph() {
    for family in Family::ALL {
        let case = case(family, Toy::every_linear, true);
        for dropout in [0.0, 0.2] {
            check(&format!("{family:?} every linear, dropout {dropout}"), &case, StepOptions { dropout, ..PLAIN });
        }
    }
}

#[test]
fn sets_of_targets_get_the_gradient_of_the_whole_graph() {
    for family in Family::ALL {
        for targets in [TargetSet::All, TargetSet::Default, TargetSet::Attention] {
            let case = case(family, |_| targets.clone(), false);
            check(&format!("{family:?} {targets:?}"), &case, StepOptions { dropout: 0.2, ..PLAIN });
        }
    }
}

/// Nothing below the first adapted layer needs a gradient, and with only the head adapted no layer does.
#[test]
fn adapters_high_up_get_the_gradient_of_the_whole_graph() {
    for names in [vec!["lm_head"], vec!["layers.2.mlp.gate"], vec!["layers.1.self_attn.q_proj", "lm_head"]] {
        let targets = TargetSet::Named(names.iter().map(|name| (*name).to_owned()).collect());
        let case = case(Family::Qwen3Next, |_| targets.clone(), false);
        check(&format!("{names:?}"), &case, PLAIN);
    }
}

#[test]
fn dropout_changes_the_gradient_and_its_seed_does_too() {
    let case = case(Family::Qwen3Next, Toy::every_linear, false);
    let run = |dropout: f32, seed: u64| {
        let options = StepOptions { dropout, seed, ..PLAIN };
        gradients(&case.model, &case.adapters, std::slice::from_ref(&case.batch), &options).unwrap().by_module
    };
    let (plain, one, two) = (run(0.0, 1), run(0.2, 1), run(0.2, 2));
    for (path, gradient) in &one {
        assert!(gradient != &plain[path], "{path} ignores dropout");
        assert!(gradient != &two[path], "{path} ignores the seed");
    }
}

/// The fused head drops what the head's logits drop.
#[test]
fn the_loss_of_an_adapted_head_is_that_of_its_logits() {
    let case = case(Family::Qwen3Moe, |_| TargetSet::Named(vec!["lm_head".to_owned()]), false);
    let hidden = case.model.embed(&case.batch.tokens).unwrap();
    let losses = [None, Some(PassDropout { probability: 0.4, key: 3 })].map(|dropout| {
        let pass = case.model.pass(&case.batch.documents, dropout).unwrap();
        let logits = case.model.logits(&hidden, &pass).unwrap().to_vec2::<f32>().unwrap();
        let rows = logits.iter().zip(&case.batch.targets).filter_map(|(row, target)| Some((row, (*target)?)));
        let loss = |(row, target): (&Vec<f32>, u32)| {
            row.iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln() - f64::from(row[target as usize])
        };
        let expected: f64 = rows.map(loss).sum();
        let found = case.model.loss_sum(&hidden, &case.batch.targets, &pass).unwrap().to_scalar::<f32>().unwrap();
        assert!((f64::from(found) / expected - 1.0).abs() < 1e-6, "{dropout:?}: {found}, expected {expected}");
        expected
    });
    assert!((losses[0] / losses[1] - 1.0).abs() > 1e-4, "{losses:?}: dropout does nothing");
}

/// `E · Σ_e f_e P_e`, with `f_e` the share of places given to expert `e` and `P_e` its mean probability, over the real
/// tokens of all layers; from plain tensor operations.
fn load_balancing_loss(case: &Case, routers: &[(Tensor, Vec<u32>)]) -> Tensor {
    let experts = case.model.config().moe.experts;
    let per_token = case.model.config().moe.per_token;
    let valid = case.batch.documents.validity();
    let rows = valid.iter().sum::<f32>() * routers.len() as f32;
    let mask = Tensor::from_vec(valid.clone(), (valid.len(), 1), &Device::Cpu).unwrap();
    let mut counts = vec![0.0f32; experts];
    let mut mean = Tensor::zeros(experts, candle_core::DType::F32, &Device::Cpu).unwrap();
    for (logits, chosen) in routers {
        chosen.iter().enumerate().for_each(|(slot, &expert)| counts[expert as usize] += valid[slot / per_token]);
        let top = logits.max_keepdim(1).unwrap().detach();
        let exponentials = logits.broadcast_sub(&top).unwrap().exp().unwrap();
        let probabilities = exponentials.broadcast_div(&exponentials.sum_keepdim(1).unwrap()).unwrap();
        mean =
            (mean + (probabilities.broadcast_mul(&mask).unwrap().sum(0).unwrap() / f64::from(rows)).unwrap()).unwrap();
    }
    let share: Vec<f32> = counts.iter().map(|count| count / rows * experts as f32).collect();
    (mean * Tensor::from_vec(share, experts, &Device::Cpu).unwrap()).unwrap().sum_all().unwrap()
}

#[test]
fn the_load_balancing_loss_gets_the_gradient_of_the_whole_graph() {
    const COEFFICIENT: f64 = 0.5;
    for family in Family::ALL {
        let case = case(family, Toy::every_linear, true);
        let pass = case.model.pass(&case.batch.documents, None).unwrap();
        let mut hidden = case.model.embed(&case.batch.tokens).unwrap();
        let mut routers = Vec::new();
        for layer in case.model.layers() {
            let output = layer.forward(&hidden, &pass).unwrap();
            hidden = output.hidden;
            routers.extend(output.router.map(|router| (router.logits, router.routing.chosen().to_vec())));
        }
        let sum = case.model.loss_sum(&hidden, &case.batch.targets, &pass).unwrap();
        let aux = load_balancing_loss(&case, &routers);
        let plain = whole_graph(&case, &(&sum / case.batch.target_count() as f64).unwrap());
        let loss = (sum / case.batch.target_count() as f64).unwrap() + (&aux * COEFFICIENT).unwrap();
        let expected = whole_graph(&case, &loss.unwrap());
        for recompute in [Recompute::Layers, Recompute::None] {
            let options = StepOptions { recompute, aux_coefficient: Some(COEFFICIENT), ..PLAIN };
            let found = gradients(&case.model, &case.adapters, std::slice::from_ref(&case.batch), &options).unwrap();
            let reported = found.aux_loss.unwrap();
            assert!((reported / f64::from(aux.to_scalar::<f32>().unwrap()) - 1.0).abs() < 1e-5, "{family:?}");
            let (worst, place) = worst_difference(&found.by_module, &expected).unwrap();
            assert!(worst <= 1e-5, "{family:?}: the gradient of {place} differs by {worst:e}");
        }
        assert!(worst_difference(&plain, &expected).unwrap().0 > 1e-3, "{family:?}: the coefficient does nothing");
    }
}
