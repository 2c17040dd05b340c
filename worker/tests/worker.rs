//! `brightrun worker` as a process, against a simulator of the platform: what a container does.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use brightrun_tests::child::Running;
use brightrun_tests::platform::{Options, Platform, Route, Status, Urls, answer_problems, order_problems};
use serde_json::{Value, json};

/// Long enough for every machine; nothing is measured with it.
const PATIENCE: Duration = Duration::from_secs(900);

fn platform() -> Platform {
    let options =
        Options { ping_milliseconds: 100, redispatch_after: Some(Duration::from_secs(2)), ..Options::default() };
    Platform::start_with(options).unwrap()
}

fn worker(platform: &Platform, volume: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brightrun"));
    command.args(["worker", "--volume"]).arg(volume).envs(platform.environment(Urls::Full));
    for name in ["BUCKET_NAME", "BUCKET_ENDPOINT_URL", "S3_BUCKET", "MODEL_PATH", "MODEL_PATHS", "RUST_LOG"] {
        command.env_remove(name);
    }
    command.env("BRIGHTRUN_HOLD_SECONDS", "0").stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn start(platform: &Platform, volume: &Path) -> Running {
    Running::start(&mut worker(platform, volume)).unwrap()
}

fn job(name: &str, changes: Value) -> Value {
    let mut hyperparameters = json!({
        "base_model": "brightrun/demo-moe", "max_steps": 120, "num_epochs": 1000, "eval_steps": 50, "batch_size": 1,
        "max_seq_length": 256, "lora_rank": 4, "save_steps": 5, "learning_rate": 0.01,
    });
    hyperparameters.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    json!({ "job_id": name, "dataset_url": "demo:conversations", "hyperparameters": hyperparameters })
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
    assert!(worker.terminate().unwrap().success());
    assert_eq!(platform.problems(), [""; 0]);
}

#[tokio::test]
async fn a_bucket_without_a_key_is_told_at_the_start() {
    let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
    let mut command = worker(&platform, volume.path());
    command.envs([("BUCKET_NAME", "results"), ("S3_ENDPOINT", "http://127.0.0.1:9"), ("HOME", "/nowhere")]);
    for name in ["BUCKET_ACCESS_KEY_ID", "S3_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_CONFIG_FILE"] {
        command.env_remove(name);
    }
    for name in ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SHARED_CREDENTIALS_FILE"] {
        command.env_remove(name);
    }
    let worker = Running::start(command.env("AWS_EC2_METADATA_DISABLED", "true")).unwrap();
    let id = platform.submit(job("j", json!({ "max_steps": 4 })));
    let view = platform.until_status(&id, Status::Failed, PATIENCE).await.unwrap();
    let error = format!("{:?}", view.error);
    assert!(error.contains("results could not be delivered: s3://results: there is no key for the store"), "{error}");
    assert!(error.contains("set BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY"), "{error}");
    worker.kill_now().unwrap();
}

#[tokio::test]
async fn a_worker_that_is_killed_again_and_again_loses_nothing() {
    let (platform, volume, unbroken) = (platform(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let worker = start(&platform, unbroken.path());
    let id = platform.submit(job("j", json!({ "max_steps": 600 })));
    platform.until_status(&id, Status::Completed, PATIENCE).await.unwrap();
    worker.kill_now().unwrap();

    // The platform gives a job out twice; its client sends it again then, under the same name.
    for seen in [2, 2] {
        let before = platform.count(Route::Progress);
        let worker = start(&platform, volume.path());
        let id = platform.submit(job("j", json!({ "max_steps": 600 })));
        platform.until_count(Route::Progress, before + seen, PATIENCE).await.unwrap();
        worker.kill_now().unwrap();
        platform.cancel(&id);
    }
    let worker = start(&platform, volume.path());
    let id = platform.submit(job("j", json!({ "max_steps": 600 })));
    let view = platform.until_status(&id, Status::Completed, PATIENCE).await.unwrap();
    assert_eq!(view.results.len(), 1);
    assert!(worker.terminate().unwrap().success());
    assert_eq!(adapter(volume.path(), "j"), adapter(unbroken.path(), "j"));
    let seen = platform.seen();
    assert_eq!((order_problems(&seen, Duration::from_secs(1)), answer_problems(&seen)), (vec![], vec![]));
}

#[tokio::test]
async fn a_worker_that_goes_while_it_trains_hands_its_job_back() {
    let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
    let worker = start(&platform, volume.path());
    let id = platform.submit(job("j", json!({ "max_steps": 400 })));
    let trains = |platform: &Platform| {
        let job = platform.job(&id)?;
        job.progress.iter().any(|progress| progress["current_step"].as_u64() >= Some(1)).then_some(())
    };
    platform.until(PATIENCE, "step", trains).await.unwrap();
    assert!(worker.terminate().unwrap().success());
    assert_eq!(platform.job(&id).unwrap().results.len(), 0);
    let saved = fs::read_dir(volume.path().join("brightrun/jobs/j/checkpoints")).unwrap();
    let mut names = saved.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.any(|name| name.starts_with("step-")), "nothing is saved");
    let worker = start(&platform, volume.path());
    platform.until_status(&id, Status::Completed, PATIENCE).await.unwrap();
    assert!(worker.terminate().unwrap().success());
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
    let pings = platform.seen_on(Route::Ping);
    let last = &pings.last().unwrap().target;
    assert!(last.contains("status=unhealthy&check=volume&reason=there+is+no+folder"), "{last}");
}

#[tokio::test]
async fn a_worker_that_can_work_by_the_time_a_job_comes_does_it() {
    let (platform, folder) = (platform(), tempfile::tempdir().unwrap());
    let volume = folder.path().join("mounted-late");
    let worker = start(&platform, &volume);
    platform.until_count(Route::Take, 1, PATIENCE).await.unwrap();
    fs::create_dir(&volume).unwrap();
    let id = platform.submit(job("j", json!({ "max_steps": 3 })));
    platform.until_status(&id, Status::Completed, PATIENCE).await.unwrap();
    assert!(worker.terminate().unwrap().success());
    assert_eq!(platform.problems(), [""; 0]);
}

#[tokio::test]
async fn a_machine_without_the_gpus_it_was_rented_with_and_a_broken_model_are_told_too() {
    let empty = tempfile::tempdir().unwrap();
    let path = empty.path().to_str().unwrap();
    let troubles = [
        ("RUNPOD_GPU_COUNT", "8", "gpu", "rented with 8 GPUs, and none can be used: no CUDA device"),
        ("RUNPOD_MIN_MEMORY_GB", "1000000", "memory", "GB of memory are free"),
        ("MODEL_PATH", path, "model", "there is no config.json"),
        ("MODEL_PATHS", "[]", "settings", "MODEL_PATHS must be a JSON object"),
        ("BRIGHTRUN_CONCURRENCY", "0", "settings", "a number from 1 to 16"),
        ("BRIGHTRUN_REFRESH_WORKER", "maybe", "settings", "neither true nor false"),
        ("BUCKET_ENDPOINT_URL", "https://s3api-eu-ro-1.runpod.io", "settings", "RunPod network volume"),
    ];
    for (name, value, check, says) in troubles {
        let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
        let mut worker = Running::start(worker(&platform, volume.path()).env(name, value)).unwrap();
        let id = platform.submit(job("j", json!({})));
        let error = platform.until_status(&id, Status::Failed, PATIENCE).await.unwrap().error.unwrap();
        assert!(error.contains(says), "{error}");
        assert_eq!(worker.wait().unwrap().code(), Some(1), "{name}");
        let told = |platform: &Platform| platform.seen_on(Route::Ping).iter().any(|ping| ping.target.contains(check));
        platform.until(PATIENCE, "unhealthy ping", |platform| told(platform).then_some(())).await.unwrap();
    }
}

/// As the platform freezes workers that it may need again: without a word, in the middle of anything.
#[tokio::test]
async fn a_worker_that_was_frozen_finds_its_job_taken_over_and_leaves_it_alone() {
    let (platform, volume, unbroken) = (platform(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let steps = json!({ "max_steps": 300 });
    let frozen = start(&platform, volume.path());
    let id = platform.submit(job("j", steps.clone()));
    platform.until_count(Route::Progress, 2, PATIENCE).await.unwrap();
    frozen.signal("-STOP").unwrap();
    let mut other = worker(&platform, volume.path());
    let other = Running::start(other.envs(platform.environment_of("other", Urls::Full))).unwrap();
    // The platform gives it out again, and the other worker waits until the first one's silence is long enough.
    let view = platform.until_status(&id, Status::Completed, PATIENCE).await.unwrap();
    assert_eq!((view.worker.as_deref(), view.deliveries, view.results.len()), (Some("other"), 2, 1));
    let done = adapter(volume.path(), "j");
    frozen.signal("-CONT").unwrap();
    let next = platform.submit(job("next", json!({ "max_steps": 3 })));
    platform.until_status(&next, Status::Completed, PATIENCE).await.unwrap();
    assert!(other.terminate().unwrap().success() && frozen.terminate().unwrap().success());
    assert_eq!((platform.job(&id).unwrap().results.len(), adapter(volume.path(), "j") == done), (1, true));

    let worker = start(&platform, unbroken.path());
    let id = platform.submit(job("j", steps));
    platform.until_status(&id, Status::Completed, PATIENCE).await.unwrap();
    worker.kill_now().unwrap();
    assert!(adapter(unbroken.path(), "j") == done);
}

#[tokio::test]
async fn on_the_platform_every_line_is_json_with_the_jobs_name() {
    let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
    let mut command = worker(&platform, volume.path());
    let mut worker = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped())).unwrap();
    let id = platform.submit(job("j", json!({ "max_steps": 2 })));
    platform.until_status(&id, Status::Completed, PATIENCE).await.unwrap();
    worker.signal("-TERM").unwrap();
    let (text, error) = worker.said().unwrap();
    assert_eq!(error, "");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |request: Value| {
        let said = lines.iter().filter(|line| line["requestId"] == request);
        said.map(|line| line["message"].as_str().unwrap()).collect::<Vec<_>>().join("\n")
    };
    assert!(of(Value::Null).contains("is ready for jobs"), "{text}");
    let job = of(json!(id));
    for part in ["loading the base model", "step 2/2", "writing the adapter", "is answered"] {
        assert!(job.contains(part), "{part} is not in {text}");
    }
    assert!(lines.iter().all(|line| line["level"].is_string()));
}

#[tokio::test]
async fn a_worker_that_is_to_be_fresh_for_every_job_goes_after_one() {
    let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
    let mut worker = Running::start(worker(&platform, volume.path()).env("BRIGHTRUN_REFRESH_WORKER", "true")).unwrap();
    let ids = ["a", "b"].map(|name| platform.submit(job(name, json!({ "max_steps": 3 }))));
    let view = platform.until_status(&ids[0], Status::Completed, PATIENCE).await.unwrap();
    assert!(view.stop_pod && worker.wait().unwrap().success());
    assert_eq!(platform.job(&ids[1]).unwrap().deliveries, 0);
}

#[tokio::test]
async fn the_last_numbers_of_a_short_job_are_held() {
    let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
    let worker = Running::start(worker(&platform, volume.path()).env("BRIGHTRUN_HOLD_SECONDS", "3")).unwrap();
    let id = platform.submit(job("j", json!({ "max_steps": 2 })));
    platform.until_status(&id, Status::Completed, PATIENCE).await.unwrap();
    let last = platform.seen_on(Route::Progress).pop().unwrap();
    let done = platform.seen_on(Route::Done).pop().unwrap();
    assert!(done.at - last.at >= Duration::from_secs(2), "{:?}", done.at - last.at);
    assert!(last.json().unwrap()["output"]["metrics"]["training_loss"].is_f64());
    assert!(worker.terminate().unwrap().success());
}

#[tokio::test]
async fn whoever_reads_its_lines_cannot_stop_it() {
    let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
    // Nobody reads the one, and nobody is there to read the other.
    for closed in [false, true] {
        let mut command = worker(&platform, volume.path());
        command.env("RUST_LOG", "trace").stdout(Stdio::piped());
        let mut worker = Running::start(&mut command).unwrap();
        let reader = worker.stdout.take();
        let _kept = (!closed).then_some(reader);
        let name = format!("closed-{closed}");
        let id = platform.submit(job(&name, json!({ "max_steps": 40 })));
        platform.until_status(&id, Status::Completed, PATIENCE).await.unwrap();
        assert!(worker.terminate().unwrap().success());
    }
}

#[test]
fn outside_the_platform_it_says_what_to_use() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brightrun"));
    let output = command.arg("worker").env_remove("RUNPOD_WEBHOOK_GET_JOB").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("brightrun train"), "{said}");
}
