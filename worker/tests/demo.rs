//! The README's job as a user runs it, and jobs with what else can be set: each of them ends well and proves itself.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};

fn brightrun(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_brightrun")).args(arguments).current_dir(folder).output().unwrap()
}

fn done(folder: &Path, arguments: &[&str]) -> Value {
    let output = brightrun(folder, &[arguments, &["--json"]].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}\n{text}\n{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn file(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The numbers of one kind of line in `metrics.jsonl`.
fn measured(output: &Path, event: &str, field: &str) -> Vec<f64> {
    let text = fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["event"] == event).map(|line| line[field].as_f64().unwrap()).collect()
}

#[test]
fn the_demo_learns_what_generalises_and_is_judged_by_the_platforms_formula() {
    let folder = tempfile::tempdir().unwrap();
    let job = concat!(env!("CARGO_MANIFEST_DIR"), "/../runpod/demo_job.json");
    let trained = done(folder.path(), &["train", job, "--output", "out"]);
    let output = folder.path().join("out");

    let validation = measured(&output, "evaluation", "loss");
    assert!(validation.last() < validation.first(), "{validation:?}");
    let losses = measured(&output, "step", "smoothed_loss");
    let (first, last) = (losses[0], *losses.last().unwrap());
    let reduction = (first - last) / first * 100.0;
    let levels = [(50.0, 5), (30.0, 4), (15.0, 3), (5.0, 2)];
    let mut stars = levels.iter().find(|(least, _)| reduction > *least).map_or(1, |(_, stars)| *stars);
    if validation.last().unwrap() - last > 0.5 {
        stars = (stars - 1).max(2);
    }
    let result = file(&output.join("result.json"));
    assert_eq!((&result["quality"]["overall_score"], &trained["stars"]), (&json!(stars), &json!(stars)));
    assert_eq!((&result["proven"], &result["status"]), (&json!(true), &json!("success")));
    assert_eq!(trained["validation_loss"].as_f64(), validation.last().copied());
    let picture = fs::read(output.join("loss_curve.png")).unwrap();
    assert!(picture.starts_with(b"\x89PNG\r\n") && picture.len() > 10_000);
    assert!(!output.join("checkpoints").exists(), "what checkpoints hold is delivered");

    let question = ["generate", "--base", "demo", "--adapter", "out/adapter", "--prompt", "My chain squeaks."];
    let answer = done(folder.path(), &[&question[..], &["--max-new-tokens", "32"]].concat())["answers"][0].clone();
    assert_ne!(answer["base"]["text"], answer["adapter"]["text"]);
}

#[test]
fn jobs_with_everything_that_can_be_set_end_well() {
    let folder = tempfile::tempdir().unwrap();
    let short = json!({
        "base_model": "brightrun/demo-moe", "max_steps": 4, "batch_size": 2, "lora_rank": 4, "learning_rate": 0.005,
        "warmup_steps": 1, "validation_split": 0.1, "eval_steps": 2,
    });
    let jobs = [
        ("plus", json!({ "loraplus_lr_ratio": 8, "neftune_noise_alpha": 5, "targets": "all" })),
        (
            "small",
            json!({ "optimizer": "adamw8bit", "gradient_accumulation_steps": 2, "micro_batch_tokens": 64,
            "max_seq_length": 64, "recompute": false }),
        ),
        (
            "whole",
            json!({ "base_precision": "full", "adapter_dtype": "f32", "router_aux_loss": true, "packing": false }),
        ),
        ("fused", json!({ "adapter_dialect": "fused", "targets": "all", "use_rslora": true, "schedule": "linear" })),
        ("on", json!({ "init_adapter": "plus/adapter", "validation_split": 0, "eval_steps": null })),
    ];
    for (name, changes) in jobs {
        let mut hyperparameters = short.clone();
        hyperparameters.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let input = json!({ "job_id": name, "dataset_url": "demo:conversations", "hyperparameters": hyperparameters });
        fs::write(folder.path().join("job.json"), json!({ "input": input }).to_string()).unwrap();
        let trained = done(folder.path(), &["train", "job.json", "--output", name]);
        let result = file(&folder.path().join(name).join("result.json"));
        assert_eq!((&result["proven"], &trained["steps"]), (&json!(true), &json!(4)), "{name}: {}", result["proof"]);
    }
    // One that goes on begins where the other ended, not at the base.
    let first = |name: &str| measured(&folder.path().join(name), "step", "loss")[0];
    assert!(first("on") < first("whole") - 0.2, "{} {}", first("on"), first("whole"));
}
