//! The checks between requests find what was planted.

use std::time::Duration;

use brightrun_tests::platform::{
    Extent, Fault, Options, Platform, Route, Urls, answer_problems, most_within, order_problems, ping_gap,
    ping_problems, pings,
};
use serde_json::json;

use crate::{PATIENCE, SHORT, client, client::Client, hasty, patient};

/// What a worker has to notice a change, in these tests: enough for a busy machine.
const SLACK: Duration = Duration::from_millis(400);

/// One problem, with these words.
fn assert_one(problems: &[String], words: &str) {
    assert!(problems.len() == 1 && problems[0].contains(words), "{words}: {problems:#?}");
}

/// A platform whose worker has one job.
async fn with_a_job() -> (Platform, Client, String) {
    let platform = hasty();
    let worker = client(&platform);
    let job = platform.submit(json!({ "a": 1 }));
    worker.take().await.unwrap();
    (platform, worker, job)
}

fn order(platform: &Platform) -> Vec<String> {
    order_problems(&platform.seen(), Duration::ZERO)
}

#[tokio::test]
async fn progress_and_stream_after_the_result_are_found() {
    let (platform, worker, job) = with_a_job().await;
    worker.progress(&job, json!(1)).await.unwrap();
    worker.done(&job, json!({ "output": 1 })).await.unwrap();
    assert_eq!(order(&platform), Vec::<String>::new());
    worker.progress(&job, json!(2)).await.unwrap();
    assert_one(&order(&platform), "after the result");
    worker.stream(&job, json!({ "output": 1 })).await.unwrap();
    assert_eq!(order(&platform).len(), 2);
}

#[tokio::test]
async fn progress_after_an_attempt_at_the_result_is_found() {
    let (platform, worker, job) = with_a_job().await;
    platform.fault(Route::Done, Fault::status(500), Extent::Times(1));
    worker.done(&job, json!({ "output": 1 })).await.unwrap();
    worker.progress(&job, json!(1)).await.unwrap();
    worker.done(&job, json!({ "output": 1 })).await.unwrap();
    assert_one(&order(&platform), "after the result");
}

#[tokio::test]
async fn a_result_that_overtakes_a_progress_is_found() {
    let (platform, worker, job) = with_a_job().await;
    platform.fault(Route::Progress, Fault::slow(SHORT * 3), Extent::Times(1));
    let late = tokio::spawn({
        let (worker, job) = (worker.clone(), job.clone());
        async move { worker.progress(&job, json!(1)).await }
    });
    platform.until_count(Route::Progress, 1, PATIENCE).await.unwrap();
    worker.done(&job, json!({ "output": 1 })).await.unwrap();
    late.await.unwrap();
    assert_one(&order(&platform), "had no answer yet");
}

#[tokio::test]
async fn progress_too_close_together_is_found() {
    let (platform, worker, job) = with_a_job().await;
    worker.progress(&job, json!(1)).await.unwrap();
    tokio::time::sleep(SHORT).await;
    worker.progress(&job, json!(2)).await.unwrap();
    assert_eq!(order_problems(&platform.seen(), SHORT), Vec::<String>::new());
    assert_one(&order_problems(&platform.seen(), PATIENCE), "after the one before");
}

#[tokio::test]
async fn posts_of_the_wrong_worker_or_for_no_job_are_found() {
    let (platform, _, job) = with_a_job().await;
    let other = Client::new(&platform, &platform.environment_of("other", Urls::Full));
    other.progress(&job, json!(1)).await.unwrap();
    assert_one(&order(&platform), "worker other was not given it");
    let (platform, worker, _) = with_a_job().await;
    worker.done("nobody", json!({ "output": 1 })).await.unwrap();
    assert_one(&order(&platform), "had not been given out");
    assert!(answer_problems(&platform.seen()).iter().any(|problem| problem.contains("never answered")));
}

#[tokio::test]
async fn a_doubled_a_missing_and_a_changed_result_are_found() {
    let (platform, worker, job) = with_a_job().await;
    assert_one(&answer_problems(&platform.seen()), "never answered");
    worker.done(&job, json!({ "output": 1 })).await.unwrap();
    assert_eq!(platform.problems(), Vec::<String>::new());
    worker.done(&job, json!({ "output": 1 })).await.unwrap();
    assert_one(&answer_problems(&platform.seen()), "given out 1 times and answered 2 times");
    assert_one(&order(&platform), "its result already");

    let (platform, worker, job) = with_a_job().await;
    platform.fault(Route::Done, Fault::status(500), Extent::Times(1));
    worker.done(&job, json!({ "output": 1 })).await.unwrap();
    worker.done(&job, json!({ "output": 2 })).await.unwrap();
    assert_one(&order(&platform), "another result");
    platform.deliver_again(&job);
    worker.take().await.unwrap();
    worker.done(&job, json!({ "output": 3 })).await.unwrap();
    assert_one(&answer_problems(&platform.seen()), "differ");
}

#[tokio::test]
async fn a_stopped_job_needs_no_answer() {
    let (platform, worker, job) = with_a_job().await;
    platform.cancel(&job);
    assert_one(&answer_problems(&platform.seen()), "never answered");
    worker.stops().await.unwrap();
    assert_eq!(platform.problems(), Vec::<String>::new());
}

#[tokio::test]
async fn rates_are_counted_in_any_window() {
    let platform = hasty();
    let worker = client(&platform);
    for _ in 0..3 {
        worker.ping(&[]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    worker.ping(&[]).await.unwrap();
    let seen = platform.seen();
    assert_eq!(most_within(&seen, Route::Ping, PATIENCE), 4);
    assert_eq!(most_within(&seen, Route::Ping, Duration::from_millis(1400)), 3);
    assert_eq!(most_within(&seen, Route::Take, PATIENCE), 0);
    assert!(ping_gap(&seen, "worker-abc").is_some_and(|gap| gap >= Duration::from_millis(1500)));
    assert_eq!(ping_gap(&seen, "another"), None);
}

#[tokio::test]
async fn pings_that_list_the_wrong_jobs_are_found() {
    let (platform, worker, job) = with_a_job().await;
    let problems = || ping_problems(&platform.seen(), SLACK);
    // A worker may take a moment to notice.
    worker.ping(&[]).await.unwrap();
    worker.ping(&[&job]).await.unwrap();
    tokio::time::sleep(SLACK * 2).await;
    worker.ping(&[&job]).await.unwrap();
    assert_eq!(problems(), Vec::<String>::new());
    worker.ping(&[]).await.unwrap();
    assert_one(&problems(), "misses job");
    worker.done(&job, json!({ "output": 1 })).await.unwrap();
    worker.ping(&[&job]).await.unwrap();
    assert_eq!(problems().len(), 1);
    tokio::time::sleep(SLACK * 2).await;
    worker.ping(&[&job]).await.unwrap();
    assert!(problems()[1].contains("does not have"), "{:?}", problems());
    worker.ping(&["nobody"]).await.unwrap();
    assert_eq!(problems().len(), 3);
    let listed: Vec<Vec<String>> = pings(&platform.seen()).into_iter().map(|ping| ping.jobs).collect();
    assert_eq!((listed.len(), &listed[1]), (7, &vec![job]));
}

#[tokio::test]
async fn a_job_is_listed_until_its_result_is_acknowledged() {
    let (platform, worker, job) = with_a_job().await;
    tokio::time::sleep(SLACK * 2).await;
    platform.fault(Route::Done, Fault::status(500), Extent::Times(1));
    worker.done(&job, json!({ "output": 1 })).await.unwrap();
    worker.ping(&[]).await.unwrap();
    worker.done(&job, json!({ "output": 1 })).await.unwrap();
    assert_one(&ping_problems(&platform.seen(), SLACK), "misses job");
}

#[tokio::test]
async fn a_take_that_forgets_its_jobs_is_found() {
    let (platform, worker, _) = with_a_job().await;
    tokio::time::sleep(SLACK * 2).await;
    worker.take().await.unwrap();
    assert_one(&ping_problems(&platform.seen(), SLACK), "job_in_progress=1");
}

#[tokio::test]
async fn what_was_waited_for_in_vain_is_told() {
    let platform = Platform::start_with(Options { take_hold: SHORT, ..Options::default() }).unwrap();
    client(&platform).take().await.unwrap();
    let error = platform.until_count(Route::Done, 1, SHORT).await.unwrap_err().to_string();
    assert!(error.contains("1 requests of job-done") && error.contains("job-take/worker-abc"), "{error}");
    assert!(patient().hold_take(SHORT).await.is_err());
}
