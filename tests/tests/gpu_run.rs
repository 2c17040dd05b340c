//! Whole runs on an emulated GPU: what they learn is what the processor learns, what they write is proven and read back, and one
//! that was interrupted goes on as if nothing had happened.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;

use brightrun_kernels::gpu::Gpu;
use brightrun_kernels::gpu_check::FAMILIES;
use brightrun_trainer::clock::Still;
use brightrun_trainer::demo;
use brightrun_trainer::evaluate::{self, Part, Subject};
use brightrun_trainer::events::{Event, EventSink, StepMetrics};
use brightrun_trainer::lora::AdapterDtype;
use brightrun_trainer::optim::OptimizerKind;
use brightrun_trainer::run::{self, Data, DataSpec, GpuToUse, Parameters, RunEnd, RunSpec, RunSummary, Surroundings};
use brightrun_trainer::schedule::WarmUp;
use brightrun_trainer::stop::{Stop, StopKind};
use brightrun_trainer::weights::BasePrecision;
use serde_json::Value;

/// Keeps the steps, and asks for a pause when so many are taken.
struct Steps<'a> {
    taken: Mutex<Vec<StepMetrics>>,
    pause_after: usize,
    stop: &'a Stop,
}

impl EventSink for Steps<'_> {
    fn emit(&self, event: &Event) {
        let Event::Step(metrics) = event else { return };
        let mut taken = self.taken.lock().unwrap();
        taken.push(metrics.clone());
        if taken.len() == self.pause_after {
            self.stop.ask(StopKind::Pause);
        }
    }
}

/// Where a run computes.
#[derive(Clone, Copy, PartialEq)]
enum On {
    Processor,
    Gpu,
}

fn spec(folder: &Path, name: &str, parameters: Parameters) -> RunSpec {
    RunSpec {
        cache_dir: folder.join("cache"),
        ..RunSpec::new(name, &folder.join("base"), folder.join("conversations.jsonl"), folder.join(name), parameters)
    }
}

fn parameters() -> Parameters {
    Parameters {
        batch_size: 1,
        max_steps: Some(2),
        max_seq_length: 48,
        validation_split: 0.03,
        eval_steps: Some(2),
        learning_rate: 1e-3,
        warmup: WarmUp::Steps(0),
        adapter_dtype: AdapterDtype::F32,
        ..Parameters::default()
    }
}

/// Runs until it ends or, after so many steps, is paused.
fn run_on(on: On, spec: &RunSpec, pause_after: usize) -> (brightrun_trainer::Result<RunEnd>, Vec<StepMetrics>) {
    let stop = Stop::default();
    let steps = Steps { taken: Mutex::default(), pause_after, stop: &stop };
    // Another order of threads each time.
    let seed = pause_after as u64;
    let open = move || Ok(Gpu::emulated(seed));
    let gpu = (on == On::Gpu).then_some(GpuToUse { open: &open, self_test: &FAMILIES[..4] });
    let ended = run::run(spec, &Surroundings { gpu, ..Surroundings::new(&steps, &Still, &stop) });
    (ended, steps.taken.into_inner().unwrap())
}

fn finished(ended: brightrun_trainer::Result<RunEnd>) -> RunSummary {
    match ended.unwrap() {
        RunEnd::Finished(summary) => *summary,
        paused @ RunEnd::Paused { .. } => panic!("{paused:?}"),
    }
}

fn demo() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    demo::write_model(&folder.path().join("base")).unwrap();
    demo::write_dataset(&folder.path().join("conversations.jsonl")).unwrap();
    folder
}

#[test]
fn a_run_on_a_gpu_learns_what_one_on_the_processor_does() {
    let folder = demo();
    let [expected, found] = [(On::Processor, "processor"), (On::Gpu, "gpu")].map(|(on, name)| {
        let (ended, steps) = run_on(on, &spec(folder.path(), name, parameters()), 0);
        (finished(ended), steps)
    });
    assert_eq!((expected.1.len(), found.1.len()), (2, 2));
    for (expected, found) in expected.1.iter().zip(&found.1) {
        assert_eq!((found.tokens, found.target_tokens), (expected.tokens, expected.target_tokens));
        let ratio = found.loss / expected.loss;
        assert!((ratio - 1.0).abs() < 1e-2, "step {}: {} and {}", found.step, found.loss, expected.loss);
        let (found, expected) = (found.experts.unwrap(), expected.experts.unwrap());
        assert!((found.router_entropy / expected.router_entropy - 1.0).abs() < 1e-2, "{found:?} {expected:?}");
    }
    let [expected, found] = [expected.0, found.0].map(|summary| summary.validation_loss.unwrap());
    assert!((found / expected - 1.0).abs() < 1e-2, "{found} and {expected}");
    let result: Value = serde_json::from_slice(&fs::read(folder.path().join("gpu/result.json")).unwrap()).unwrap();
    // Whoever measures the adapter there later finds what the run has found, to the bit.
    let (base, adapter) = (folder.path().join("base"), folder.path().join("gpu/adapter"));
    let open = || Ok(Gpu::emulated(3));
    let gpu = Some(GpuToUse { open: &open, self_test: &FAMILIES[..1] });
    let mut subject = Subject::open(&base, Some(&adapter), &BasePrecision::nf4(), gpu, 1).unwrap();
    let spec = spec(folder.path(), "gpu", parameters());
    let data = DataSpec {
        dataset: &spec.dataset,
        validation_dataset: None,
        model_dir: &base,
        stand_in_model: false,
        cache_dir: &spec.cache_dir,
        parameters: &spec.parameters,
    };
    let data = Data::read(&data, &|_, _| ControlFlow::Continue(())).unwrap();
    let measured = evaluate::evaluate(&mut subject, &data, Part::Validation, true, &|_, _| {}).unwrap();
    assert_eq!(measured.loss, found);
    let proof = &result["proof"];
    assert_eq!(proof["base"]["sha256_before"], proof["base"]["sha256_after"], "{proof:#}");
    assert!(proof["ops"][0]["op"].as_str().is_some_and(|op| op.ends_with(" on a GPU")), "{proof:#}");
}

#[test]
fn a_run_that_was_paused_goes_on_as_if_nothing_had_happened() {
    let folder = demo();
    let parameters = Parameters { optimizer: OptimizerKind::AdamW8bit, ..parameters() };
    let whole = spec(folder.path(), "whole", parameters.clone());
    let (ended, expected) = run_on(On::Gpu, &whole, 0);
    finished(ended);
    let parts = spec(folder.path(), "parts", parameters);
    let paused = run_on(On::Gpu, &parts, 1).0.unwrap();
    assert!(matches!(paused, RunEnd::Paused { step: 1, .. }), "{paused:?}");
    let elsewhere = run_on(On::Processor, &parts, 0).0.unwrap_err().to_string();
    assert!(elsewhere.contains("computed on: GPU then, not given now"), "{elsewhere}");
    let (ended, steps) = run_on(On::Gpu, &parts, 7);
    finished(ended);
    assert_eq!(steps.len(), 1);
    let numbers = |step: &StepMetrics| (step.loss.to_bits(), step.gradient_norm.to_bits(), step.experts);
    assert_eq!(numbers(&steps[0]), numbers(&expected[1]));
    let adapter = |name: &str| fs::read(folder.path().join(name).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(adapter("whole") == adapter("parts"), "the adapters differ");
}
