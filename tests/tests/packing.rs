//! A packed batch is its rows run one by one, and a boundary that is not there is noticed.

use brightrun_kernels::Documents;
use brightrun_tests::steps::{PLAIN, gradients, worst_difference};
use brightrun_tests::toy::{Mixers, Random, Shape, Toy};
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::batch::{IGNORED, MicroBatch, Sequence};
use brightrun_trainer::config::Family;
use brightrun_trainer::lora::TargetSet;
use brightrun_trainer::step::evaluate;

/// Mixtures of the lengths at which the chunks of the delta rule (64) begin, end and are left empty.
const MIXTURES: [&[usize]; 4] =
    [&[1, 63, 64, 65, 127, 128, 129, 200], &[200, 1, 129, 63], &[65, 1, 1, 128, 64], &[127, 63, 65, 2, 1]];

fn pack(sequences: &[Sequence]) -> MicroBatch {
    MicroBatch::from_sequences(sequences).unwrap()
}

fn one_by_one(sequences: &[Sequence]) -> Vec<MicroBatch> {
    sequences.iter().map(|sequence| pack(std::slice::from_ref(sequence))).collect()
}

fn packed_equals_rows(shape: Shape) {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::write(dir.path(), &shape, 11).unwrap();
    let adapters = toy.adapters(&toy.plan(TargetSet::All).unwrap(), 12).unwrap();
    let model = toy.model(&adapters).unwrap();
    for (index, lengths) in MIXTURES.into_iter().enumerate() {
        let sequences = toy.sequences(lengths, 1.0, 20 + index as u64);
        let packed = gradients(&model, &adapters, &[pack(&sequences)], &PLAIN).unwrap();
        let rows = gradients(&model, &adapters, &one_by_one(&sequences), &PLAIN).unwrap();
        assert_eq!(packed.targets, lengths.iter().sum::<usize>() - lengths.len());
        let loss = (packed.loss_sum / rows.loss_sum - 1.0).abs();
        assert!(loss <= 1e-6, "{shape:?} {lengths:?}: loss differs by {loss:e}");
        let (worst, place) = worst_difference(&packed.by_module, &rows.by_module).unwrap();
        assert!(worst <= 1e-5, "{shape:?} {lengths:?}: the gradient of {place} differs by {worst:e}");
    }
}

#[test]
fn qwen3_next_packed_equals_its_rows() {
    packed_equals_rows(Shape::tiny(Family::Qwen3Next));
}

/// One layer: a second DeltaNet makes the rounding of the first about thirty times as large, see below.
#[test]
fn qwen3_next_of_delta_net_only_packed_equals_its_rows() {
    packed_equals_rows(Shape { mixers: Mixers::DeltaNet, layers: 1, ..Shape::tiny(Family::Qwen3Next) });
}

#[test]
fn qwen3_moe_packed_equals_its_rows() {
    packed_equals_rows(Shape::tiny(Family::Qwen3Moe));
}

#[test]
fn qwen2_moe_packed_equals_its_rows() {
    packed_equals_rows(Shape::tiny(Family::Qwen2Moe));
}

/// Deeper stacks make rounding larger than any fixed tolerance that would still find a fault (DeltaNet's norm divides by
/// the length of its output, which is almost zero for some tokens). Packing must then move the gradients no more than
/// moving every value of `A` by one unit in the last place does.
#[test]
fn deep_stacks_differ_by_no_more_than_rounding() {
    let next = Shape::tiny(Family::Qwen3Next);
    for shape in [Shape { mixers: Mixers::DeltaNet, ..next }, Shape { layers: 4, ..next }] {
        let dir = tempfile::tempdir().unwrap();
        let toy = Toy::write(dir.path(), &shape, 11).unwrap();
        let plan = toy.plan(TargetSet::All).unwrap();
        let adapters = toy.adapters(&plan, 12).unwrap();
        let sequences = toy.sequences(MIXTURES[0], 1.0, 20);
        let run = |adapters: &Adapters, batches: &[MicroBatch]| {
            gradients(&toy.model(adapters).unwrap(), adapters, batches, &PLAIN).unwrap().by_module
        };
        let rows = run(&adapters, &one_by_one(&sequences));
        let rounding = (0..4).map(|seed| {
            let (mut tensors, mut random) = (adapters.tensors().unwrap(), Random::new(seed));
            for value in tensors.values_mut().flat_map(|adapter| &mut adapter.a.values) {
                *value *= 1.0 + random.even(f64::from(f32::EPSILON)) as f32;
            }
            let moved = Adapters::from_tensors(&toy.config, &plan, &tensors).unwrap();
            worst_difference(&run(&moved, &one_by_one(&sequences)), &rows).unwrap().0
        });
        let rounding = rounding.fold(0.0, f64::max);
        let (worst, place) = worst_difference(&run(&adapters, &[pack(&sequences)]), &rows).unwrap();
        assert!(rounding < 1e-3, "{shape:?}: rounding alone moves gradients by {rounding:e}");
        assert!(worst <= 2.0 * rounding, "{shape:?}: {place} differs by {worst:e}, rounding by {rounding:e}");
    }
}

/// Right padding changes neither loss nor gradients.
#[test]
fn padded_rows_equal_rows_without_padding() {
    for family in Family::ALL {
        let dir = tempfile::tempdir().unwrap();
        let toy = Toy::write(dir.path(), &Shape::tiny(family), 11).unwrap();
        let adapters = toy.adapters(&toy.plan(TargetSet::All).unwrap(), 12).unwrap();
        let model = toy.model(&adapters).unwrap();
        let sequences = toy.sequences(&[63, 64, 65, 1, 128], 1.0, 3);
        let mut padded = sequences.clone();
        for sequence in &mut padded {
            sequence.tokens.resize(130, 5);
            sequence.labels.resize(130, IGNORED);
        }
        let plain = gradients(&model, &adapters, &[pack(&sequences)], &PLAIN).unwrap();
        let padded = gradients(&model, &adapters, &[pack(&padded)], &PLAIN).unwrap();
        assert_eq!(plain.targets, padded.targets);
        assert!((plain.loss_sum / padded.loss_sum - 1.0).abs() <= 1e-6, "{family:?}");
        let (worst, place) = worst_difference(&padded.by_module, &plain.by_module).unwrap();
        assert!(worst <= 1e-5, "{family:?}: the gradient of {place} differs by {worst:e}");
    }
}

/// The mean loss of two documents, and of the same tokens and targets without the boundary between them.
fn with_and_without_boundary(shape: Shape, lengths: [usize; 2]) -> (f64, f64) {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::write(dir.path(), &shape, 11).unwrap();
    let adapters = toy.adapters(&toy.plan(TargetSet::All).unwrap(), 12).unwrap();
    let model = toy.model(&adapters).unwrap();
    let apart = pack(&toy.sequences(&lengths, 1.0, 5));
    let merged = MicroBatch { documents: Documents::from_lengths(&[lengths.iter().sum()]).unwrap(), ..apart.clone() };
    let mean = |batch: &MicroBatch| {
        let report = evaluate(&model, batch, false).unwrap();
        report.loss_sum / report.targets as f64
    };
    (mean(&apart), mean(&merged))
}

#[test]
fn a_removed_boundary_is_noticed_by_every_mixer() {
    let next = Shape::tiny(Family::Qwen3Next);
    let shapes = [
        Shape { mixers: Mixers::DeltaNet, ..next },
        Shape { mixers: Mixers::Attention, ..next },
        Shape::tiny(Family::Qwen3Moe),
        Shape::tiny(Family::Qwen2Moe),
    ];
    for shape in shapes {
        for lengths in [[1, 64], [63, 65], [64, 64], [65, 127], [128, 63]] {
            let (apart, merged) = with_and_without_boundary(shape, lengths);
            assert!((apart - merged).abs() > 1e-3, "{shape:?} {lengths:?}: {apart} with, {merged} without");
        }
    }
}
