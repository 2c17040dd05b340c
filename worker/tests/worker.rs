//! `brightrun worker` as a process, against a simulator of the platform: what a container does.

use std::{
    fs,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use brightrun_tests::platform::{Options, Platform, Route, Status, Urls, answer_problems, order_problems};
use serde_json::{Value, json};

/// Long enough for every machine; nothing is measured with it.
const PATIENCE: Duration = Duration::from_secs(120);

fn platform() -> Platform {
    let options =
        Options { ping_milliseconds: 100, redispatch_after: Some(Duration::from_secs(2)), ..Options::default() };
    Platform::start_with(options).unwrap()
}

fn start(platform: &Platform, volume: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brightrun"));
    command.args(["worker", "--volume"]).arg(volume).envs(platform.environment(Urls::Full));
    for name in ["BUCKET_NAME", "BUCKET_ENDPOINT_URL", "S3_BUCKET", "MODEL_PATH", "MODEL_PATHS"] {
        command.env_remove(name);
    }
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn job(name: &str, changes: Value) -> Value {
    let mut hyperparameters = json!({
        "base_model": "brightrun/demo-moe", "max_steps": 120, "num_epochs": 1000, "eval_steps": 50, "batch_size": 1,
        "max_seq_length": 256, "lora_rank": 4, "save_steps": 5, "learning_rate": 0.01,
    });
    hyperparameters.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    json!({ "job_id": name, "dataset_url": "demo:conversations", "hyperparameters": hyperparameters })
}

fn terminate(mut worker: Child) -> ExitStatus {
    Command::new("kill").arg(worker.id().to_string()).status().unwrap();
    worker.wait().unwrap()
}

fn kill(mut worker: Child) {
    worker.kill().unwrap();
    worker.wait().unwrap();
}

fn adapter(volume: &Path, name: &str) -> Vec<u8> {
    fs::read(volume.join("brightrun/jobs").join(name).join("adapter/adapter_model.safetensors")).unwrap()
}

#[tokio::test]
async fn a_job_is_done_and_the_worker_goes_when_it_is_told_to() {
    let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
    let worker = start(&platform, volume.path());
    let id = platform.submit(job("j", json!({ "max_steps": 4 })));
    let view = platform.until_status(&id, Status::Completed, PATIENCE).await.unwrap();
    let files = view.output.unwrap()["model_files"].clone();
    assert!(files["adapter_model.safetensors"].as_str().unwrap().starts_with("file://"));
    assert!(terminate(worker).success());
    assert_eq!(platform.problems(), [""; 0]);
}

#[tokio::test]
async fn a_worker_that_is_killed_again_and_again_loses_nothing() {
    let (platform, volume, unbroken) = (platform(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let worker = start(&platform, unbroken.path());
    let id = platform.submit(job("j", json!({ "max_steps": 600 })));
    platform.until_status(&id, Status::Completed, PATIENCE).await.unwrap();
    kill(worker);

    // The platform gives a job out twice; its client sends it again then, under the same name.
    for seen in [2, 2] {
        let before = platform.count(Route::Progress);
        let worker = start(&platform, volume.path());
        let id = platform.submit(job("j", json!({ "max_steps": 600 })));
        platform.until_count(Route::Progress, before + seen, PATIENCE).await.unwrap();
        kill(worker);
        platform.cancel(&id);
    }
    let worker = start(&platform, volume.path());
    let id = platform.submit(job("j", json!({ "max_steps": 600 })));
    let view = platform.until_status(&id, Status::Completed, PATIENCE).await.unwrap();
    assert_eq!(view.results.len(), 1);
    assert!(terminate(worker).success());
    assert_eq!(adapter(volume.path(), "j"), adapter(unbroken.path(), "j"));
    let seen = platform.seen();
    assert_eq!((order_problems(&seen, Duration::from_secs(1)), answer_problems(&seen)), (vec![], vec![]));
}

#[tokio::test]
async fn a_worker_that_goes_while_it_trains_hands_its_job_back() {
    let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
    let worker = start(&platform, volume.path());
    let id = platform.submit(job("j", json!({ "max_steps": 400 })));
    platform.until_count(Route::Progress, 3, PATIENCE).await.unwrap();
    assert!(terminate(worker).success());
    assert_eq!(platform.job(&id).unwrap().results.len(), 0);
    let saved = fs::read_dir(volume.path().join("brightrun/jobs/j/checkpoints")).unwrap().count();
    assert!(saved > 1, "nothing is saved");
    let worker = start(&platform, volume.path());
    platform.until_status(&id, Status::Completed, PATIENCE).await.unwrap();
    assert!(terminate(worker).success());
}

#[tokio::test]
async fn a_worker_that_cannot_work_tells_one_job_why() {
    let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
    let mut worker = start(&platform, &volume.path().join("not-mounted"));
    let id = platform.submit(job("j", json!({})));
    let view = platform.until_status(&id, Status::Failed, PATIENCE).await.unwrap();
    assert!(view.error.unwrap().contains("attach a network volume"), "{:?}", view.stop_pod);
    assert!(view.stop_pod);
    assert_eq!(worker.wait().unwrap().code(), Some(1));
}

#[test]
fn outside_the_platform_it_says_what_to_use() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brightrun"));
    let output = command.arg("worker").env_remove("RUNPOD_WEBHOOK_GET_JOB").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("brightrun train"), "{said}");
}
