//! A whole step on an emulated GPU is that of the processor, as far as bf16 determines it.
//!
//! A router that chooses otherwise because of a rounding changes a token's way altogether. So what is not about choices is
//! compared with as many experts as a token meets; the others have a seed for which no choice is near.

use brightrun_kernels::gpu::Gpu;
use brightrun_tests::gpu_step::Case;
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

/// Every token meets all experts.
fn without_choice() -> Case {
    let case = case(Family::Qwen3Next);
    Case { shape: Shape { experts: 2, ..case.shape }, ..case }
}

fn check(case: &Case) {
    let folder = tempfile::tempdir().unwrap();
    let differences = case.compare(&Gpu::emulated(0), folder.path()).unwrap();
    assert!(differences.len() > 20, "{differences:?}");
    let wrong: Vec<_> = differences.iter().filter(|difference| !difference.holds()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_family() {
    for family in Family::ALL {
        check(&case(family));
    }
}

#[test]
fn a_base_that_is_not_quantised() {
    check(&Case { precision: BasePrecision::Full, ..without_choice() });
}

#[test]
fn padding_and_several_micro_batches() {
    check(&Case { documents: vec![vec![(20, 17), (9, 9)], vec![(30, 30), (12, 3)]], ..without_choice() });
}

#[test]
fn dropout() {
    check(&Case { options: StepOptions { dropout: 0.2, ..PLAIN }, ..without_choice() });
}

#[test]
fn noise_on_the_embeddings() {
    check(&Case { options: StepOptions { neftune_alpha: 5.0, ..PLAIN }, ..without_choice() });
}

#[test]
fn the_load_balancing_loss() {
    check(&Case { options: StepOptions { aux_coefficient: Some(0.1), ..PLAIN }, ..case(Family::Qwen3Next) });
}

#[test]
fn a_step_gives_the_same_bits_whatever_comes_first() {
    let options = StepOptions { dropout: 0.2, aux_coefficient: Some(0.1), ..PLAIN };
    let folder = tempfile::tempdir().unwrap();
    let case = Case { options, ..case(Family::Qwen3Next) };
    assert!(case.repeats([&Gpu::emulated(0), &Gpu::emulated(1)], folder.path()).unwrap());
}
