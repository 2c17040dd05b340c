//! Each kind of fault, its extent, and takes that only the test answers.

use std::time::{Duration, Instant};

use brightrun_tests::platform::{Extent, Fault, Outcome, Platform, Route, Status};
use serde_json::json;

use crate::{PATIENCE, SHORT, client, hasty, patient};

#[tokio::test]
async fn a_status_comes_as_often_as_asked_and_has_no_effect() {
    let platform = hasty();
    let worker = client(&platform);
    let job = platform.submit(json!({ "a": 1 }));
    let statuses = [400, 401, 404, 429, 500, 502, 503];
    for status in statuses {
        platform.fault(Route::Take, Fault::status(status), Extent::Times(2));
    }
    for status in statuses {
        for _ in 0..2 {
            assert_eq!(worker.take().await.unwrap().status, status);
        }
    }
    assert_eq!(platform.job(&job).unwrap().status, Status::InQueue);
    assert_eq!(worker.take().await.unwrap().json()["id"], job);
}

#[tokio::test]
async fn every_route_has_its_own_faults() {
    let platform = hasty();
    let worker = client(&platform);
    let job = platform.submit(json!({ "a": 1 }));
    for (status, route) in (500..).zip(Route::ALL) {
        platform.fault(route, Fault::status(status), Extent::UntilMended);
    }
    let statuses = async || {
        [
            worker.take().await.unwrap().status,
            worker.take_batch(2).await.unwrap().status,
            worker.progress(&job, json!(1)).await.unwrap().status,
            worker.done(&job, json!({ "output": 1 })).await.unwrap().status,
            worker.stream(&job, json!({ "output": 1 })).await.unwrap().status,
            worker.ping(&[]).await.unwrap().status,
            worker.stops().await.unwrap().status,
        ]
    };
    assert_eq!(statuses().await, [500, 501, 502, 503, 504, 505, 506]);
    assert_eq!(statuses().await, [500, 501, 502, 503, 504, 505, 506]);
    Route::ALL.into_iter().for_each(|route| platform.mend(route));
    assert_eq!(statuses().await, [200, 204, 200, 200, 200, 200, 204]);
}

#[tokio::test]
async fn a_fault_lasts_as_long_as_asked_from_its_first_request() {
    let platform = hasty();
    let worker = client(&platform);
    platform.fault(Route::Ping, Fault::status(500), Extent::Lasting(Duration::from_millis(300)));
    tokio::time::sleep(Duration::from_millis(400)).await;
    let start = Instant::now();
    assert_eq!(worker.ping(&[]).await.unwrap().status, 500);
    while worker.ping(&[]).await.unwrap().status == 500 {
        assert!(start.elapsed() < PATIENCE, "it never ends");
    }
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_connection_is_dropped_before_or_after_the_effect() {
    let platform = patient();
    let worker = client(&platform);
    let job = platform.submit(json!({ "a": 1 }));
    worker.take().await.unwrap();
    platform.fault(Route::Done, Fault::dropped(), Extent::Times(1));
    assert_eq!(worker.done(&job, json!({ "output": 1 })).await, None);
    assert_eq!(platform.job(&job).unwrap().status, Status::InProgress);
    platform.fault(Route::Done, Fault::closed(), Extent::Times(1));
    assert_eq!(worker.done(&job, json!({ "output": 1 })).await, None);
    assert_eq!(platform.job(&job).unwrap().status, Status::InProgress);
    platform.fault(Route::Done, Fault::dropped().after_effect(), Extent::Times(1));
    assert_eq!(worker.done(&job, json!({ "output": 1 })).await, None);
    assert_eq!(platform.job(&job).unwrap().status, Status::Completed);
    assert!(platform.seen()[1..].iter().all(|seen| matches!(seen.outcome, Outcome::Dropped { .. })));
    // The worker cannot know, so a third attempt is right.
    assert_eq!(worker.done(&job, json!({ "output": 1 })).await.unwrap().status, 200);
    assert_eq!(platform.job(&job).unwrap().results.len(), 2);
    assert_eq!(platform.problems(), Vec::<String>::new());
}

#[tokio::test]
async fn a_result_may_be_taken_and_refused_all_the_same() {
    let platform = patient();
    let worker = client(&platform);
    let [first, second] = [1, 2].map(|number| platform.submit(json!(number)));
    worker.take_batch(2).await.unwrap();
    platform.fault(Route::Done, Fault::status(502).after_effect().for_job(&second), Extent::UntilMended);
    assert_eq!(worker.done(&first, json!({ "output": 1 })).await.unwrap().status, 200);
    assert_eq!(worker.done(&second, json!({ "output": 1 })).await.unwrap().status, 502);
    assert_eq!(platform.job(&second).unwrap().status, Status::Completed);
}

#[tokio::test]
async fn answers_are_slow_and_a_worker_that_does_not_wait_loses_its_job() {
    let platform = patient();
    let worker = client(&platform);
    platform.fault(Route::Take, Fault::slow(SHORT), Extent::Times(1));
    platform.fault(Route::Take, Fault::slow(PATIENCE), Extent::Times(1));
    platform.fault(Route::Take, Fault::status(503).waiting(SHORT), Extent::Times(1));
    let [first, second] = [1, 2].map(|number| platform.submit(json!(number)));
    let start = Instant::now();
    assert_eq!(worker.take().await.unwrap().json()["id"], first);
    assert!(start.elapsed() >= SHORT);
    let impatient = tokio::spawn({
        let worker = worker.clone();
        async move { worker.take().await }
    });
    platform.until_status(&second, Status::InProgress, PATIENCE).await.unwrap();
    impatient.abort();
    let left = |platform: &Platform| matches!(platform.seen()[1].outcome, Outcome::Left { .. }).then_some(());
    platform.until(PATIENCE, "end of the take", left).await.unwrap();
    let start = Instant::now();
    assert_eq!(worker.take().await.unwrap().status, 503);
    assert!(start.elapsed() >= SHORT);
}

#[tokio::test]
async fn bodies_are_wrong_in_every_way() {
    let platform = hasty();
    let worker = client(&platform);
    let faults = [Fault::no_json(), Fault::html(), Fault::empty(), Fault::job_without_id(), Fault::cut()];
    for fault in faults {
        platform.fault(Route::Take, fault, Extent::Times(1));
    }
    let no_json = worker.take().await.unwrap();
    assert!(no_json.status == 200 && serde_json::from_str::<serde_json::Value>(&no_json.body).is_err());
    assert_eq!(worker.take().await.unwrap().content_type, "text/html");
    let empty = worker.take().await.unwrap();
    assert_eq!((empty.status, empty.body.as_str(), empty.whole), (200, "", true));
    let without_id = worker.take().await.unwrap().json();
    assert!(without_id.get("id").is_none() && without_id.get("input").is_some());
    assert!(worker.take().await.is_none_or(|answer| !answer.whole));
    assert_eq!(worker.take().await.unwrap().status, 204);
    platform.fault(Route::Ping, Fault::closing(), Extent::Times(1));
    assert_eq!(worker.ping(&[]).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_held_take_is_answered_by_the_test_alone() {
    let hold = Duration::from_secs(1);
    let platform = patient();
    platform.set(|options| options.take_hold = hold);
    let worker = client(&platform);
    let taking = tokio::spawn(async move { worker.take().await });
    let held = platform.hold_take(PATIENCE).await.unwrap();
    // Neither a job nor the end of its time answers it.
    let queued = platform.submit(json!("queued"));
    tokio::time::sleep(hold + SHORT).await;
    assert!(held.is_open() && !taking.is_finished());
    let job = held.release_with(json!({ "in": "the very answer" }));
    let body = taking.await.unwrap().unwrap().json();
    assert_eq!((body["id"].as_str(), &body["input"]), (Some(job.as_str()), &json!({ "in": "the very answer" })));
    assert!(platform.seen()[0].delivers(&job));
    assert_eq!(client(&platform).take().await.unwrap().json()["id"], queued);
}

#[tokio::test]
async fn a_held_take_ends_empty_or_goes_on_or_finds_nobody() {
    let platform = patient();
    let take = || {
        let worker = client(&platform);
        tokio::spawn(async move { worker.take().await })
    };
    let taking = take();
    platform.hold_take(PATIENCE).await.unwrap().release_empty();
    assert_eq!(taking.await.unwrap().unwrap().status, 204);

    let taking = take();
    drop(platform.hold_take(PATIENCE).await.unwrap());
    let job = platform.submit(json!(1));
    assert_eq!(taking.await.unwrap().unwrap().json()["id"], job);

    let taking = take();
    let held = platform.hold_take(PATIENCE).await.unwrap();
    taking.abort();
    platform.until(PATIENCE, "end of the take", |_| (!held.is_open()).then_some(())).await.unwrap();
    let number = held.number();
    let lost = held.release_with_body(json!({ "id": "lost", "input": 2 }));
    assert_eq!(lost, "lost");
    // Given out as far as the platform knows; the worker never had it.
    assert_eq!(platform.job(&lost).unwrap().status, Status::InProgress);
    assert!(platform.seen()[number].delivered == [lost.as_str()] && !platform.seen()[number].delivers(&lost));
}
