use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::*;

const SEED: u64 = 20_250_731;

fn failed(checks: &[OpCheck]) -> Vec<&OpCheck> {
    checks.iter().filter(|check| !check.holds()).collect()
}

#[test]
fn every_op_holds_for_many_seeds() {
    for seed in [0, 1, u64::MAX].into_iter().chain((0..20).map(|i| SEED + i)) {
        let checks = run(seed).unwrap();
        assert!(failed(&checks).is_empty(), "seed {seed}: {:#?}", failed(&checks));
    }
}

#[test]
fn every_op_of_training_is_there_and_every_result_once() {
    let checks = run(SEED).unwrap();
    let names: BTreeSet<(&str, &str)> = checks.iter().map(|check| (check.op, check.what)).collect();
    assert_eq!(names.len(), checks.len());
    for op in [
        "nf4",
        "fp8",
        "lora_linear",
        "frozen_linear",
        "moe routing",
        "moe router",
        "moe load balancing",
        "moe experts",
        "attention",
        "rope",
        "conv",
        "delta_rule",
        "norm",
        "swiglu",
        "shared expert's gate",
        "cross_entropy",
        "adamw",
        "grad_norm",
    ] {
        assert!(names.iter().any(|(name, _)| name.split(',').next() == Some(op)), "{op}");
    }
}

#[test]
fn it_is_quick() {
    run(SEED).unwrap();
    let start = Instant::now();
    run(SEED).unwrap();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

/// Runs with one value of every result changed, and expects every check to see it.
#[track_caller]
fn every_check_sees(change: impl Fn(&mut Vec<f64>, f64)) {
    let mut checks = Vec::new();
    compare_all(SEED, &mut |comparison| {
        let mut found = comparison.found.to_vec();
        let scale = comparison.expected.iter().fold(0.0, |greatest: f64, value| greatest.max(value.abs()));
        change(&mut found, scale);
        checks.push(OpCheck::of(&Comparison { found: &found, ..*comparison }));
    })
    .unwrap();
    assert!(!checks.is_empty());
    let blind: Vec<&OpCheck> = checks.iter().filter(|check| check.holds()).collect();
    assert!(blind.is_empty(), "{blind:#?}");
}

#[test]
fn a_wrong_value_is_seen_by_every_check() {
    every_check_sees(|found, scale| *found.last_mut().unwrap() += 1e-3 * scale);
    every_check_sees(|found, scale| found[0] -= 1e-3 * scale);
    every_check_sees(|found, _| *found.last_mut().unwrap() = f64::NAN);
    every_check_sees(|found, _| found[0] = f64::INFINITY);
}

#[test]
fn a_missing_result_is_seen_by_every_check() {
    every_check_sees(|found, _| found.truncate(found.len() - 1));
    every_check_sees(|found, _| found.clear());
}

fn error(found: &[f64], expected: &[f64]) -> f64 {
    Comparison { op: "op", what: "what", found, expected, tolerance: 0.0 }.relative_error()
}

#[test]
fn errors_are_relative_to_the_largest_expected_value() {
    assert_eq!(error(&[1.0, -8.0], &[1.0, -8.0]), 0.0);
    assert_eq!(error(&[1.0, -8.0], &[2.0, -8.0]), 0.125);
    assert_eq!(error(&[0.0, 0.0], &[0.0, 0.0]), 0.0);
    for (found, expected) in [
        (&[1e-30, 0.0][..], &[0.0, 0.0][..]),
        (&[f64::NAN, 1.0], &[1.0, 1.0]),
        (&[f64::NAN], &[f64::NAN]),
        (&[f64::INFINITY], &[f64::INFINITY]),
        (&[1.0], &[1.0, 1.0]),
        (&[], &[]),
    ] {
        assert_eq!(error(found, expected), f64::INFINITY, "{found:?} {expected:?}");
    }
    let check = OpCheck { op: "op", what: "what", max_relative_error: f64::NAN, tolerance: 1.0 };
    assert!(!check.holds());
}
