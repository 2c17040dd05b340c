//! The layer-by-layer step, with recompute and without, gives the gradient of the whole graph.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use brightrun_tests::steps::{PLAIN, gradients, without_gradient, worst_difference};
use brightrun_tests::toy::{Shape, Toy};
use brightrun_tests::whole_graph::{gradient, losses};
use brightrun_trainer::Error;
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::batch::{IGNORED, MicroBatch};
use brightrun_trainer::clock::Clock;
use brightrun_trainer::config::Family;
use brightrun_trainer::lora::{Adapter, AdapterTensors, TargetSet, resolve};
use brightrun_trainer::model::{Model, PassDropout};
use brightrun_trainer::step::{Gradients, Position, Recompute, StepOptions, accumulate_timed, evaluate};
use brightrun_trainer::stop::{Stop, StopKind};
use brightrun_trainer::weights::{BasePrecision, Checkpoint};

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

    let sum = losses(&case.model, &case.batch, options.pass_dropout(FIRST)).unwrap().sum;
    assert_eq!(f64::from(sum.to_scalar::<f32>().unwrap()), recomputed.loss_sum);
    let loss = (sum / recomputed.targets as f64).unwrap();
    assert_close(what, &recomputed.by_module, &gradient(&case.adapters, &loss).unwrap());
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

fn named(names: &[&str]) -> TargetSet {
    TargetSet::Named(names.iter().map(|name| (*name).to_owned()).collect())
}

#[test]
fn sets_of_targets_get_the_gradient_of_the_whole_graph() {
    use TargetSet::{All, Attention, Classic, Default, Servable};
    for family in Family::ALL {
        for targets in [All, Attention, Classic, Default, Servable, named(&["all-linear"])] {
            let case = case(family, |_| targets.clone(), false);
            check(&format!("{family:?} {targets:?}"), &case, StepOptions { dropout: 0.2, ..PLAIN });
        }
    }
}

/// By name, for the modules that the reference's goldens do not adapt too.
#[test]
fn every_kind_of_linear_learns_in_the_sets_that_name_it() {
    let kinds = |targets: &TargetSet| -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let config = Toy::write(dir.path(), &Shape::tiny(Family::Qwen3Next), 1).unwrap().config;
        let adapted = resolve(&config, targets).unwrap();
        let case = case(Family::Qwen3Next, |_| targets.clone(), false);
        let batches = std::slice::from_ref(&case.batch);
        let gradients = gradients(&case.model, &case.adapters, batches, &PLAIN).unwrap().by_module;
        assert!(adapted.iter().all(|path| gradients.contains_key(path)), "{targets:?}");
        let moves = |adapter: &Adapter| [&adapter.a, &adapter.b].iter().all(|m| m.values.iter().any(|v| *v != 0.0));
        let kind = |path: &str| {
            path.split('.').skip(3).filter(|part| part.parse::<usize>().is_err()).collect::<Vec<_>>().join(".")
        };
        let mut kinds: Vec<String> =
            gradients.iter().filter(|(_, adapter)| moves(adapter)).map(|(path, _)| kind(path)).collect();
        kinds.sort();
        kinds.dedup();
        kinds
    };
    let attention = ["self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"];
    let delta = ["linear_attn.in_proj_qkvz", "linear_attn.out_proj"];
    let shared = ["mlp.shared_expert.down_proj", "mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"];
    let routed = ["mlp.experts.down_proj", "mlp.experts.gate_proj", "mlp.experts.up_proj"];
    let rest = ["linear_attn.in_proj_ba", "mlp.gate", "mlp.shared_expert_gate"];
    let expect = |targets: TargetSet, parts: &[&[&str]]| {
        let mut expected = parts.concat();
        expected.sort_unstable();
        assert_eq!(kinds(&targets), expected, "{targets:?}");
    };
    expect(TargetSet::Attention, &[&attention]);
    expect(TargetSet::Servable, &[&attention, &delta[1..], &shared]);
    expect(TargetSet::Default, &[&attention, &delta, &shared]);
    expect(TargetSet::Classic, &[&attention, &shared, &routed]);
    expect(TargetSet::All, &[&attention, &delta, &shared, &routed]);
    expect(named(&["all-linear"]), &[&attention, &delta, &shared, &routed, &rest]);
}

/// Nothing below the first adapted layer needs a gradient, and with only the head adapted no layer does.
#[test]
fn adapters_high_up_get_the_gradient_of_the_whole_graph() {
    for names in [vec!["lm_head"], vec!["layers.2.mlp.gate"], vec!["layers.1.self_attn.q_proj", "lm_head"]] {
        let targets = named(&names);
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
    let case = case(Family::Qwen3Moe, |_| named(&["lm_head"]), false);
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

#[test]
fn the_load_balancing_loss_gets_the_gradient_of_the_whole_graph() {
    const COEFFICIENT: f64 = 0.5;
    for family in Family::ALL {
        let case = case(family, Toy::every_linear, true);
        let whole = losses(&case.model, &case.batch, None).unwrap();
        let aux = whole.load_balancing;
        let mean = (whole.sum / case.batch.target_count() as f64).unwrap();
        let plain = gradient(&case.adapters, &mean).unwrap();
        let loss = (&mean + (&aux * COEFFICIENT).unwrap()).unwrap();
        let expected = gradient(&case.adapters, &loss).unwrap();
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

/// Asks for a stop when it is looked at for the second time: a step looks between its forward and its backward pass.
struct Impatient {
    stop: Stop,
    looks: AtomicU32,
}

impl Clock for Impatient {
    fn elapsed(&self) -> Duration {
        if self.looks.fetch_add(1, Ordering::Relaxed) == 1 {
            self.stop.ask(StopKind::Cancel);
        }
        Duration::ZERO
    }

    fn since_1970(&self) -> Duration {
        Duration::ZERO
    }
}

#[test]
fn whoever_asks_to_stop_waits_for_one_layer_and_not_for_the_micro_batch() {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::write(dir.path(), &Shape { layers: 3, ..Shape::tiny(Family::Qwen3Moe) }, 1).unwrap();
    let adapters = toy.adapters(&toy.plan(toy.every_linear()).unwrap(), 2).unwrap();
    let batch = MicroBatch::from_sequences(&toy.sequences(&[20], 0.7, 3)).unwrap();
    for recompute in [Recompute::Layers, Recompute::None] {
        let stop = Stop::default();
        let checkpoint = Checkpoint::open(dir.path(), &toy.config).unwrap().until(&stop);
        let model = Model::load(&toy.config, &checkpoint, &BasePrecision::Full, &adapters).unwrap();
        let step = |clock: &dyn Clock| {
            let (mut gradients, options) = (Gradients::new(&adapters), StepOptions { recompute, ..PLAIN });
            accumulate_timed(&model, &batch, &options, FIRST, 10, &mut gradients, clock)
        };
        let clock = Impatient { stop: stop.clone(), looks: AtomicU32::new(5) };
        assert!(step(&clock).is_ok() && evaluate(&model, &batch, false).is_ok());
        clock.looks.store(0, Ordering::Relaxed);
        assert!(matches!(step(&clock), Err(Error::Cancelled)), "{recompute:?}: the backward pass goes on");
        assert!(matches!(evaluate(&model, &batch, false), Err(Error::Cancelled)));
    }
}
