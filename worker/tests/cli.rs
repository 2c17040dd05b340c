//! The binary as a user meets it: exit codes, what is on standard output, what is on standard error.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use flate2::{Compression, write::GzEncoder};
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
    let error = result["error"].as_str().unwrap();
    assert!(error.contains("data.jsonl, ") && error.contains("line 2: "), "{result}");
    assert!(error.contains("brightrun-output/j/dataset_report.json"), "{result}");
    let report = fs::read(folder.path().join("brightrun-output/j/dataset_report.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&report).unwrap()["ready"], false);
}

#[test]
fn the_parameter_table_is_printed() {
    let output = brightrun(Path::new("."), &["parameters"]);
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("| `num_epochs`, `epochs` |"));
}

/// A dataset of two conversations, one of them on two lines.
const DATASET: &str = r#"{"conversation_id": "a", "turns": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]}
{"conversation_id": "b", "turns": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "Slowly."}]}
{"conversation_id": "b", "turns": [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "Now."}]}
"#;

#[test]
fn validate_describes_a_dataset_and_ends_with_0() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data.jsonl"), DATASET).unwrap();
    let output =
        brightrun(folder.path(), &["validate", "data.jsonl", "--report", "report.json", "--dump", "dump.jsonl"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    for part in ["Dataset     data.jsonl", "format turns", "rough", "| ###", "Ready  "] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let report: Value = serde_json::from_slice(&fs::read(folder.path().join("report.json")).unwrap()).unwrap();
    assert_eq!((&report["rough_tokens"], &report["training"]["examples"]), (&json!(true), &json!(3)));
    assert_eq!(report["statistics"]["total_conversations"], 2);

    let dump = fs::read_to_string(folder.path().join("dump.jsonl")).unwrap();
    let lines: Vec<Value> = dump.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(
        (&lines[2]["line"], &lines[2]["conversation"], &lines[2]["cut_turns"]),
        (&json!(3), &json!("b"), &json!(0))
    );
    assert_eq!(lines[2]["text"], "<|im_start|>user\nWhen?<|im_end|>\n<|im_start|>assistant\nNow.<|im_end|>\n");
    let count = |field: &str| lines[2][field].as_array().unwrap().len();
    assert_eq!(count("input_ids"), count("assistant_mask"));
}

#[test]
fn validate_decompresses_a_file_and_dumps_the_one_for_validation_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(DATASET.as_bytes()).unwrap();
    fs::write(folder.path().join("data.jsonl.gz"), encoder.finish().unwrap()).unwrap();
    let held_out = DATASET.lines().next().unwrap().replace("\"a\"", "\"z\"");
    fs::write(folder.path().join("held-out.jsonl"), held_out).unwrap();
    let job = json!({ "input": { "dataset_url": "data.jsonl.gz", "validation_url": "held-out.jsonl",
        "base_model": "brightrun/demo-moe" } });
    fs::write(folder.path().join("job.json"), job.to_string()).unwrap();
    let arguments = ["validate", "data.jsonl.gz", "--job", "job.json", "--dump", "dump.jsonl"];
    let output = brightrun(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let dump = fs::read_to_string(folder.path().join("dump.jsonl")).unwrap();
    let lines: Vec<Value> = dump.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let from: Vec<_> = lines.iter().map(|line| (line["file"].as_str().unwrap(), line["line"].as_u64())).collect();
    let first = "dataset-data.jsonl.gz";
    assert_eq!(from, [(first, Some(1)), (first, Some(2)), (first, Some(3)), ("held-out.jsonl", Some(1))]);
}

#[test]
fn validate_takes_a_job_and_prints_the_report_as_json() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data.jsonl"), DATASET).unwrap();
    job(folder.path(), "data.jsonl", json!({ "base_model": "brightrun/demo-moe", "batch_size": 1, "epochs": 5 }));
    let arguments = ["validate", "data.jsonl", "--job", "job.json", "--max-seq-length", "64", "--json", "--cache", "c"];
    let output = brightrun(folder.path(), &arguments);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["ready"], &report["rough_tokens"]), (&json!(true), &json!(false)));
    assert_eq!((&report["settings"]["max_seq_length"], &report["settings"]["num_epochs"]), (&json!(64), &json!(5)));
    assert!(folder.path().join("c").is_dir() && !folder.path().join("brightrun-cache").exists());
}

#[test]
fn validate_ends_with_1_for_fatal_findings_and_what_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data.jsonl"), format!("{DATASET}{{\"turns\": \"\u{1b}[2J\"}}\n")).unwrap();
    let output = brightrun(folder.path(), &["validate", "data.jsonl"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("line 4: ") && text.lines().next_back().unwrap().starts_with("Refused  "), "{text}");
    assert!(!text.contains('\u{1b}'));

    let output = brightrun(folder.path(), &["validate", "absent.jsonl"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8(output.stderr).unwrap().contains("absent.jsonl"));
    let output = brightrun(folder.path(), &["validate", "absent.jsonl", "--json"]);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &result["ready"]), (Some(1), &json!(false)));
}

#[test]
fn validate_ends_with_2_for_a_wrong_command() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data.jsonl"), DATASET).unwrap();
    fs::write(folder.path().join("job.json"), "{}").unwrap();
    for arguments in [
        &["validate"][..],
        &["validate", "data.jsonl", "--model", "nowhere"],
        &["validate", "data.jsonl", "--job", "job.json"],
        &["validate", "data.jsonl", "--max-seq-length", "1"],
        &["validate", "ftp://host/data.jsonl"],
    ] {
        let output = brightrun(folder.path(), arguments);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{arguments:?}");
    }
}

/// A reader that stops reading is no reason to panic.
#[test]
#[cfg(unix)]
fn a_reader_that_has_gone_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data.jsonl"), DATASET).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_brightrun"));
    let child =
        command.args(["validate", "data.jsonl"]).current_dir(folder.path()).stdout(writer).stderr(Stdio::piped());
    let output = child.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(!String::from_utf8(output.stderr).unwrap().contains("panic"));
}
