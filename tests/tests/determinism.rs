//! The same run gives the same bytes, on any number of threads.

use std::path::{Path, PathBuf};

use brightrun_tests::steps::{PLAIN, gradients};
use brightrun_tests::toy::{Shape, Toy};
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::batch::MicroBatch;
use brightrun_trainer::clock::Still;
use brightrun_trainer::config::Family;
use brightrun_trainer::demo;
use brightrun_trainer::events::{Event, EventSink};
use brightrun_trainer::lora::{self, AdapterDtype, AdapterFormat, Dialect};
use brightrun_trainer::optim::{Optimizer, OptimizerKind, OptimizerOptions};
use brightrun_trainer::run::{self, Parameters, RunEnd, RunSpec, Surroundings};
use brightrun_trainer::step::StepOptions;
use brightrun_trainer::stop::Stop;

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

struct Deaf;

impl EventSink for Deaf {
    fn emit(&self, _: &Event) {}
}

/// Every file that a whole run of the demo leaves, by name; from the job's parameters on, nothing is left out.
fn whole_run(inputs: &Path, seed: u64, threads: usize) -> Vec<(PathBuf, Vec<u8>)> {
    let output = tempfile::tempdir().unwrap();
    let (model, dataset) = (inputs.join("base"), inputs.join("conversations.jsonl"));
    let parameters = Parameters { max_steps: Some(2), validation_split: 0.1, seed, ..Parameters::default() };
    let spec = RunSpec::new("twice", &model, dataset, output.path().to_owned(), parameters);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let ended = pool.install(|| run::run(&spec, &Surroundings::new(&Deaf, &Still, &Stop::default()))).unwrap();
    assert!(matches!(ended, RunEnd::Finished(_)));
    std::fs::remove_dir_all(output.path().join("cache")).unwrap();
    let mut files = Vec::new();
    for folder in [output.path().to_owned(), output.path().join("adapter")] {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
            let name = entry.path().strip_prefix(output.path()).unwrap().to_owned();
            files.push((name, std::fs::read(entry.path()).unwrap()));
        }
    }
    files.sort();
    files
}

#[test]
fn whole_runs_leave_the_same_bytes() {
    let inputs = tempfile::tempdir().unwrap();
    demo::write_model(&inputs.path().join("base")).unwrap();
    demo::write_dataset(&inputs.path().join("conversations.jsonl")).unwrap();
    let first = whole_run(inputs.path(), 3, 1);
    let second = whole_run(inputs.path(), 3, 2);
    let adapter = Path::new("adapter/adapter_model.safetensors");
    assert!(first.len() > 10 && first.len() == second.len(), "{first:?}");
    for ((name, first), (other, second)) in first.iter().zip(second) {
        assert!((name, first) == (&other, &second), "{}: two runs differ", name.display());
    }
    let adapter_of = |files: Vec<(PathBuf, Vec<u8>)>| files.into_iter().find(|(name, _)| name == adapter).unwrap().1;
    assert!(adapter_of(first) != adapter_of(whole_run(inputs.path(), 4, 1)), "the seed of the run does nothing");
}
