//! What happens every day.

use std::{sync::atomic::Ordering, time::Duration};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::Bench;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_taken_shown_and_answered() {
    let (bench, _folder) = Bench::start().await;
    let id = bench.run(json!({ "steps": 20, "pause": 20, "x": 1 })).await;
    assert!(id.ends_with("-u1"), "{id}");
    let mut shown = bench.until(&id, "IN_PROGRESS").await;
    while shown["output"].is_null() {
        shown = bench.status(&id).await;
    }
    assert!(shown["output"]["step"].is_u64() && shown["workerId"] == "here", "{shown}");
    assert!(shown["delayTime"].as_u64().unwrap() < 1000 && shown["executionTime"].is_u64(), "{shown}");
    let done = bench.until(&id, "COMPLETED").await;
    assert_eq!(done["output"]["echo"]["x"], 1);
    assert!(done["executionTime"].as_u64().unwrap() >= 400, "{done}");
    let names: Vec<&String> = done.as_object().unwrap().keys().collect();
    assert_eq!(names, ["delayTime", "executionTime", "id", "status", "workerId", "output"]);
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_address_and_method_that_clients_use_works() {
    let (bench, _folder) = Bench::start().await;
    for prefix in ["", "/local", "/v2/local"] {
        let id = bench.post(&format!("{prefix}/run"), &json!({ "input": {} })).await.json()["id"].clone();
        let id = id.as_str().unwrap();
        bench.until(id, "COMPLETED").await;
        for method in ["GET", "POST"] {
            for (path, field) in [
                (format!("status/{id}"), "output"),
                (format!("status/{id}?ttl=5000"), "output"),
                (format!("status-sync/{id}?wait=1000"), "output"),
                (format!("stream/{id}"), "stream"),
                ("health".to_owned(), "workers"),
                ("requests".to_owned(), "requests"),
            ] {
                let reply = bench.ask(method, &format!("{prefix}/{path}"), &[], "").await;
                assert!(reply.status == 200 && !reply.json()[field].is_null(), "{method} {path}: {reply:?}");
            }
        }
        let sync = bench.post(&format!("{prefix}/runsync"), &json!({ "input": {} })).await.json();
        assert_eq!(sync["status"], "COMPLETED");
        assert!(sync["id"].as_str().unwrap().starts_with("sync-"));
    }
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_hears_at_once_or_when_the_time_is_over() {
    let (bench, _folder) = Bench::start().await;
    let slow = json!({ "input": { "steps": 30, "pause": 20 } });
    let reply = bench.post("/runsync?wait=50", &slow).await.json();
    assert!(["IN_QUEUE", "IN_PROGRESS"].contains(&reply["status"].as_str().unwrap()), "{reply}");
    let id = reply["id"].as_str().unwrap();
    let done = bench.get(&format!("/status-sync/{id}?wait=60000")).await.json();
    assert_eq!(done["status"], "COMPLETED");
    let unknown = bench.get("/status-sync/none?wait=60000").await;
    assert_eq!(unknown.status, 404);
    let odd = bench.get(&format!("/status-sync/{id}?wait=soon")).await;
    assert!(odd.status == 400 && odd.text.contains("milliseconds"), "{odd:?}");
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_everything_once_and_in_order() {
    let (bench, _folder) = Bench::start().await;
    let id = bench.run(json!({ "steps": 40, "pause": 5 })).await;
    let mut steps = Vec::new();
    let last = loop {
        let piece = bench.get(&format!("/stream/{id}?wait=5000")).await.json();
        let stream = piece["stream"].as_array().unwrap().clone();
        steps.extend(stream.iter().map(|element| element["output"]["step"].as_u64().unwrap()));
        if piece["status"] == "COMPLETED" && stream.is_empty() {
            break piece;
        }
    };
    assert_eq!(steps, (1..=40).collect::<Vec<u64>>());
    assert_eq!(last, json!({ "status": "COMPLETED", "stream": [] }));
    assert_eq!(bench.get("/stream/none").await.status, 404);
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_done_one_at_a_time_and_in_order() {
    let (bench, _folder) = Bench::start().await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(bench.run(json!({ "steps": 3, "pause": 2 })).await);
    }
    let health = bench.get("/health").await.json();
    assert!(health["jobs"]["inProgress"].as_u64().unwrap() <= 1, "{health}");
    bench.until(ids.last().unwrap(), "COMPLETED").await;
    assert_eq!(bench.get("/health").await.json()["jobs"]["completed"], 20);
    assert_eq!(bench.work.begun.load(Ordering::SeqCst), 20);
    let listed = bench.get("/requests").await.json();
    let mut listed: Vec<&str> =
        listed["requests"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap()).collect();
    listed.sort_unstable();
    ids.sort_unstable();
    assert_eq!(listed, ids);
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_beside_the_input_reaches_the_work() {
    let (bench, _folder) = Bench::start().await;
    let body = json!({
        "input": [1, "two"], "policy": { "executionTimeout": 60_000, "ttl": 90_000, "lowPriority": true },
        "s3Config": { "bucketName": "b", "accessSecret": "S3CR3T" },
    });
    let id = bench.run_body(body).await;
    let output = bench.until(&id, "COMPLETED").await["output"].clone();
    assert_eq!(output["echo"], json!([1, "two"]));
    assert_eq!(output["policy"], json!({ "executionTimeout": 60_000, "ttl": 90_000 }));
    assert_eq!(output["store"]["accessSecret"], "S3CR3T");
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_jobs_are_done_once_each() {
    let (bench, _folder) = Bench::start_with(|settings| settings.limits.history = 2000).await;
    let mut ids = Vec::new();
    for number in 0..1000 {
        ids.push(bench.run(json!({ "number": number })).await);
    }
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(bench.until(id, "COMPLETED").await["output"]["echo"]["number"], json!(number));
    }
    assert_eq!(bench.work.begun.load(Ordering::SeqCst), 1000);
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_begins_as_soon_as_it_is_there() {
    let (bench, _folder) = Bench::start().await;
    let mut waited: Vec<u64> = Vec::new();
    for _ in 0..20 {
        let id = bench.run(Value::from(1)).await;
        waited.push(bench.until(&id, "COMPLETED").await["delayTime"].as_u64().unwrap());
        sleep(Duration::from_millis(5)).await;
    }
    waited.sort_unstable();
    assert!(waited[waited.len() / 2] < 100, "{waited:?}");
    bench.goes().await;
}
