//! The checks themselves, on an emulated GPU.

use super::{Check, FAMILIES, Sizes, relative_error};
use crate::gpu::Gpu;

fn wrong(name: &str, gpu: &Gpu) -> Vec<Check> {
    let family = FAMILIES.iter().find(|family| family.name == name).expect("a family of that name");
    family.run(gpu, Sizes::Small, 17).unwrap().into_iter().filter(|check| !check.holds()).collect()
}

#[test]
fn products_hold_with_the_vendors_library_too() {
    for name in ["gemm", "linear"] {
        let wrong = wrong(name, &Gpu::emulated_with_library(0));
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

/// Runs a family in two orders of threads and blocks: everything holds, and not a bit depends on the order.
fn holds(name: &str) {
    holds_on(name, Gpu::emulated);
}

fn holds_on(name: &str, gpu: fn(u64) -> Gpu) {
    let family = FAMILIES.iter().find(|family| family.name == name).expect("a family of that name");
    let run = |order| family.run(&gpu(order), Sizes::Small, 17).unwrap();
    let first = run(0);
    assert!(!first.is_empty(), "{name} compares nothing");
    let wrong: Vec<_> = first.iter().filter(|check| !check.holds()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let digests = |checks: &[Check]| checks.iter().map(|check| check.digest).collect::<Vec<_>>();
    assert_eq!(digests(&first), digests(&run(1)), "{name}: another order of threads gives other bits");
}

/// What is computed in another way on an H100 or H200.
#[test]
fn products_hold_with_the_instructions_of_hopper_too() {
    let hopper = |order| {
        Gpu::emulated_as(order, |facts| {
            (facts.capability, facts.shared_per_block) = ((9, 0), 227 << 10);
            facts.shared_per_multiprocessor = 228 << 10;
        })
    };
    holds_on("experts", hopper);
}

macro_rules! families {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            holds(&stringify!($name).replace('_', " "));
        })*

        #[test]
        fn every_family_has_its_test() {
            let tested = [$(stringify!($name).replace('_', " ")),*];
            assert_eq!(FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>(), tested);
        }
    };
}

families! { noise, nf4, elements, norm, rope, swiglu, conv, gemm, linear, attention, delta_rule, router, experts, cross_entropy, adamw, grad_norm, quantize }

#[test]
fn nothing_and_no_number_are_not_right() {
    assert_eq!(relative_error(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
    assert_eq!(relative_error(&[3.0, 4.0], &[0.0, 0.0]), f64::INFINITY);
    assert_eq!(relative_error(&[0.0, 4.0], &[0.0, 5.0]), 0.2);
    for (found, expected) in [(&[][..], &[][..]), (&[1.0], &[1.0, 2.0]), (&[f64::NAN], &[1.0])] {
        assert_eq!(relative_error(found, expected), f64::INFINITY);
    }
}
