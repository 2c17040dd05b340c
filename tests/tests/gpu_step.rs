//! A whole step on an emulated GPU is that of the processor, as far as bf16 determines it.

use std::path::Path;

use brightrun_kernels::gpu::Gpu;
use brightrun_tests::golden::measure_on;
use brightrun_tests::gpu_step::{Case, cases};
use brightrun_tests::toy::Shape;
use brightrun_trainer::gpu::Offload;
use brightrun_trainer::step::StepOptions;

/// Cases by the parts of their names, so that tests run side by side.
fn check(part: &str) {
    let chosen: Vec<(&str, Case)> = cases().into_iter().filter(|(name, _)| name.contains(part)).collect();
    assert!(!chosen.is_empty(), "no case is called {part}");
    for (name, case) in chosen {
        let folder = tempfile::tempdir().unwrap();
        let differences = case.compare(&Gpu::emulated(0), folder.path()).unwrap();
        assert!(differences.len() > 20, "{name}: {differences:?}");
        let wrong: Vec<_> = differences.iter().filter(|found| !found.holds()).collect();
        assert!(wrong.is_empty(), "{name}: {wrong:#?}");
    }
}

#[test]
fn qwen3_next() {
    check("qwen3_next");
}

#[test]
fn qwen3_moe() {
    check("qwen3_moe");
}

#[test]
fn qwen2_moe() {
    check("qwen2_moe");
}

#[test]
fn a_base_that_is_not_quantised() {
    check("a base in bf16");
}

#[test]
fn padding_and_several_micro_batches() {
    check("padding and micro-batches");
}

#[test]
fn dropout() {
    check("dropout");
}

#[test]
fn noise_on_the_embeddings() {
    check("noise");
}

#[test]
fn the_load_balancing_loss() {
    check("load balancing");
}

#[test]
fn a_step_gives_the_same_bits_whatever_comes_first() {
    let (_, case) = cases().into_iter().find(|(name, _)| *name == "qwen3_next").unwrap();
    let options = StepOptions { dropout: 0.2, aux_coefficient: Some(0.1), ..case.options };
    let folder = tempfile::tempdir().unwrap();
    assert!(Case { options, ..case }.repeats([&Gpu::emulated(0), &Gpu::emulated(1)], folder.path()).unwrap());
}

#[test]
fn inputs_of_layers_come_back_from_the_host_as_they_were() {
    let (_, case) = cases().into_iter().find(|(name, _)| *name == "padding and micro-batches").unwrap();
    let on_gpu = Case { shape: Shape { layers: 4, ..case.shape }, ..case.clone() };
    let on_host = Case { offload: Offload::LayerInputs, ..on_gpu.clone() };
    let folder = tempfile::tempdir().unwrap();
    // Copies at once, and as late as they may be.
    let expected = on_gpu.bits(&Gpu::emulated(0), folder.path()).unwrap();
    for gpu in [0, 1].map(Gpu::emulated) {
        assert!(on_host.bits(&gpu, folder.path()).unwrap() == expected);
        assert_eq!((gpu.usage().now, gpu.usage().pinned), (0, 0), "all is given back");
    }
    let usage = |case: &Case| case.usage(&Gpu::emulated(1), folder.path()).unwrap();
    let (without, with) = (usage(&on_gpu), usage(&on_host));
    let input = 2 * case.shape.hidden as u64 * case.documents[0].iter().map(|(places, _)| *places as u64).sum::<u64>();
    assert_eq!((without.pinned, with.pinned), (0, 3 * input), "all but the last one");
    assert!(with.peak + input <= without.peak, "{with:?}, and without {without:?}");
}

/// The others take as long: `gpu-check --fixtures` runs them all.
#[test]
fn a_run_of_the_reference_implementation() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/qwen3_next_s1");
    let report = measure_on(&Gpu::emulated(0), &dir).unwrap();
    assert!(report.passed(), "{}", report.json("qwen3_next_s1"));
}
