//! Real training jobs, told to a callback and to a project.

use std::io::Read;

use brightrun_tests::{
    faults::{FaultServer, Reply},
    platform::Status,
};
use flate2::read::GzDecoder;
use serde_json::{Value, json};

use crate::{
    PATH,
    bench::{self, PATIENCE},
    limits, message, policy,
    project::Project,
};

const ID: &str = "0b8f4a52-1c63-4e0e-8a4e-5d1f0c2b3a99";

fn states(messages: &[Value]) -> Vec<&str> {
    messages.iter().filter_map(|message| message["status"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_done_is_told_with_its_files() {
    let (platform, volume) = (bench::platform(), tempfile::tempdir().unwrap());
    let (project, server) = (Project::start(ID).await, FaultServer::start().await.unwrap());
    server.on(PATH, [Reply::status(200)]);
    let mut settings = bench::settings(volume.path(), "one");
    settings.sources = policy(&server);
    settings.telling = project.telling(&policy(&server), limits());
    let telling = settings.telling.clone();
    let (working, leave) = bench::worker(&platform, settings);
    let mut input = bench::input(ID, json!({}));
    input["callback_url"] = json!(server.url(PATH));
    let job = platform.submit(input);
    let view = platform.until_status(&job, Status::Completed, PATIENCE).await.unwrap();
    telling.settle(PATIENCE).await;

    let output = view.output.unwrap();
    let row = project.row(ID);
    assert_eq!(
        (&row["status"], &row["progress"], &row["error_message"]),
        (&json!("completed"), &json!(100), &Value::Null)
    );
    assert_eq!(row["final_loss"], output["model_metadata"]["final_loss"]);
    let path = format!("lora-models/adapters/{ID}.tar.gz");
    assert_eq!(row["adapter_file_path"], json!(path));
    let archive = project.object(&path).unwrap();
    let mut archive = tar::Archive::new(GzDecoder::new(&archive[..]));
    let mut adapter = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.path().unwrap().ends_with("adapter_model.safetensors") {
            assert_eq!(entry.path().unwrap().to_str(), Some("adapter/adapter_model.safetensors"));
            entry.read_to_end(&mut adapter).unwrap();
        }
    }
    let written = volume.path().join("jobs").join(ID).join("adapter/adapter_model.safetensors");
    assert!(adapter == std::fs::read(written).unwrap());

    let told: Vec<Value> = server.seen().iter().map(message).collect();
    assert_eq!(states(&told).last(), Some(&"COMPLETED"));
    let last = told.last().unwrap();
    assert_eq!((&last["output"], &last["id"], &last["job_id"]), (&output, &json!(job), &json!(ID)));
    leave.cancel();
    working.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_refused_at_the_door_is_told_too() {
    let (platform, volume) = (bench::platform(), tempfile::tempdir().unwrap());
    let (project, server) = (Project::start(ID).await, FaultServer::start().await.unwrap());
    server.on(PATH, [Reply::status(404)]);
    let mut settings = bench::settings(volume.path(), "one");
    settings.telling = project.telling(&policy(&server), limits());
    let telling = settings.telling.clone();
    let (working, leave) = bench::worker(&platform, settings);
    let job = platform.submit(bench::input(ID, json!({ "lora_rank": "big" })));
    let error = platform.until_status(&job, Status::Failed, PATIENCE).await.unwrap().error.unwrap();
    telling.settle(PATIENCE).await;
    let row = project.row(ID);
    assert_eq!((&row["status"], &row["error_message"]), (&json!("failed"), &json!(error)));
    leave.cancel();
    working.await.unwrap();
}
