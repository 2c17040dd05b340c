//! What becomes of jobs: errors, results too many or too large, misses, limits, cancels.

use std::time::Duration;

use brightrun_tests::platform::{Options, Platform, Route, Status};
use serde_json::json;

use crate::{PATIENCE, SHORT, client, hasty, patient};

/// A platform that misses pings soon.
fn strict() -> Platform {
    let redispatch_after = Some(Duration::from_millis(800));
    Platform::start_with(Options { take_hold: SHORT, stop_hold: SHORT, redispatch_after, ..Options::default() })
        .unwrap()
}

#[tokio::test]
async fn an_error_beside_the_output_is_a_failure() {
    let platform = patient();
    let worker = client(&platform);
    let job = platform.submit(json!({ "a": 1 }));
    worker.take().await.unwrap();
    worker.done(&job, json!({ "output": { "detail": 1 }, "error": "too hot" })).await.unwrap();
    let view = platform.job(&job).unwrap();
    assert_eq!((view.status, view.error.as_deref()), (Status::Failed, Some("too hot")));
    assert_eq!(view.output, Some(json!({ "detail": 1 })));
    assert!(!view.stop_pod);
}

#[tokio::test]
async fn an_empty_object_as_input_is_not_sent() {
    let platform = patient();
    let worker = client(&platform);
    for input in [json!({}), json!([]), json!(null)] {
        platform.submit(input.clone());
        let body = worker.take().await.unwrap().json();
        assert_eq!(body.get("input"), (input != json!({})).then_some(&input));
    }
}

#[tokio::test]
async fn progress_after_the_result_leaves_a_job_stuck() {
    let platform = patient();
    let worker = client(&platform);
    let job = platform.submit(json!({ "a": 1 }));
    worker.take().await.unwrap();
    worker.done(&job, json!({ "output": 1, "stopPod": true })).await.unwrap();
    worker.progress(&job, json!("late")).await.unwrap();
    let view = platform.job(&job).unwrap();
    assert_eq!((view.status, view.output, view.stop_pod), (Status::InProgress, Some(json!("late")), true));
}

#[tokio::test]
async fn a_result_too_large_is_refused_and_the_job_completed_without_it() {
    let platform = patient();
    platform.set(|options| options.max_body_bytes = 100);
    let worker = client(&platform);
    let job = platform.submit(json!({ "a": 1 }));
    worker.take().await.unwrap();
    let large = json!("x".repeat(200));
    assert_eq!(worker.progress(&job, large.clone()).await.unwrap().status, 400);
    assert_eq!(platform.job(&job).unwrap().status, Status::InProgress);
    assert_eq!(worker.done(&job, json!({ "output": large })).await.unwrap().status, 400);
    let view = platform.job(&job).unwrap();
    assert_eq!((view.status, view.output, view.results.len()), (Status::Completed, None, 0));
    // What a careful worker does then.
    assert_eq!(worker.done(&job, json!({ "error": "too large" })).await.unwrap().status, 200);
    assert_eq!(platform.job(&job).unwrap().status, Status::Failed);
    assert_eq!(platform.problems(), Vec::<String>::new());
}

#[tokio::test]
async fn a_job_no_ping_lists_is_given_out_again_and_then_fails() {
    let platform = strict();
    let worker = client(&platform);
    let job = platform.submit(json!({ "a": 1 }));
    assert_eq!(worker.take().await.unwrap().json()["id"], job);
    platform.until_status(&job, Status::InQueue, PATIENCE).await.unwrap();
    assert_eq!(worker.take().await.unwrap().json()["id"], job);
    let view = platform.until_status(&job, Status::Failed, PATIENCE).await.unwrap();
    assert_eq!((view.error.as_deref(), view.retries, view.deliveries), (Some("job timed out after 1 retries"), 1, 2));
    assert_eq!(view.json()["retries"], 1);
}

#[tokio::test]
async fn pings_of_the_worker_that_has_a_job_keep_it_there() {
    let platform = strict();
    let worker = client(&platform);
    let job = platform.submit(json!({ "a": 1 }));
    worker.take().await.unwrap();
    for _ in 0..16 {
        worker.ping(&[&job]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert_eq!(platform.job(&job).unwrap().status, Status::InProgress);
    // Another worker's do not, nor does progress.
    let other = crate::client::Client::new(&platform, &platform.environment_of("other", crate::Urls::Full));
    let missed = async {
        loop {
            other.ping(&[&job]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = missed => {}
        view = platform.until_status(&job, Status::InQueue, PATIENCE) => assert_eq!(view.unwrap().retries, 1),
    }
    // The first worker answers after all: nobody gets it again.
    worker.done(&job, json!({ "output": 1 })).await.unwrap();
    assert_eq!((platform.waiting(), platform.job(&job).unwrap().status), (0, Status::Completed));
}

#[tokio::test]
async fn a_job_is_given_out_again_when_asked_also_while_it_runs() {
    let platform = hasty();
    let worker = client(&platform);
    let job = platform.submit(json!({ "a": 1 }));
    worker.take().await.unwrap();
    platform.deliver_again(&job);
    assert_eq!(worker.take().await.unwrap().json()["id"], job);
    platform.deliver_again(&job);
    worker.done(&job, json!({ "output": 1 })).await.unwrap();
    assert_eq!(worker.take().await.unwrap().json()["id"], job);
    worker.done(&job, json!({ "output": 1 })).await.unwrap();
    let view = platform.job(&job).unwrap();
    assert_eq!((view.status, view.deliveries, view.results.len()), (Status::Completed, 3, 2));
    assert_eq!(platform.problems(), Vec::<String>::new());
}

#[tokio::test]
async fn a_cancelled_job_stays_cancelled() {
    let platform = hasty();
    let worker = client(&platform);
    let waits = platform.submit(json!({ "a": 1 }));
    assert_eq!(platform.cancel(&waits), Some(Status::Cancelled));
    assert_eq!((worker.take().await.unwrap().status, worker.stops().await.unwrap().status), (204, 204));
    let runs = platform.submit(json!({ "a": 1 }));
    worker.take().await.unwrap();
    platform.cancel(&runs);
    worker.progress(&runs, json!(1)).await.unwrap();
    worker.done(&runs, json!({ "output": 1 })).await.unwrap();
    let view = platform.job(&runs).unwrap();
    assert_eq!((view.status, view.output, view.results.len()), (Status::Cancelled, None, 1));
    assert_eq!(platform.cancel(&runs), Some(Status::Cancelled));
    let timed_out = platform.submit(json!({ "a": 1 }));
    worker.take().await.unwrap();
    assert_eq!(platform.time_out(&timed_out), Some(Status::TimedOut));
    assert_eq!(worker.stops().await.unwrap().json(), json!({ "jobsToStop": [runs, timed_out] }));
}

#[tokio::test]
async fn a_policy_ends_jobs() {
    let platform = hasty();
    let worker = client(&platform);
    let slow = platform.submit_body(json!({ "id": "slow", "input": 1, "policy": { "executionTimeout": 50 } }));
    worker.take().await.unwrap();
    let view = platform.until_status(&slow, Status::Failed, PATIENCE).await.unwrap();
    assert_eq!(view.error.as_deref(), Some("executionTimeout exceeded"));
    assert_eq!(worker.stops().await.unwrap().json(), json!({ "jobsToStop": ["slow"] }));
    let old = platform.submit_body(json!({ "input": 1, "policy": { "ttl": 1000 } }));
    worker.take().await.unwrap();
    let gone = |platform: &Platform| platform.job(&old).is_none().then_some(());
    platform.until(PATIENCE, "end of the job", gone).await.unwrap();
    assert_eq!(worker.stops().await.unwrap().json(), json!({ "jobsToStop": [old] }));
    assert_eq!(worker.done(&old, json!({ "output": 1 })).await.unwrap().status, 404);
}

#[tokio::test]
async fn a_thousand_jobs_are_answered_once_each() {
    let platform = patient();
    let worker = client(&platform);
    let jobs: Vec<String> = (0..1000).map(|number| platform.submit(json!({ "number": number }))).collect();
    for job in &jobs {
        assert_eq!(worker.take().await.unwrap().json()["id"], *job);
        worker.done(job, json!({ "output": 1 })).await.unwrap();
    }
    assert!(platform.jobs().iter().all(|view| view.status == Status::Completed && view.results.len() == 1));
    assert_eq!((platform.count(Route::Done), platform.problems()), (1000, Vec::new()));
}
