//! A platform that goes wrong.

use std::time::Duration;

use brightrun_tests::platform::{Extent, Fault, Options, Route, Status, Urls, most_within, ping_problems};
use brightrun_worker::runpod::Pace;
use serde_json::json;

use crate::{Bench, PATIENCE};

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_refuses_to_give_jobs_is_not_stormed() {
    for fault in [Fault::status(500), Fault::status(404), Fault::status(400), Fault::dropped(), Fault::no_json()] {
        let bench = Bench::start();
        bench.platform.fault(Route::Take, fault, Extent::Lasting(Duration::from_secs(3)));
        let job = bench.platform.submit(json!({}));
        bench.ends(&job, Status::Completed).await;
        let platform = bench.goes().await;
        // In three seconds the SDK asks a thousand times.
        let most = most_within(&platform.seen(), Route::Take, Duration::from_secs(1));
        assert!(most <= 5, "{most} in a second");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_said_until_it_arrives() {
    // The platform may not know a job, or a key, for a moment.
    let statuses = [500, 503, 429, 401, 403, 404, 409].map(Fault::status);
    for fault in statuses.into_iter().chain([Fault::dropped(), Fault::closed(), Fault::cut()]) {
        let bench = Bench::start();
        bench.platform.fault(Route::Done, fault, Extent::Times(4));
        let job = bench.platform.submit(json!({ "steps": 1 }));
        bench.ends(&job, Status::Completed).await;
        let platform = bench.goes().await;
        assert_eq!(platform.count(Route::Done), 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_the_platform_refuses_becomes_a_short_error() {
    let bench = Bench::start_with(Options { max_body_bytes: 5000, ..Options::default() }, Urls::Full);
    let job = bench.platform.submit(json!({ "bytes": 100_000 }));
    bench.platform.until_count(Route::Done, 2, PATIENCE).await.unwrap();
    let next = bench.platform.submit(json!({ "steps": 1 }));
    bench.ends(&next, Status::Completed).await;
    let bodies: Vec<_> = bench.platform.seen_on(Route::Done).iter().filter_map(|seen| seen.json()).collect();
    assert!(bodies[1]["error"].as_str().unwrap().contains("HTTP 400"), "{job}: {bodies:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_is_too_large_is_not_even_tried() {
    let bench = Bench::start();
    let job = bench.platform.submit(json!({ "bytes": 3_000_000 }));
    let error = bench.ends(&job, Status::Failed).await.error.unwrap();
    assert!(error.contains("3000013 bytes"), "{error}");
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_the_platform_knows_no_more_is_not_answered_for_ever() {
    let bench = Bench::start();
    let job = bench.platform.submit(json!({ "steps": 20, "pause": 20 }));
    bench.platform.fault(Route::Done, Fault::status(404).for_job(&job), Extent::UntilMended);
    let next = bench.platform.submit(json!({ "steps": 1 }));
    bench.ends(&next, Status::Completed).await;
    let answers = bench.platform.seen_on(Route::Done);
    let bodies: Vec<_> =
        answers.iter().filter_map(|seen| seen.json()).filter(|body| body.get("error").is_some()).collect();
    assert!(bodies.is_empty(), "a result is not replaced by an error: {bodies:?}");
    assert_eq!(answers.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_waits_for_any_more_is_given_up() {
    let bench = Bench::start();
    let job = bench.platform.submit(json!({ "steps": 1 }));
    bench.platform.fault(Route::Done, Fault::status(503).for_job(&job), Extent::UntilMended);
    bench.platform.until_count(Route::Done, 2, PATIENCE).await.unwrap();
    bench.platform.cancel(&job);
    let next = bench.platform.submit(json!({ "steps": 1 }));
    bench.ends(&next, Status::Completed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_cannot_be_read_is_told_so() {
    let bench = Bench::start();
    // Deeper than is read; the platform takes it.
    let deep = (0..200).fold(json!(0), |inner, _| json!([inner]));
    let job = bench.platform.submit(json!({ "x": deep }));
    let view = bench.ends(&job, Status::Failed).await;
    let body = view.results[0].to_string();
    assert!(body.contains("its JSON is wrong: recursion limit exceeded"), "{body}");
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_that_nobody_takes_changes_nothing() {
    let bench = Bench::start();
    bench.platform.fault(Route::Progress, Fault::status(500), Extent::UntilMended);
    let job = bench.platform.submit(json!({ "steps": 20, "pause": 20 }));
    assert_eq!(bench.ends(&job, Status::Completed).await.results.len(), 1);
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_pings_and_stops_jobs_are_done_all_the_same() {
    let bench = Bench::start();
    bench.platform.fault(Route::Ping, Fault::dropped(), Extent::UntilMended);
    bench.platform.fault(Route::Stop, Fault::status(404), Extent::UntilMended);
    let job = bench.platform.submit(json!({ "steps": 20, "pause": 20 }));
    bench.ends(&job, Status::Completed).await;
    let platform = bench.goes().await;
    assert!(most_within(&platform.seen(), Route::Stop, Duration::from_secs(1)) <= 3);
}

/// Two minutes, with the pauses that a worker really makes.
#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_takes_no_results_for_two_minutes_gets_them_then() {
    let bench = Bench::paced(Pace::default());
    bench.platform.fault(Route::Done, Fault::status(503), Extent::Lasting(Duration::from_secs(120)));
    let job = bench.platform.submit(json!({ "steps": 1 }));
    let view = bench.platform.until_status(&job, Status::Completed, 4 * PATIENCE).await.unwrap();
    assert_eq!((view.results.len(), view.deliveries), (1, 1));
    let platform = bench.goes().await;
    let attempts = platform.count(Route::Done);
    assert!((5..=20).contains(&attempts), "{attempts} attempts");
    assert_eq!(ping_problems(&platform.seen(), Duration::from_secs(2)), [""; 0]);
}
