//! Whole runs on the demo's model: what packing, the cache and a bad dataset do to them.

use std::{
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
};

use serde_json::{Value, json};

use super::*;
use crate::{
    clock::Still,
    dataset::report::REPORT_FILE,
    demo,
    events::{EventSink, StepMetrics},
    stop::Stop,
};

/// Keeps every event.
#[derive(Default)]
struct Recorder(Mutex<Vec<Event>>);

impl EventSink for Recorder {
    fn emit(&self, event: &Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event.clone());
    }
}

impl Recorder {
    fn steps(self) -> Vec<StepMetrics> {
        let step = |event| if let Event::Step(metrics) = event { Some(metrics) } else { None };
        self.0.into_inner().unwrap().into_iter().filter_map(step).collect()
    }
}

/// A short job on the demo's conversations, everything of it in one folder.
fn demo_job(folder: &Path, name: &str) -> RunSpec {
    let (model_dir, dataset) = (folder.join("base"), folder.join("conversations.jsonl"));
    demo::write_model(&model_dir).unwrap();
    demo::write_dataset(&dataset).unwrap();
    let parameters = Parameters {
        batch_size: 6,
        num_epochs: 1,
        max_steps: Some(3),
        lora_dropout: 0.0,
        learning_rate: 1e-3,
        warmup: crate::schedule::WarmUp::Steps(0),
        ..Parameters::default()
    };
    RunSpec {
        cache_dir: folder.join("cache"),
        warnings: vec!["told before".into()],
        ..RunSpec::new(name, &model_dir, dataset, folder.join(name), parameters)
    }
}

/// A run that nobody interrupts.
fn run_to_its_end(spec: &RunSpec, recorder: &Recorder) -> Result<RunSummary> {
    match run(spec, &Surroundings::new(recorder, &Still, &Stop::default()))? {
        RunEnd::Finished(summary) => Ok(*summary),
        paused @ RunEnd::Paused { .. } => panic!("{paused:?}"),
    }
}

fn report(spec: &RunSpec) -> Value {
    serde_json::from_slice(&fs::read(spec.output_dir.join(REPORT_FILE)).unwrap()).unwrap()
}

#[test]
fn packing_changes_neither_losses_nor_gradients() {
    let folder = tempfile::tempdir().unwrap();
    let mut packed = demo_job(folder.path(), "packed");
    let mut padded = demo_job(folder.path(), "padded");
    padded.parameters.packing = false;
    // AdamW's first updates are the learning rate with the gradient's sign, so rounding alone moves a parameter whose
    // gradient is next to nothing by twice that: small steps keep what is compared comparable.
    for spec in [&mut packed, &mut padded] {
        spec.parameters.learning_rate = 1e-5;
    }
    let outcomes = [&packed, &padded].map(|spec| {
        let recorder = Recorder::default();
        let summary = run_to_its_end(spec, &recorder).unwrap();
        (summary.validation_loss.unwrap(), recorder.steps())
    });
    let [(packed_validation, packed_steps), (padded_validation, padded_steps)] = outcomes;
    assert_eq!((packed_steps.len(), padded_steps.len()), (3, 3));
    for (a, b) in packed_steps.iter().zip(&padded_steps) {
        assert_eq!((a.tokens, a.target_tokens), (b.tokens, b.target_tokens));
        assert!((a.loss / b.loss - 1.0).abs() < 1e-5, "step {}: {} packed, {} padded", a.step, a.loss, b.loss);
        let norms = (a.gradient_norm, b.gradient_norm);
        assert!((norms.0 / norms.1 - 1.0).abs() < 1e-3, "step {}: {norms:?}", a.step);
    }
    assert!((packed_validation / padded_validation - 1.0).abs() < 1e-4, "{packed_validation} {padded_validation}");
    let (packed, padded) = (report(&packed), report(&padded));
    assert_eq!(packed["packing"]["padding_share"], 0.0);
    assert!(padded["packing"]["padding_share"].as_f64().unwrap() > 0.01, "{}", padded["packing"]);
    assert_eq!(packed["steps"], json!({ "per_epoch": 8, "total": 3 }));
    assert_eq!(packed["split"], padded["split"]);
}

#[test]
fn a_run_from_the_cache_is_the_same_run() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = ["first", "second"].map(|name| {
        let spec = demo_job(folder.path(), name);
        run_to_its_end(&spec, &Recorder::default()).unwrap();
        let read = |file: &str| fs::read(spec.output_dir.join(file)).unwrap();
        (read("adapter/adapter_model.safetensors"), read("metrics.jsonl"), read(REPORT_FILE))
    });
    assert!(bytes[0] == bytes[1], "two runs of one job differ");
    let stores = fs::read_dir(folder.path().join("cache")).unwrap().count();
    assert_eq!(stores, 1);
}

#[test]
fn a_refused_dataset_leaves_its_report_and_takes_no_step() {
    let folder = tempfile::tempdir().unwrap();
    let spec = demo_job(folder.path(), "refused");
    fs::write(&spec.dataset, "{\"turns\": 3}\n{\n").unwrap();
    let recorder = Recorder::default();
    let error = run_to_its_end(&spec, &recorder).unwrap_err().to_string();
    let place = spec.output_dir.join(REPORT_FILE);
    assert!(error.contains("conversations.jsonl, ") && error.contains("\n  line 1: "), "{error}");
    assert!(error.contains(&place.display().to_string()), "{error}");
    assert_eq!(report(&spec)["ready"], false);
    assert!(!spec.output_dir.join("adapter").exists() && recorder.steps().is_empty());
}

#[test]
fn a_validation_file_is_measured_and_nothing_is_split_off() {
    let folder = tempfile::tempdir().unwrap();
    let mut spec = demo_job(folder.path(), "held-out");
    let text = fs::read_to_string(&spec.dataset).unwrap();
    let path = folder.path().join("held-out.jsonl");
    // A conversation of the training file, and one line that is too long for an example.
    let long = json!({ "conversation_id": "long", "turns": [
        { "role": "user", "content": "Why? ".repeat(900) }, { "role": "assistant", "content": "Because." } ]});
    fs::write(&path, format!("{}\n{long}\n", text.lines().next().unwrap())).unwrap();
    spec.validation_dataset = Some(path);
    spec.parameters.max_steps = Some(1);
    let summary = run_to_its_end(&spec, &Recorder::default()).unwrap();
    assert!(summary.validation_loss.unwrap() > 0.0);
    let report = report(&spec);
    assert_eq!((&report["split"]["by"], &report["split"]["training"]["examples"]), (&json!("file"), &json!(48)));
    assert_eq!(report["split"]["validation"]["examples"], 2);
    let warned = |text: &str| summary.warnings.iter().any(|warning| warning.contains(text));
    assert!(warned("held-out.jsonl: 1 × conversation_in_both_files, first in line 1"), "{:#?}", summary.warnings);
    assert!(warned("held-out.jsonl: 1 of 2 examples exceed 2048 tokens"), "{:#?}", summary.warnings);
    assert_eq!(summary.dataset_report, spec.output_dir.join(REPORT_FILE));
}
