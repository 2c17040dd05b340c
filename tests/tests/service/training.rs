//! Real training jobs: the embedded model and conversations, from a request to the answer.

use std::{fs, path::Path, time::Duration};

use brightrun_worker::life::Training;
use serde_json::{Value, json};

use crate::{Bench, serve, settings, training_settings};

async fn training(folder: &Path) -> Bench {
    let work = Training::new(training_settings::settings(folder, "here"));
    let (address, leave, serving) = serve(settings(folder), work).await;
    Bench { address, work: Default::default(), leave, serving }
}

fn input(name: &str, changes: Value) -> Value {
    let mut hyperparameters = json!({
        "base_model": "brightrun/demo-moe", "max_steps": 4, "num_epochs": 1000, "eval_steps": 100_000, "batch_size": 2,
        "max_seq_length": 256, "lora_rank": 4, "save_steps": 5,
    });
    hyperparameters.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    json!({ "job_id": name, "dataset_url": "demo:conversations", "hyperparameters": hyperparameters })
}

fn adapter(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join("jobs").join(name).join("adapter/adapter_model.safetensors")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_comes_in_and_an_adapter_goes_out() {
    let folder = tempfile::tempdir().unwrap();
    let bench = training(folder.path()).await;
    let done = bench.post("/runsync", &json!({ "input": input("first", json!({})) })).await.json();
    assert_eq!((&done["status"], &done["output"]["status"]), (&json!("COMPLETED"), &json!("success")), "{done}");
    let file = done["output"]["model_files"]["adapter_model.safetensors"].as_str().unwrap();
    assert_eq!(fs::read(file.strip_prefix("file://").unwrap()).unwrap(), adapter(folder.path(), "first"));
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_goes_while_it_trains_goes_on_to_the_same_adapter() {
    let (folder, unbroken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let changes = json!({ "max_steps": 150 });
    let bench = training(folder.path()).await;
    let id = bench.run(input("moved", changes.clone())).await;
    while bench.status(&id).await["output"]["current_step"].as_u64().unwrap_or_default() < 5 {}
    bench.goes().await;
    assert!(!folder.path().join("jobs/moved/result.json").exists());
    let bench = training(folder.path()).await;
    bench.until(&id, "COMPLETED").await;
    bench.goes().await;
    let bench = training(unbroken.path()).await;
    let id = bench.run(input("moved", changes)).await;
    bench.until(&id, "COMPLETED").await;
    bench.goes().await;
    assert_eq!(adapter(folder.path(), "moved"), adapter(unbroken.path(), "moved"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_trains_shows_numbers_and_is_cancelled_within_two_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let bench = training(folder.path()).await;
    let id = bench.run(input("cancelled", json!({ "max_steps": 50_000 }))).await;
    while bench.status(&id).await["output"]["metrics"]["training_loss"].is_null() {}
    let metrics = bench.get("/metrics").await.text;
    for name in [
        "brightrun_job_step ",
        "brightrun_job_training_loss ",
        "brightrun_job_tokens_per_second ",
        "brightrun_job_progress_percent ",
    ] {
        assert!(metrics.contains(&format!("\n{name}")), "{metrics}");
    }
    let begin = std::time::Instant::now();
    bench.post(&format!("/cancel/{id}"), &json!(null)).await;
    let next = bench.run(json!({ "dataset_url": 5 })).await;
    let error = bench.until(&next, "FAILED").await["error"].clone();
    assert!(error.as_str().unwrap().contains("dataset_url"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert!(!folder.path().join("jobs/cancelled/result.json").exists());
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_secrets_reach_no_answer_and_stay_in_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let bench = training(folder.path()).await;
    let mut input = input("secret", json!({}));
    input["dataset_url"] = json!("https://127.0.0.1/a.jsonl?token=S3CR3T");
    input["upload_urls"] = json!({ "adapter_model.safetensors": "https://127.0.0.1/a?token=S3CR3T" });
    let body = json!({
        "input": input, "webhook": "https://127.0.0.1/w?token=S3CR3T", "s3Config": { "accessSecret": "S3CR3T" },
    });
    let id = bench.run_body(body).await;
    let mut told = bench.until(&id, "FAILED").await.to_string();
    for path in [format!("/stream/{id}"), "/requests".to_owned(), "/metrics".to_owned()] {
        told += &bench.get(&path).await.text;
    }
    assert!(!told.contains("S3CR3T"), "{told}");
    // The webhook is tried three times before it is forgotten.
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.goes().await;
    let mut folders = vec![folder.path().to_owned()];
    let mut files = 0;
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            assert!(!bytes.windows(6).any(|window| window == b"S3CR3T"), "{}", path.display());
            files += 1;
        }
    }
    assert!(files > 1);
}
