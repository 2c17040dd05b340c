//! The same run gives the same bytes, on any number of threads.

use std::path::Path;

use brightrun_tests::steps::{PLAIN, gradients};
use brightrun_tests::toy::{Shape, Toy};
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::batch::MicroBatch;
use brightrun_trainer::config::Family;
use brightrun_trainer::lora::{self, AdapterDtype, AdapterFormat, Dialect};
use brightrun_trainer::optim::{Optimizer, OptimizerKind, OptimizerOptions};
use brightrun_trainer::step::StepOptions;

/// The adapter's file after three steps of two micro-batches each, on a pool of its own.
fn run(dir: &Path, family: Family, kind: OptimizerKind, seed: u64, threads: usize) -> Vec<u8> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let toy = Toy::write(dir, &Shape::tiny(family), 1).unwrap();
        let plan = toy.plan(toy.every_linear()).unwrap();
        let adapters = Adapters::new(&toy.config, &plan, 5).unwrap();
        let model = toy.model(&adapters).unwrap();
        let mut optimizer = Optimizer::new(&adapters, OptimizerOptions { kind, ..OptimizerOptions::default() });
        let options = StepOptions { dropout: 0.1, seed, aux_coefficient: Some(0.01), ..PLAIN };
        for step in 0..3 {
            let batches = [[70, 30], [129, 5]].map(|lengths| {
                MicroBatch::from_sequences(&toy.sequences(&lengths, 0.8, step + lengths[0] as u64)).unwrap()
            });
            let outcome = gradients(&model, &adapters, &batches, &options).unwrap();
            optimizer.step(&outcome.gradients, 1e-2).unwrap();
        }
        let format = AdapterFormat { dialect: Dialect::PerExpert, dtype: AdapterDtype::F32 };
        let out = dir.join("adapter");
        lora::write(&out, &toy.config, &plan, &adapters.tensors().unwrap(), format, "toy").unwrap();
        std::fs::read(out.join(lora::TENSORS_FILE)).unwrap()
    })
}

#[test]
fn runs_are_byte_identical_on_one_thread_and_on_two() {
    for family in Family::ALL {
        for kind in [OptimizerKind::AdamW, OptimizerKind::AdamW8bit] {
            let run = |seed: u64, threads: usize| {
                let dir = tempfile::tempdir().unwrap();
                run(dir.path(), family, kind, seed, threads)
            };
            let first = run(3, 1);
            assert!(first == run(3, 1), "{family:?} {kind:?}: two runs differ");
            assert!(first == run(3, 2), "{family:?} {kind:?}: one thread and two differ");
            assert!(first != run(4, 1), "{family:?} {kind:?}: the seed of the dropout does nothing");
        }
    }
}
