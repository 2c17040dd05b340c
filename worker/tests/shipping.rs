//! The job files that are shipped, given to the program as it is: its door takes them, and those for trying out run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use brightrun_tests::platform::{Platform, Status, Urls};
use serde_json::{Value, json};

/// Long enough for every machine; nothing is measured with it.
const PATIENCE: Duration = Duration::from_secs(900);

fn shipped(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn read(name: &str) -> Value {
    serde_json::from_slice(&fs::read(shipped(name)).unwrap()).unwrap()
}

fn brightrun(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_brightrun")).args(arguments).current_dir(folder).output().unwrap()
}

/// What the door says to a job file.
fn at_the_door(job: &Path) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let output = brightrun(&["validate", "demo:conversations", "--job", job.to_str().unwrap()], folder.path());
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// The tests that the Hub sends, as job files.
fn tests_of_the_hub(folder: &Path) -> Vec<PathBuf> {
    let tests = read(".runpod/tests.json")["tests"].clone();
    let write = |test: &Value| {
        let path = folder.join(test["name"].as_str().unwrap());
        fs::write(&path, json!({ "input": test["input"] }).to_string()).unwrap();
        path
    };
    tests.as_array().unwrap().iter().map(write).collect()
}

#[test]
fn every_job_that_is_shipped_passes_the_door_and_has_no_field_without_effect() {
    let folder = tempfile::tempdir().unwrap();
    let mut jobs = ["runpod/job.json", "runpod/test_input.json", "runpod/demo_job.json"].map(shipped).to_vec();
    jobs.extend(tests_of_the_hub(folder.path()));
    assert!(jobs.len() >= 5);
    for job in jobs {
        let (code, said) = at_the_door(&job);
        assert!(code == Some(0) && !said.contains("is not a known field"), "{}: {said}", job.display());
    }
    let wrong = folder.path().join("wrong.json");
    fs::write(&wrong, r#"{"input": {"dataset_url": "demo:conversations", "hyperparameters": {"r": "big"}}}"#).unwrap();
    assert_eq!(at_the_door(&wrong).0, Some(2));
}

#[test]
fn the_job_for_trying_out_is_trained_on_a_processor() {
    let folder = tempfile::tempdir().unwrap();
    let job = shipped("runpod/test_input.json");
    let output = brightrun(&["train", job.to_str().unwrap(), "--output", "out"], folder.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(folder.path().join("out/adapter/adapter_model.safetensors").is_file());
}

/// The Hub starts the image's command with its own addresses and what `tests.json` sets, sends the jobs, and fails a release
/// when one of them fails, or when the process ends.
#[tokio::test]
async fn the_hubs_tests_pass() {
    let (platform, volume) = (Platform::start().unwrap(), tempfile::tempdir().unwrap());
    let tests = read(".runpod/tests.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_brightrun"));
    command.arg("worker").env_clear().envs(platform.environment(Urls::Hub)).current_dir(volume.path());
    for variable in tests["config"]["env"].as_array().unwrap() {
        let value = variable["value"].as_str().unwrap();
        // Every run of this test has a folder of its own; in the image it is empty, too.
        let value = value.replacen("/tmp", volume.path().to_str().unwrap(), 1);
        command.env(variable["key"].as_str().unwrap(), value);
    }
    let mut worker = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for test in tests["tests"].as_array().unwrap() {
        let job = platform.submit(test["input"].clone());
        let view = platform.until_status(&job, Status::Completed, PATIENCE).await.unwrap();
        assert_eq!(view.output.unwrap()["status"], "success");
    }
    assert!(worker.try_wait().unwrap().is_none(), "a worker that ends has failed");
    worker.kill().unwrap();
    worker.wait().unwrap();
}
