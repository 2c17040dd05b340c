//! `brightrun estimate` as a user meets it.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};

/// Qwen3-Next-80B-A3B as published.
const CONFIG: &str = include_str!("fixtures/qwen3_next_80b/config.json");

fn brightrun(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_brightrun")).args(arguments).current_dir(folder).output().unwrap()
}

/// A folder with a job for the 80B, whose dataset is not here.
fn job(hyperparameters: Value, gpu: Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("model")).unwrap();
    fs::write(folder.path().join("model/config.json"), CONFIG).unwrap();
    let mut parameters = json!({ "base_model": "model" });
    parameters.as_object_mut().unwrap().extend(hyperparameters.as_object().unwrap().clone());
    let input =
        json!({ "job_id": "j", "dataset_url": "absent.jsonl", "hyperparameters": parameters, "gpu_config": gpu });
    fs::write(folder.path().join("job.json"), json!({ "input": input }).to_string()).unwrap();
    folder
}

fn estimate(folder: &Path, more: &[&str]) -> (Option<i32>, Value) {
    let output = brightrun(folder, &[&["estimate", "job.json", "--json"], more].concat());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {text}")))
}

fn plan<'a>(estimate: &'a Value, name: &str) -> &'a Value {
    let named = |plan: &&Value| plan["machine"]["name"] == name;
    estimate["plans"].as_array().unwrap().iter().find(named).unwrap()
}

#[test]
fn the_80b_is_planned_from_its_config_alone_for_every_card() {
    let folder = job(json!({}), json!({ "gpu_type": "H100", "num_gpus": 1, "cost_per_gpu_hour": 3.35 }));
    let (code, estimate) = estimate(folder.path(), &["--tokens", "2000000", "--examples", "2000"]);
    assert_eq!((code, &estimate["fits"], &estimate["asked"]), (Some(0), &json!(true), &json!("H100")));
    let h100 = plan(&estimate, "H100");
    assert_eq!(h100["parameters"]["base"], 79_674_391_296u64);
    assert_eq!(h100["machine"]["usd_per_hour"], 3.35);
    assert_eq!((&h100["basis"], &plan(&estimate, "RTX 4090")["fits"]), (&json!("emulated"), &json!(false)));
    let cost = h100["time"]["usd"].as_f64().unwrap() / h100["time"]["total_seconds"].as_f64().unwrap() * 3600.0;
    assert!((cost - 3.35).abs() < 1e-6, "{cost}");
    assert!(!folder.path().join("brightrun-cache").exists());
}

#[test]
fn a_card_that_is_too_small_ends_with_3_and_says_what_would_fit() {
    let folder = job(json!({ "targets": "all", "expert_rank": 16 }), json!({}));
    let (code, estimate) = estimate(folder.path(), &["--gpu", "nvidia a100 80gb"]);
    assert_eq!((code, &estimate["asked"]), (Some(3), &json!("A100")));
    let suggestions = estimate["refusal"]["suggestions"].as_array().unwrap();
    let change = |text: &str| suggestions.iter().any(|s| s["change"].as_str().unwrap().starts_with(text));
    assert!(change("targets \"default\"") && change("RTX PRO 6000") || change("H200"), "{suggestions:?}");
    let output = brightrun(folder.path(), &["estimate", "job.json", "--gpu", "A100"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["machine ", "H200", "routed experts", "time is computed", "does not fit on A100", "What would fit"] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn a_wrong_command_ends_with_2() {
    let folder = job(json!({}), json!({}));
    for arguments in [
        &["estimate"][..],
        &["estimate", "absent.json"],
        &["estimate", "job.json", "--gpu", "abacus"],
        &["estimate", "job.json", "--model", "nowhere"],
        &["estimate", "job.json", "--examples", "0"],
    ] {
        let output = brightrun(folder.path(), arguments);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{arguments:?}");
    }
}

#[test]
fn the_demo_is_planned_with_its_own_dataset() {
    let folder = tempfile::tempdir().unwrap();
    let input =
        json!({ "dataset_url": "demo:conversations", "hyperparameters": { "base_model": "brightrun/demo-moe" } });
    fs::write(folder.path().join("job.json"), json!({ "input": input }).to_string()).unwrap();
    let (code, estimate) = estimate(folder.path(), &["--gpu", "cpu", "--cache", "c"]);
    assert_eq!(code, Some(0), "{estimate}");
    let here = estimate["plans"].as_array().unwrap().last().unwrap();
    assert_eq!((&here["basis"], &here["work"]["assumed"]), (&json!("measured"), &json!(false)));
    assert!(here["work"]["steps"].as_u64().unwrap() > 0 && here["time"]["usd"].is_null());
    fs::write(folder.path().join("bad.jsonl"), "{\n").unwrap();
    let input = json!({ "dataset_url": "bad.jsonl", "hyperparameters": { "base_model": "brightrun/demo-moe" } });
    fs::write(folder.path().join("job.json"), json!({ "input": input }).to_string()).unwrap();
    let output = brightrun(folder.path(), &["estimate", "job.json", "--cache", "c"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
}
