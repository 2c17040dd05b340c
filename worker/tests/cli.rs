//! The binary as a user meets it: exit codes, what is on standard output, what is on standard error.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};

fn brightrun(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_brightrun")).args(arguments).current_dir(folder).output().unwrap()
}

fn job(folder: &Path, dataset: &str, hyperparameters: Value) {
    let job = json!({ "input": { "job_id": "j", "dataset_url": dataset, "hyperparameters": hyperparameters } });
    fs::write(folder.join("job.json"), job.to_string()).unwrap();
}

#[test]
fn a_request_that_is_wrong_ends_with_2_and_all_its_problems() {
    let folder = tempfile::tempdir().unwrap();
    job(folder.path(), "nowhere.jsonl", json!({ "base_model": "Qwen/none", "lora_rank": 0 }));
    let output = brightrun(folder.path(), &["train", "job.json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("hyperparameters.lora_rank: must be a whole number from 1 to 1024, not 0"), "{text}");

    job(folder.path(), "nowhere.jsonl", json!({ "base_model": "Qwen/none" }));
    let output = brightrun(folder.path(), &["train", "job.json", "--json"]);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), result["problems"].as_array().unwrap().len()), (Some(2), 2), "{result}");
    assert!(result["error"].as_str().unwrap().contains("there is no file \"nowhere.jsonl\""), "{result}");
    assert!(!folder.path().join("brightrun-output").exists());
}

#[test]
fn a_job_file_that_is_not_there_or_no_text_ends_with_2() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("job.json"), b"\xff\xfe").unwrap();
    for name in ["job.json", "absent.json", "."] {
        let output = brightrun(folder.path(), &["train", name]);
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("cannot read the job file"), "{name}");
    }
}

#[test]
fn a_dataset_with_bad_lines_ends_with_1_and_the_line_in_the_error() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data.jsonl"), "\n{\"turns\": 3}\n").unwrap();
    job(folder.path(), "data.jsonl", json!({ "base_model": "brightrun/demo-moe" }));
    let output = brightrun(folder.path(), &["train", "job.json", "--json"]);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &result["status"]), (Some(1), &json!("failed")));
    assert!(result["error"].as_str().unwrap().contains("data.jsonl: line 2: "), "{result}");
}

#[test]
fn the_parameter_table_is_printed() {
    let output = brightrun(Path::new("."), &["parameters"]);
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("| `num_epochs`, `epochs` |"));
}
