//! A whole step on an emulated GPU is that of the processor, within bf16.

use brightrun_kernels::gpu::Gpu;
use brightrun_tests::gpu_step::{Case, Difference};
use brightrun_tests::steps::PLAIN;
use brightrun_tests::toy::{Mixers, Shape};
use brightrun_trainer::config::Family;
use brightrun_trainer::step::StepOptions;
use brightrun_trainer::weights::BasePrecision;

fn case(family: Family) -> Case {
    let mixers = if family == Family::Qwen3Next { Mixers::Both } else { Mixers::Attention };
    Case {
        shape: Shape { family, mixers, layers: 2, hidden: 64, vocabulary: 96, experts: 6, expert_width: 32 },
        precision: BasePrecision::nf4(),
        options: PLAIN,
        documents: vec![vec![(37, 37), (1, 1), (20, 20)]],
        seed: 5,
    }
}

fn check(case: &Case) {
    let folder = tempfile::tempdir().unwrap();
    let differences = case.compare(&Gpu::emulated(0), folder.path()).unwrap();
    for Difference { what, error } in &differences {
        println!("{error:.4} {what}");
    }
    let wrong: Vec<_> = differences.iter().filter(|difference| !(difference.error <= 0.05)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn qwen3_next() {
    check(&case(Family::Qwen3Next));
}

#[test]
fn qwen3_moe() {
    check(&case(Family::Qwen3Moe));
}

#[test]
fn qwen2_moe() {
    check(&case(Family::Qwen2Moe));
}

#[test]
fn dropout_load_balancing_noise_padding_and_micro_batches() {
    let options = StepOptions { dropout: 0.2, neftune_alpha: 5.0, aux_coefficient: Some(0.1), ..PLAIN };
    let documents = vec![vec![(20, 17), (9, 9)], vec![(30, 30)]];
    check(&Case { options, documents, precision: BasePrecision::Full, ..case(Family::Qwen3Next) });
}
