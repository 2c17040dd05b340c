//! Several micro-batches with uneven numbers of targets are one large batch, and what is not: the load-balancing loss.

use brightrun_tests::steps::{PLAIN, gradients, worst_difference};
use brightrun_tests::toy::{Shape, Toy};
use brightrun_tests::whole_graph::{gradient, losses};
use brightrun_trainer::batch::{IGNORED, MicroBatch};
use brightrun_trainer::config::Family;
use brightrun_trainer::step::StepOptions;

#[test]
fn micro_batches_with_uneven_targets_equal_one_large_batch() {
    for family in Family::ALL {
        let dir = tempfile::tempdir().unwrap();
        let toy = Toy::write(dir.path(), &Shape::tiny(family), 1).unwrap();
        let adapters = toy.adapters(&toy.plan(toy.every_linear()).unwrap(), 2).unwrap();
        let model = toy.model(&adapters).unwrap();
        // Long documents with few targets beside short ones with many, and one micro-batch without any.
        let parts = [
            toy.sequences(&[90, 40], 0.05, 3),
            toy.sequences(&[20], 1.0, 4),
            toy.sequences(&[33], 0.0, 5),
            toy.sequences(&[64, 3, 17], 0.6, 6),
        ];
        let batches: Vec<_> = parts.iter().map(|part| MicroBatch::from_sequences(part).unwrap()).collect();
        let counts: Vec<usize> = batches.iter().map(MicroBatch::target_count).collect();
        assert!(counts[0] < counts[1] && counts[2] == 0 && counts[1] < counts[3], "{counts:?}");
        let large = MicroBatch::from_sequences(&parts.concat()).unwrap();
        let expected = gradients(&model, &adapters, &[large], &PLAIN).unwrap();
        let found = gradients(&model, &adapters, &batches, &PLAIN).unwrap();
        assert_eq!(found.targets, expected.targets);
        assert!((found.loss_sum / expected.loss_sum - 1.0).abs() <= 1e-6, "{family:?}");
        let (worst, place) = worst_difference(&found.by_module, &expected.by_module).unwrap();
        assert!(worst <= 1e-5, "{family:?}: the gradient of {place} differs by {worst:e}");
    }
}

/// The rule of `step`: the cross-entropies of a step are one sum over its targets, the load-balancing losses of its
/// micro-batches count on average.
#[test]
fn the_load_balancing_loss_is_the_mean_of_the_micro_batches() {
    const COEFFICIENT: f64 = 0.5;
    for family in Family::ALL {
        let dir = tempfile::tempdir().unwrap();
        let toy = Toy::write(dir.path(), &Shape::tiny(family), 1).unwrap();
        let adapters = toy.adapters(&toy.plan(toy.every_linear()).unwrap(), 2).unwrap();
        let model = toy.model(&adapters).unwrap();
        let mut padded = toy.sequences(&[33], 0.4, 5);
        padded[0].tokens.resize(50, 0);
        padded[0].labels.resize(50, IGNORED);
        let parts = [toy.sequences(&[90, 40], 0.05, 3), padded, toy.sequences(&[20], 1.0, 4)];
        let batches: Vec<_> = parts.iter().map(|part| MicroBatch::from_sequences(part).unwrap()).collect();
        let whole: Vec<_> = batches.iter().map(|batch| losses(&model, batch, None).unwrap()).collect();
        let targets: usize = batches.iter().map(MicroBatch::target_count).sum();
        // Σ_m cross_entropy_m / Σ_m targets_m + weight · Σ_m load_balancing_m
        let expected = |weight: f64| {
            let terms = whole.iter().map(|part| {
                let cross_entropy = (&part.sum / targets as f64).unwrap();
                (cross_entropy + (&part.load_balancing * weight).unwrap()).unwrap()
            });
            gradient(&adapters, &terms.reduce(|sum, term| (sum + term).unwrap()).unwrap()).unwrap()
        };
        let options = StepOptions { aux_coefficient: Some(COEFFICIENT), ..PLAIN };
        let found = gradients(&model, &adapters, &batches, &options).unwrap();
        let mean = COEFFICIENT / batches.len() as f64;
        let (worst, place) = worst_difference(&found.by_module, &expected(mean)).unwrap();
        assert!(worst <= 1e-5, "{family:?}: the gradient of {place} differs by {worst:e}");
        let values = whole.iter().map(|part| f64::from(part.load_balancing.to_scalar::<f32>().unwrap()));
        let reported = found.aux_loss.unwrap() / (values.sum::<f64>() / batches.len() as f64);
        assert!((reported - 1.0).abs() <= 1e-5, "{family:?}: {reported}");

        // Neither their sum nor the loss of all tokens together is within reach of the tolerance.
        let (sum, _) = worst_difference(&found.by_module, &expected(COEFFICIENT)).unwrap();
        let large = MicroBatch::from_sequences(&parts.concat()).unwrap();
        let together = gradients(&model, &adapters, &[large], &options).unwrap();
        let (together, _) = worst_difference(&found.by_module, &together.by_module).unwrap();
        assert!(sum > 1e-3 && together > 1e-3, "{family:?}: {sum:e} {together:e}");
    }
}
