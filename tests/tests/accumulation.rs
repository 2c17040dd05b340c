//! Several micro-batches with uneven numbers of targets are one large batch.

use brightrun_tests::steps::{PLAIN, gradients, worst_difference};
use brightrun_tests::toy::{Shape, Toy};
use brightrun_trainer::batch::MicroBatch;
use brightrun_trainer::config::Family;

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
