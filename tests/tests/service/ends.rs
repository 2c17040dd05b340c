//! How jobs end.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;

use crate::Bench;

const LONG: u64 = 1_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_runs_is_cancelled_and_the_next_one_begins() {
    let (bench, _folder) = Bench::start().await;
    let running = bench.run(json!({ "steps": LONG })).await;
    let next = bench.run(json!({})).await;
    bench.until(&running, "IN_PROGRESS").await;
    let begin = Instant::now();
    let cancelled = bench.post(&format!("/cancel/{running}"), &json!(null)).await.json();
    assert_eq!((&cancelled["id"], &cancelled["status"]), (&json!(running), &json!("CANCELLED")));
    bench.until(&next, "COMPLETED").await;
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    let told = bench.status(&running).await;
    assert!(told["status"] == "CANCELLED" && told.get("output").is_none(), "{told}");
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_is_cancelled_and_never_begins() {
    let (bench, _folder) = Bench::start().await;
    let running = bench.run(json!({ "steps": LONG })).await;
    let waiting = bench.run(json!({})).await;
    bench.until(&running, "IN_PROGRESS").await;
    assert_eq!(bench.post(&format!("/cancel/{waiting}"), &json!(null)).await.json()["status"], "CANCELLED");
    // Once more changes nothing; a job that is over stays what it is.
    assert_eq!(bench.post(&format!("/cancel/{waiting}"), &json!(null)).await.json()["status"], "CANCELLED");
    bench.post(&format!("/cancel/{running}"), &json!(null)).await;
    let last = bench.run(json!({})).await;
    bench.until(&last, "COMPLETED").await;
    assert_eq!(bench.post(&format!("/cancel/{last}"), &json!(null)).await.json()["status"], "COMPLETED");
    assert_eq!(bench.work.begun.load(std::sync::atomic::Ordering::SeqCst), 2);
    assert_eq!(bench.post("/cancel/none", &json!(null)).await.status, 404);
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_ends_late_does_not_change_what_its_job_is() {
    let (bench, _folder) = Bench::start().await;
    let deaf = bench.run(json!({ "steps": 30, "pause": 10, "deaf": 1 })).await;
    bench.until(&deaf, "IN_PROGRESS").await;
    bench.post(&format!("/cancel/{deaf}"), &json!(null)).await;
    let next = bench.run(json!({})).await;
    bench.until(&next, "COMPLETED").await;
    assert_eq!(bench.status(&deaf).await["status"], "CANCELLED");
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_reaches_the_client_as_one() {
    let (bench, _folder) = Bench::start().await;
    let id = bench.run(json!({ "error": "the dataset is empty" })).await;
    let told = bench.until(&id, "FAILED").await;
    assert_eq!((&told["error"], &told["output"]["echo"]["error"]), (&json!("the dataset is empty"), &told["error"]));
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_brings_its_work_down_gets_an_error_and_the_next_one_runs() {
    let (bench, _folder) = Bench::start().await;
    let (first, second) = (bench.run(json!({ "panic": 1 })).await, bench.run(json!({ "steps": 1 })).await);
    let error = bench.until(&first, "FAILED").await["error"].clone();
    let report: serde_json::Value = serde_json::from_str(error.as_str().unwrap()).unwrap();
    assert_eq!((&report["error_type"], &report["worker_id"]), (&json!("panic"), &json!("here")));
    bench.until(&second, "COMPLETED").await;
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_nobody_could_read_is_a_short_error() {
    let (bench, _folder) = Bench::start().await;
    let id = bench.run(json!({ "bytes": 17 << 20 })).await;
    let told = bench.until(&id, "FAILED").await;
    assert!(
        told["error"].as_str().unwrap().contains("in its folder") && told.get("output").is_none(),
        "{}",
        told["error"]
    );
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_may_run_as_long_as_its_policy_says() {
    let (bench, _folder) = Bench::start().await;
    // The shortest that the platform takes is five seconds.
    let body = json!({ "input": { "steps": LONG, "deaf": 1, "pause": 10 }, "policy": { "executionTimeout": 1 } });
    let deaf = bench.run_body(body).await;
    let told = bench.until(&deaf, "FAILED").await;
    assert_eq!(told["error"], "executionTimeout exceeded");
    assert!((5000..8000).contains(&told["executionTime"].as_u64().unwrap()), "{told}");
    drop(bench);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_limit_counts_for_jobs_without_their_own() {
    let (bench, _folder) = Bench::start_with(|settings| settings.execution = Some(Duration::from_millis(200))).await;
    let id = bench.run(json!({ "steps": LONG })).await;
    assert_eq!(bench.until(&id, "FAILED").await["error"], "executionTimeout exceeded");
    let body = json!({ "input": { "steps": 60, "pause": 10 }, "policy": { "executionTimeout": 60_000 } });
    let own = bench.run_body(body).await;
    bench.until(&own, "COMPLETED").await;
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_whose_life_is_over_are_gone() {
    let (bench, _folder) = Bench::start().await;
    let begin = Instant::now();
    let mortal = |input| json!({ "input": input, "policy": { "ttl": 1 } });
    let running = bench.run_body(mortal(json!({ "steps": LONG }))).await;
    let waiting = bench.run_body(mortal(json!({}))).await;
    let last = bench.run(json!({})).await;
    for id in [&running, &waiting] {
        while bench.get(&format!("/status/{id}")).await.status == 200 {
            assert!(begin.elapsed() < crate::PATIENCE);
            sleep(Duration::from_millis(50)).await;
        }
        assert!(begin.elapsed() >= Duration::from_secs(10));
    }
    bench.until(&last, "COMPLETED").await;
    assert_eq!(bench.get("/health").await.json()["jobs"]["inQueue"], 0);
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_forgets_what_waits_and_nothing_else() {
    let (bench, _folder) = Bench::start().await;
    let running = bench.run(json!({ "steps": LONG })).await;
    bench.until(&running, "IN_PROGRESS").await;
    let waiting = [bench.run(json!({})).await, bench.run(json!({})).await];
    let purged = bench.post("/purge-queue", &json!(null)).await.json();
    assert_eq!(purged, json!({ "removed": 2, "status": "completed" }));
    for id in &waiting {
        assert_eq!(bench.get(&format!("/status/{id}")).await.status, 404);
    }
    assert_eq!(bench.status(&running).await["status"], "IN_PROGRESS");
    bench.post(&format!("/cancel/{running}"), &json!(null)).await;
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_failed_is_tried_again_under_its_id() {
    let (bench, _folder) = Bench::start().await;
    let id = bench.run(json!({ "error": "no" })).await;
    bench.until(&id, "FAILED").await;
    let again = bench.post(&format!("/retry/{id}"), &json!(null)).await.json();
    assert_eq!(again, json!({ "id": id, "status": "IN_QUEUE" }));
    let told = bench.until(&id, "FAILED").await;
    assert_eq!((&told["retries"], &bench.get("/health").await.json()["jobs"]["retried"]), (&json!(1), &json!(1)));
    let good = bench.run(json!({})).await;
    bench.until(&good, "COMPLETED").await;
    let refused = bench.post(&format!("/retry/{good}"), &json!(null)).await;
    assert!(refused.status == 400 && refused.text.contains("COMPLETED"), "{refused:?}");
    assert_eq!(bench.post("/retry/none", &json!(null)).await.status, 404);
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_without_its_keys_is_not_tried_again() {
    let (bench, _folder) = Bench::start().await;
    let id = bench.run(json!({ "error": "no", "dataset_url": "https://h/a.jsonl?token=S3CR3T" })).await;
    bench.until(&id, "FAILED").await;
    let refused = bench.post(&format!("/retry/{id}"), &json!(null)).await;
    assert!(refused.status == 400 && refused.text.contains("send it again with /run"), "{refused:?}");
    bench.goes().await;
}
