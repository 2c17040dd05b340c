//! What happens every day.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use brightrun_tests::platform::{Options, Platform, Route, Status, Urls, WORKER, order_problems, ping_problems, pings};
use brightrun_worker::runpod::Pace;
use serde_json::json;

use crate::{Bench, PATIENCE};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_taken_shown_and_answered() {
    let bench = Bench::start();
    let job = bench.platform.submit(json!({ "steps": 12, "pause": 50 }));
    let view = bench.ends(&job, Status::Completed).await;
    assert_eq!(view.results.len(), 1);
    assert!(view.progress.len() >= 2, "{:?}", view.progress);
    assert_eq!(view.output.unwrap()["echo"]["steps"], 12);
    let platform = bench.goes().await;
    let seen = platform.seen();
    assert_eq!(order_problems(&seen, Duration::from_millis(100)), [""; 0]);
    assert_eq!(ping_problems(&seen, Duration::from_secs(2)), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shape_of_addresses_is_understood() {
    for urls in [Urls::Bare, Urls::GpuName, Urls::Hub] {
        let bench = Bench::start_with(Options::default(), urls);
        let job = bench.platform.submit(json!({ "steps": 2 }));
        bench.ends(&job, Status::Completed).await;
        let platform = bench.goes().await;
        assert_eq!(platform.count(Route::Unknown), 0, "{urls:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_without_input_is_answered_too() {
    let bench = Bench::start();
    let job = bench.platform.submit(json!({}));
    assert_eq!(bench.ends(&job, Status::Completed).await.output.unwrap(), json!({ "echo": {} }));
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_reaches_the_client_as_one() {
    let bench = Bench::start();
    let job = bench.platform.submit(json!({ "error": "the dataset is empty" }));
    let view = bench.ends(&job, Status::Failed).await;
    assert_eq!(view.error.unwrap(), "the dataset is empty");
    assert_eq!(view.output.unwrap()["echo"]["error"], "the dataset is empty");
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_brings_its_work_down_gets_an_error_and_the_next_one_runs() {
    let bench = Bench::start();
    let (first, second) = (bench.platform.submit(json!({ "panic": 1 })), bench.platform.submit(json!({ "steps": 1 })));
    let error = bench.ends(&first, Status::Failed).await.error.unwrap();
    let report: serde_json::Value = serde_json::from_str(&error).unwrap();
    let keys: Vec<&String> = report.as_object().unwrap().keys().collect();
    let expected = ["error_type", "error_message", "error_traceback", "hostname", "worker_id", "runpod_version"];
    assert_eq!(keys, expected);
    assert_eq!(report["hostname"], "worker-abc-host");
    bench.ends(&second, Status::Completed).await;
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_to_be_replaced_says_so() {
    let bench = Bench::start();
    let jobs = [json!({ "refresh": 1 }), json!({})].map(|input| bench.platform.submit(input));
    assert!(bench.ends(&jobs[0], Status::Completed).await.stop_pod);
    assert!(!bench.ends(&jobs[1], Status::Completed).await.stop_pod);
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_jobs_are_answered_once_each() {
    let bench = Bench::start();
    let jobs: Vec<String> = (0..1000).map(|number| bench.platform.submit(json!({ "number": number }))).collect();
    for (number, job) in jobs.iter().enumerate() {
        let view = bench.platform.until_status(job, Status::Completed, PATIENCE).await.unwrap();
        assert_eq!((view.results.len(), view.deliveries), (1, 1), "{job}");
        assert_eq!(view.output.unwrap()["echo"]["number"], number);
    }
    assert_eq!(bench.work.begun.load(Ordering::SeqCst), 1000);
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_room_for_several_asks_for_so_many_and_does_them_side_by_side() {
    let platform = Arc::new(Platform::start_with(Options { ping_milliseconds: 100, ..Options::default() }).unwrap());
    let jobs: Vec<String> = (0..6).map(|_| platform.submit(json!({ "steps": 20, "pause": 50 }))).collect();
    let pace = Pace { progress: Duration::from_millis(100), ..Pace::default() };
    let bench = Bench::with(platform, WORKER, Urls::Full, pace, |serving| serving.side_by_side(4));
    for job in &jobs {
        bench.ends(job, Status::Completed).await;
    }
    let platform = bench.goes().await;
    let takes = platform.seen_on(Route::TakeBatch);
    assert!(takes[0].target.contains("batch_size=4&job_in_progress=0"), "{}", takes[0].target);
    let most = pings(&platform.seen()).iter().map(|ping| ping.jobs.len()).max();
    assert_eq!(most, Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_stopped_among_several_stops_alone() {
    let platform = Arc::new(Platform::start_with(Options { ping_milliseconds: 100, ..Options::default() }).unwrap());
    let endless = platform.submit(json!({ "steps": 100_000, "pause": 20 }));
    let short = platform.submit(json!({ "steps": 30, "pause": 20 }));
    let pace = Pace { progress: Duration::from_millis(50), ..Pace::default() };
    let bench = Bench::with(platform, WORKER, Urls::Full, pace, |serving| serving.side_by_side(2));
    bench.platform.until_count(Route::Progress, 4, PATIENCE).await.unwrap();
    bench.platform.cancel(&endless);
    bench.ends(&short, Status::Completed).await;
    let third = bench.platform.submit(json!({ "steps": 1 }));
    bench.ends(&third, Status::Completed).await;
    bench.goes().await;
}
