//! Telling the link of a job that it is over.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use brightrun_tests::faults::{FaultServer, Reply, Seen};
use brightrun_worker::service::Settings;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{Bench, PATIENCE, settings};

fn listening(server: &FaultServer, folder: &Path) -> Settings {
    let mut settings = settings(folder);
    settings.network.allowed_addresses = vec![server.address()];
    settings
}

async fn stand() -> (Bench, FaultServer, TempDir) {
    let (server, folder) = (FaultServer::start().await.unwrap(), tempfile::tempdir().unwrap());
    (Bench::at(listening(&server, folder.path())).await, server, folder)
}

async fn told(server: &FaultServer, path: &str, times: usize) -> Vec<Seen> {
    let end = Instant::now() + PATIENCE;
    while server.count(path) < times {
        assert!(Instant::now() < end, "{path} was told {} times", server.count(path));
        sleep(Duration::from_millis(10)).await;
    }
    server.seen().into_iter().filter(|seen| seen.path == path).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_hears_of_every_end_with_the_whole_job() {
    let (bench, server, _folder) = stand().await;
    server.on("/w", [Reply::status(200)]);
    let webhook = server.url("/w?key=S3CR3T");
    let input = json!({ "x": 1, "dataset_url": "https://h/a.jsonl?token=S3CR3T" });
    let id =
        bench.run_body(json!({ "input": input, "webhook": webhook, "s3Config": { "accessSecret": "S3CR3T" } })).await;
    let seen = told(&server, "/w", 1).await.remove(0);
    assert_eq!((seen.method.as_str(), seen.header("content-type")), ("POST", Some("application/json")));
    let body: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!((&body["id"], &body["status"]), (&json!(id), &json!("COMPLETED")));
    assert_eq!(body["input"], json!({ "x": 1, "dataset_url": "https://h/a.jsonl" }));
    assert_eq!(body["webhook"], server.url("/w"));
    assert_eq!(body["output"]["echo"]["x"], 1);
    assert!(body["executionTime"].is_u64() && body["delayTime"].is_u64(), "{body}");
    let failed = bench.run_body(json!({ "input": { "error": "no" }, "webhook": webhook })).await;
    let running = bench.run_body(json!({ "input": { "steps": 1_000_000 }, "webhook": webhook })).await;
    bench.until(&running, "IN_PROGRESS").await;
    bench.post(&format!("/cancel/{running}"), &json!(null)).await;
    let all = told(&server, "/w", 3).await;
    let mut ends: Vec<(String, String)> = all[1..]
        .iter()
        .map(|seen| serde_json::from_slice::<Value>(&seen.body).unwrap())
        .map(|body| (body["id"].as_str().unwrap().to_owned(), body["status"].as_str().unwrap().to_owned()))
        .collect();
    ends.sort_by_key(|(_, status)| status.clone());
    assert_eq!(ends, [(running, "CANCELLED".to_owned()), (failed, "FAILED".to_owned())]);
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_fails_is_told_twice_more_and_no_job_suffers() {
    let (bench, server, _folder) = stand().await;
    server.on("/w", [Reply::status(500)]);
    server.on("/later", [Reply::status(503), Reply::status(204)]);
    server.on("/moved", [Reply::redirect(302, "/w")]);
    for path in ["/w", "/later", "/moved"] {
        let id = bench.run_body(json!({ "input": {}, "webhook": server.url(path) })).await;
        bench.until(&id, "COMPLETED").await;
    }
    told(&server, "/w", 3).await;
    told(&server, "/later", 2).await;
    told(&server, "/moved", 3).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!((server.count("/w"), server.count("/later"), server.count("/moved")), (3, 2, 3));
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_cannot_reach_this_machine_unless_that_is_allowed() {
    let (server, folder) = (FaultServer::start().await.unwrap(), tempfile::tempdir().unwrap());
    let bench = Bench::at(settings(folder.path())).await;
    server.on("/w", [Reply::status(200)]);
    let id = bench.run_body(json!({ "input": {}, "webhook": server.url("/w") })).await;
    bench.until(&id, "COMPLETED").await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(server.count("/w"), 0);
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_was_not_told_hears_when_the_program_begins_again() {
    let (server, folder) = (FaultServer::start().await.unwrap(), tempfile::tempdir().unwrap());
    let mut patient = listening(&server, folder.path());
    patient.limits.webhook_pauses = vec![Duration::from_secs(600)];
    let bench = Bench::at(patient).await;
    server.on("/w", [Reply::status(500), Reply::status(200)]);
    let id = bench.run_body(json!({ "input": {}, "webhook": server.url("/w") })).await;
    bench.until(&id, "COMPLETED").await;
    told(&server, "/w", 1).await;
    bench.goes().await;
    let again = Bench::at(listening(&server, folder.path())).await;
    let seen = told(&server, "/w", 2).await;
    let body: Value = serde_json::from_slice(&seen[1].body).unwrap();
    assert_eq!((&body["id"], &body["status"]), (&json!(id), &json!("COMPLETED")));
    // Its answer is noted a moment after it was given; a service that goes before would tell it once more.
    sleep(Duration::from_secs(1)).await;
    again.goes().await;
    // And that was all.
    let third = Bench::at(listening(&server, folder.path())).await;
    sleep(Duration::from_millis(200)).await;
    assert_eq!(server.count("/w"), 2);
    third.goes().await;
}
