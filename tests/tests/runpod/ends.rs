//! Jobs that are stopped, workers that go.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use brightrun_tests::platform::{Options, Platform, Route, Status, Urls};
use serde_json::json;

use crate::{Bench, PATIENCE};

fn quick() -> Options {
    Options { ping_milliseconds: 100, redispatch_after: Some(Duration::from_millis(1500)), ..Options::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_ends_soon_and_says_nothing_more() {
    let bench = Bench::start();
    let job = bench.platform.submit(json!({ "steps": 100_000, "pause": 20 }));
    bench.ends(&job, Status::InProgress).await;
    bench.platform.until_count(Route::Progress, 1, PATIENCE).await.unwrap();
    bench.platform.cancel(&job);
    // The next one runs, so the worker is free.
    let next = bench.platform.submit(json!({ "steps": 1 }));
    bench.ends(&next, Status::Completed).await;
    let view = bench.platform.job(&job).unwrap();
    assert_eq!((view.status, view.results.len()), (Status::Cancelled, 0));
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_goes_finishes_what_cannot_go_on_elsewhere() {
    let bench = Bench::start();
    let job = bench.platform.submit(json!({ "steps": 20, "pause": 20 }));
    bench.platform.until_count(Route::Progress, 1, PATIENCE).await.unwrap();
    let platform = bench.goes().await;
    assert_eq!(platform.job(&job).unwrap().status, Status::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_handed_back_goes_on_at_another_worker() {
    let platform = Arc::new(Platform::start_with(quick()).unwrap());
    let first = Bench::at(platform.clone(), "one", Urls::Full);
    let job = platform.submit(json!({ "steps": 150, "pause": 20, "resumable": true }));
    platform.until_count(Route::Progress, 1, PATIENCE).await.unwrap();
    first.leave.cancel();
    first.working.await.unwrap();
    assert_eq!(platform.job(&job).unwrap().status, Status::InProgress);
    let second = Bench::at(platform.clone(), "two", Urls::Full);
    let view = second.ends(&job, Status::Completed).await;
    assert_eq!((view.deliveries, view.results.len()), (2, 1));
    second.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_arrives_when_the_worker_is_to_go_is_not_dropped() {
    let bench = Bench::start();
    let take = bench.platform.hold_take(PATIENCE).await.unwrap();
    bench.leave.cancel();
    let job = take.release_with(json!({ "steps": 1 }));
    let platform = bench.goes().await;
    assert_eq!(platform.job(&job).unwrap().status, Status::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_goes_at_once() {
    let bench = Bench::start();
    bench.platform.until_count(Route::Take, 1, PATIENCE).await.unwrap();
    let begin = bench.platform.clock();
    let platform = bench.goes().await;
    // Much less than the take is held.
    assert!(platform.clock() - begin < Duration::from_secs(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_delivered_twice_is_listed_until_both_are_answered() {
    let bench = Bench::start();
    let job = bench.platform.submit(json!({ "steps": 10, "pause": 20 }));
    bench.platform.until_count(Route::Progress, 1, PATIENCE).await.unwrap();
    bench.platform.deliver_again(&job);
    let last = bench.platform.submit(json!({ "steps": 1 }));
    bench.ends(&last, Status::Completed).await;
    assert_eq!(bench.work.begun.load(Ordering::SeqCst), 3);
    bench.goes().await;
}
