//! Real training jobs: the embedded model and conversations, from the platform's queue to the answer.

use std::{fs, path::PathBuf, time::Duration};

use brightrun_tests::faults::{FaultServer, Reply};
use brightrun_tests::platform::{Platform, Route, Status};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bench::{PATIENCE, input, platform, settings, worker};

fn long() -> Value {
    json!({ "max_steps": 4000, "num_epochs": 1000, "eval_steps": 100_000, "save_steps": 10 })
}

fn path_of(url: &Value) -> PathBuf {
    PathBuf::from(url.as_str().unwrap().strip_prefix("file://").unwrap())
}

fn adapter(folder: &TempDir, name: &str) -> Vec<u8> {
    fs::read(folder.path().join("jobs").join(name).join("adapter/adapter_model.safetensors")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_comes_in_and_an_adapter_goes_out() {
    let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
    let (working, leave) = worker(&platform, settings(volume.path(), "one"));
    let job = platform.submit(input("first", json!({})));
    let view = platform.until_status(&job, Status::Completed, PATIENCE).await.unwrap();
    let output = view.output.unwrap();
    assert_eq!((&output["status"], &output["job_id"]), (&json!("success"), &json!("first")));
    assert_eq!((&output["current_step"], &output["progress"]), (&json!(4), &json!(100.0)));
    assert_eq!(output["proven"], true);
    let files = output["model_files"].as_object().unwrap();
    for name in [
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "training_args.json",
        "trainer_state.json",
        "metrics.jsonl",
        "loss_curve.svg",
        "loss_curve.png",
        "dataset_report.json",
        "README.md",
        "result.json",
    ] {
        assert!(fs::metadata(path_of(&files[name])).unwrap().len() > 0, "{name}");
    }
    assert!(view.progress.iter().any(|shown| shown["metrics"]["training_loss"].is_f64()), "{:?}", view.progress);
    assert!(view.progress.iter().all(|shown| shown["current_epoch"].is_u64() && shown["status"] == "running"));
    leave.cancel();
    working.await.unwrap();
    assert_eq!(platform.problems(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_to_the_links_that_the_job_gives() {
    let (platform, volume, store) = (platform(), tempfile::tempdir().unwrap(), FaultServer::start().await.unwrap());
    let mut settings = settings(volume.path(), "one");
    settings.sources.plain_http = true;
    settings.sources.network.allowed_addresses = vec![store.address()];
    let (working, leave) = worker(&platform, settings);
    let mut input = input("given", json!({}));
    let names = ["adapter_model.safetensors", "adapter_config.json"];
    for name in names {
        store.on(&format!("/{name}"), [Reply::status(200)]);
        input["upload_urls"][name] = json!(store.url(&format!("/{name}?token=S3CR3T")));
    }
    let job = platform.submit(input);
    let view = platform.until_status(&job, Status::Completed, PATIENCE).await.unwrap();
    let output = view.output.unwrap();
    let told: Vec<&String> = output["model_files"].as_object().unwrap().keys().collect();
    assert_eq!(told, ["adapter_config.json", "adapter_model.safetensors"]);
    assert!(!output.to_string().contains("S3CR3T"), "{output}");
    let sent = store.seen().into_iter().find(|seen| seen.path == "/adapter_model.safetensors").unwrap();
    assert_eq!(sent.body, adapter(&volume, "given"));
    leave.cancel();
    working.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_is_an_error_that_names_everything() {
    let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
    let (working, leave) = worker(&platform, settings(volume.path(), "one"));
    let wrong = [
        (json!({}), "dataset_url"),
        (json!({ "job_id": "../x", "dataset_url": "https://h/x" }), "job_id"),
        (input("a", json!({ "learning_rate": -1, "lora_rank": "big" })), "hyperparameters.lora_rank"),
        (input("b", json!({ "base_model": "/etc" })), "this endpoint has no model"),
        // The adapter of somebody else's job would be within reach.
        (input("e", json!({ "init_adapter": "/runpod-volume/brightrun/jobs/other/adapter" })), "cannot name a folder"),
        (
            json!({ "job_id": "c", "dataset_url": "/etc/passwd", "hyperparameters": { "base_model": "brightrun/demo-moe" } }),
            "not allowed",
        ),
        (
            json!({ "job_id": "d", "dataset_url": "https://127.0.0.1/x?token=S3CR3T", "hyperparameters": { "base_model": "brightrun/demo-moe" } }),
            "refused",
        ),
        (json!([1]), "must be an object"),
    ];
    for (input, says) in wrong {
        let job = platform.submit(input);
        let view = platform.until_status(&job, Status::Failed, PATIENCE).await.unwrap();
        let error = view.error.unwrap();
        assert!(error.contains(says) && !error.contains("S3CR3T"), "{error}");
        assert_eq!(view.output.unwrap()["status"], "failed");
    }
    leave.cancel();
    working.await.unwrap();
    assert_eq!(platform.problems(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_delivered_again_gets_the_stored_result() {
    let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
    let (working, leave) = worker(&platform, settings(volume.path(), "one"));
    let first = platform.submit(input("same", json!({})));
    let first = platform.until_status(&first, Status::Completed, PATIENCE).await.unwrap();
    let modified = || fs::metadata(volume.path().join("jobs/same/result.json")).unwrap().modified().unwrap();
    let before = modified();
    let second = platform.submit(input("same", json!({})));
    let second = platform.until_status(&second, Status::Completed, PATIENCE).await.unwrap();
    assert_eq!((first.output, modified()), (second.output, before));
    let other = platform.submit(input("same", json!({ "lora_rank": 8 })));
    let error = platform.until_status(&other, Status::Failed, PATIENCE).await.unwrap().error.unwrap();
    assert!(error.contains("another job_id"), "{error}");
    leave.cancel();
    working.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_while_it_trains_ends_and_leaves_no_adapter() {
    let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
    let (working, leave) = worker(&platform, settings(volume.path(), "one"));
    let job = platform.submit(input("cancelled", long()));
    platform.until_count(Route::Progress, 10, PATIENCE).await.unwrap();
    platform.cancel(&job);
    let next = platform.submit(input("next", json!({})));
    platform.until_status(&next, Status::Completed, PATIENCE).await.unwrap();
    assert!(!volume.path().join("jobs/cancelled/result.json").exists());
    assert!(!volume.path().join("jobs/cancelled/adapter").exists());
    leave.cancel();
    working.await.unwrap();
    assert_eq!(platform.problems(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_goes_leaves_a_job_that_another_one_finishes_to_the_same_bytes() {
    let (platform, volume, unbroken) = (platform(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let changes = json!({ "max_steps": 200, "num_epochs": 1000, "eval_steps": 100, "save_steps": 10 });
    let (working, leave) = worker(&platform, settings(volume.path(), "one"));
    let job = platform.submit(input("moved", changes.clone()));
    platform.until_count(Route::Progress, 10, PATIENCE).await.unwrap();
    leave.cancel();
    working.await.unwrap();
    assert_eq!(platform.job(&job).unwrap().status, Status::InProgress);
    let (working, leave) = worker(&platform, settings(volume.path(), "two"));
    let view = platform.until_status(&job, Status::Completed, PATIENCE).await.unwrap();
    assert_eq!(view.deliveries, 2);
    leave.cancel();
    working.await.unwrap();
    let (working, leave) = worker(&platform, settings(unbroken.path(), "three"));
    let job = platform.submit(input("moved", changes));
    platform.until_status(&job, Status::Completed, PATIENCE).await.unwrap();
    leave.cancel();
    working.await.unwrap();
    assert_eq!(adapter(&volume, "moved"), adapter(&unbroken, "moved"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_ends_by_itself_before_its_time_is_over_and_can_go_on() {
    let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
    let (working, leave) = worker(&platform, settings(volume.path(), "one"));
    // Planned for an optimised program on an idle machine, these steps take less than they may.
    let changes = json!({ "max_steps": 900, "num_epochs": 1000, "eval_steps": 100_000, "save_steps": 10 });
    let body = json!({ "input": input("slow", changes), "policy": { "executionTimeout": 10_000 } });
    let job = platform.submit_body(body);
    let error = platform.until_status(&job, Status::Failed, PATIENCE).await.unwrap().error.unwrap();
    assert!(error.contains("steps are saved") && error.contains("same job_id"), "{error}");
    assert!(volume.path().join("jobs/slow/checkpoints").is_dir());
    leave.cancel();
    working.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_would_take_much_longer_than_it_may_is_refused_before_it_trains() {
    let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
    let (working, leave) = worker(&platform, settings(volume.path(), "one"));
    let changes = json!({ "max_steps": 20_000, "num_epochs": 1000 });
    let body = json!({ "input": input("endless", changes), "policy": { "executionTimeout": 30_000 } });
    let job = platform.submit_body(body);
    let view = platform.until_status(&job, Status::Failed, PATIENCE).await.unwrap();
    let error = view.error.unwrap();
    assert!(error.contains("training would take about") && error.contains("executionTimeout"), "{error}");
    assert_eq!(view.output.unwrap()["current_step"], 0);
    leave.cancel();
    working.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_a_job_brings_along_must_be_a_public_one() {
    let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
    let (working, leave) = worker(&platform, settings(volume.path(), "one"));
    let store = |endpoint: &str| json!({ "accessId": "id", "accessSecret": "S3CR3T", "bucketName": "b", "endpointUrl": endpoint });
    let wrong = [
        (store("https://127.0.0.1:9"), "refused"),
        (store("http://store.example"), "https://"),
        (store("https://s3api-eu-ro-1.runpod.io"), "s3Config.endpointUrl is a RunPod network volume"),
        (json!({ "bucketName": "b" }), "s3Config"),
    ];
    for (index, (config, says)) in wrong.into_iter().enumerate() {
        let body = json!({ "input": input(&format!("store-{index}"), json!({})), "s3Config": config });
        let job = platform.submit_body(body);
        let error = platform.until_status(&job, Status::Failed, PATIENCE).await.unwrap().error.unwrap();
        assert!(error.contains(says) && !error.contains("S3CR3T"), "{error}");
    }
    leave.cancel();
    working.await.unwrap();
}

/// A job is called off as soon as it is seen in a stage. Fetching and uploading last as long as their servers like; the other
/// stages are short here, and may be over by the time the word arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_called_off_in_any_stage_ends_within_two_seconds() {
    let never = Duration::from_secs(600);
    for stage in ["fetching", "loading", "training", "evaluating", "saving", "uploading"] {
        let (platform, volume, server) =
            (platform(), tempfile::tempdir().unwrap(), FaultServer::start().await.unwrap());
        let mut settings = settings(volume.path(), "one");
        settings.sources.plain_http = true;
        settings.sources.network.allowed_addresses = vec![server.address()];
        let (working, leave) = worker(&platform, settings);
        let mut input =
            input("off", if stage == "training" { long() } else { json!({ "max_steps": 30, "num_epochs": 50 }) });
        if stage == "fetching" {
            server.on("/data", [Reply::file("{}\n".repeat(100)).dripping(10, never)]);
            input["dataset_url"] = json!(server.url("/data"));
        }
        if stage == "uploading" {
            server.on("/up", [Reply::status(200).delayed(never)]);
            input["upload_urls"] = json!({ "adapter_model.safetensors": server.url("/up") });
        }
        let job = platform.submit(input);
        let seen = |platform: &Platform| {
            let view = platform.job(&job)?;
            (view.progress.iter().any(|shown| shown["stage"] == stage) || view.status.ended()).then_some(())
        };
        platform.until(PATIENCE, stage, seen).await.unwrap();
        let called_off = platform.clock();
        platform.cancel(&job);
        let free = |platform: &Platform| {
            let last = platform.seen_on(Route::Take).pop()?;
            (last.at > called_off).then_some(last.at)
        };
        let free = platform.until(PATIENCE, "take after the job", free).await.unwrap();
        assert!(free - called_off < Duration::from_secs(2), "{stage}: {:?}", free - called_off);
        let folder = volume.path().join("jobs/off");
        let (result, adapter) = (folder.join("result.json"), folder.join("adapter/adapter_config.json"));
        // What is told is there; what is half-made is not told.
        assert!(!result.exists() || adapter.exists(), "{stage}");
        let partial = |name: &str| name.ends_with(".tmp") || name.contains(".part");
        let names = fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
        let left: Vec<String> = names.filter(|name| partial(name) && stage != "fetching").collect();
        assert_eq!(left, [""; 0], "{stage}");
        leave.cancel();
        working.await.unwrap();
        assert_eq!(platform.problems(), [""; 0], "{stage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_never_train_the_same_job() {
    let (platform, volume) = (platform(), tempfile::tempdir().unwrap());
    let workers = ["one", "two"].map(|name| worker(&platform, settings(volume.path(), name)));
    let changes = json!({ "max_steps": 150, "num_epochs": 1000, "eval_steps": 100_000 });
    let jobs = [platform.submit(input("shared", changes.clone())), platform.submit(input("shared", changes))];
    let mut outputs = Vec::new();
    for job in &jobs {
        outputs.push(platform.until_status(job, Status::Completed, PATIENCE).await.unwrap().output.unwrap());
    }
    assert_eq!(outputs[0], outputs[1]);
    // Whoever came second took no step of its own.
    let lines = fs::read_to_string(volume.path().join("jobs/shared/metrics.jsonl")).unwrap();
    assert_eq!(lines.lines().filter(|line| line.contains("\"event\":\"step\"")).count(), 150);
    for (working, leave) in workers {
        leave.cancel();
        working.await.unwrap();
    }
}
