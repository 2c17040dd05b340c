//! Each route, as a worker that does everything right sees it.

use std::time::{Duration, Instant};

use brightrun_tests::platform::{Outcome, Platform, Route, Status, Urls, WORKER};
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    PATIENCE, SHORT, client,
    client::{Client, answer},
    hasty, patient,
};

#[tokio::test]
async fn a_job_is_taken_worked_on_and_answered() {
    let platform = patient();
    let worker = client(&platform);
    let job = platform.submit_body(json!({ "input": { "lr": 0.1 }, "webhook": "https://example.com" }));
    assert_eq!(platform.job(&job).unwrap().status, Status::InQueue);
    assert_eq!(worker.ping(&[]).await.unwrap().json(), json!({}));

    let taken = worker.take().await.unwrap();
    let body = taken.json();
    assert_eq!((taken.status, body["id"].as_str(), &body["input"]), (200, Some(job.as_str()), &json!({ "lr": 0.1 })));
    assert!(body["delayTime"].is_u64() && body["webhook"] == "https://example.com");
    let view = platform.job(&job).unwrap();
    assert_eq!((view.status, view.worker.as_deref(), view.output), (Status::InProgress, Some(WORKER), None));

    assert_eq!(worker.ping(&[&job]).await.unwrap().status, 200);
    for step in 1..3 {
        assert_eq!(worker.progress(&job, json!({ "step": step })).await.unwrap().status, 200);
        assert_eq!(platform.job(&job).unwrap().output, Some(json!({ "step": step })));
    }
    assert_eq!(worker.stream(&job, json!({ "output": "piece" })).await.unwrap().status, 200);
    assert_eq!(worker.done(&job, json!({ "output": { "loss": 0.5 } })).await.unwrap().status, 200);

    let view = platform.until_status(&job, Status::Completed, PATIENCE).await.unwrap();
    assert_eq!((&view.output, &view.error, view.deliveries), (&Some(json!({ "loss": 0.5 })), &None, 1));
    assert_eq!((view.progress.len(), &view.stream[..], view.results.len()), (2, &[json!("piece")][..], 1));
    assert_eq!(view.json()["status"], "COMPLETED");
    assert_eq!(platform.problems(), Vec::<String>::new());
    let routes: Vec<Route> = platform.seen().iter().map(|seen| seen.route).collect();
    let [take, progress] = [Route::Take, Route::Progress];
    assert_eq!(routes, [Route::Ping, take, Route::Ping, progress, progress, Route::Stream, Route::Done]);
}

#[tokio::test]
async fn a_take_is_held_until_a_job_comes_or_its_time_is_over() {
    let platform = hasty();
    let start = Instant::now();
    assert_eq!(client(&platform).take().await.unwrap().status, 204);
    assert!(start.elapsed() >= SHORT);

    platform.set(|options| options.take_hold = PATIENCE);
    let worker = client(&platform);
    let taking = tokio::spawn(async move { worker.take().await });
    platform.until_count(Route::Take, 2, PATIENCE).await.unwrap();
    let job = platform.submit(json!("any JSON"));
    assert_eq!(taking.await.unwrap().unwrap().json()["id"], job);
}

#[tokio::test]
async fn a_worker_that_left_its_take_gets_no_job() {
    let platform = patient();
    let worker = client(&platform);
    let taking = tokio::spawn(async move { worker.take().await });
    platform.until(PATIENCE, "take", |platform| (platform.in_flight(Route::Take) == 1).then_some(())).await.unwrap();
    taking.abort();
    let left = |platform: &Platform| matches!(platform.seen()[0].outcome, Outcome::Left { .. }).then_some(());
    platform.until(PATIENCE, "end of the take", left).await.unwrap();
    let job = platform.submit(json!({}));
    assert_eq!(platform.job(&job).unwrap().status, Status::InQueue);
    assert_eq!(client(&platform).take().await.unwrap().json()["id"], job);
}

#[tokio::test]
async fn a_batch_has_at_most_what_was_asked_for() {
    let platform = hasty();
    let worker = client(&platform);
    assert_eq!(worker.take_batch(2).await.unwrap().status, 204);
    let jobs = [1, 2, 3].map(|number| platform.submit(json!({ "number": number })));
    let batches = [worker.take_batch(2).await.unwrap().json(), worker.take_batch(2).await.unwrap().json()];
    let ids = |batch: &serde_json::Value| -> Vec<String> {
        batch.as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!((ids(&batches[0]), ids(&batches[1])), (jobs[..2].to_vec(), jobs[2..].to_vec()));
    assert_eq!(platform.seen()[1].delivered, jobs[..2]);
}

#[tokio::test]
async fn a_stop_comes_by_its_own_long_poll_and_once() {
    let platform = patient();
    let worker = client(&platform);
    let job = platform.submit(json!({ "a": 1 }));
    worker.take().await.unwrap();
    let asking = tokio::spawn({
        let worker = worker.clone();
        async move { worker.stops().await }
    });
    platform.until_count(Route::Stop, 1, PATIENCE).await.unwrap();
    assert_eq!(platform.cancel(&job), Some(Status::Cancelled));
    assert_eq!(asking.await.unwrap().unwrap().json(), json!({ "jobsToStop": [job] }));
    platform.set(|options| options.stop_hold = SHORT);
    assert_eq!(worker.stops().await.unwrap().status, 204);
    assert_eq!(platform.cancel("nobody"), None);
    assert_eq!(platform.problems(), Vec::<String>::new());
}

#[tokio::test]
async fn connections_are_used_again_and_bodies_may_come_in_chunks() {
    let platform = hasty();
    let worker = client(&platform);
    let job = platform.submit(json!({ "a": 1 }));
    let mut stream = TcpStream::connect(platform.address()).await.unwrap();
    let key = worker.variable("RUNPOD_AI_API_KEY");
    let take = format!("GET {} HTTP/1.1\r\nAuthorization: {key}\r\n\r\n", worker.take_target());
    stream.write_all(take.as_bytes()).await.unwrap();
    assert_eq!(answer(&mut stream).await.unwrap().json()["id"], job);
    let target = worker.target("RUNPOD_WEBHOOK_POST_OUTPUT", &job, "isStream=false");
    let head = format!("POST {target} HTTP/1.1\r\nAuthorization: {key}\r\nTransfer-Encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(b"5\r\n{\"out\r\n9\r\nput\": 1}\n\r\n0\r\n\r\n").await.unwrap();
    assert_eq!(answer(&mut stream).await.unwrap().status, 200);
    assert_eq!(platform.job(&job).unwrap().output, Some(json!(1)));
    let seen = platform.seen();
    assert_eq!((seen[0].connection, seen[1].connection, seen.len()), (0, 0, 2));
    assert_eq!(seen[1].headers[1], ("Transfer-Encoding".to_owned(), "chunked".to_owned()));
}

#[tokio::test]
async fn what_is_no_question_of_a_worker_is_refused() {
    let platform = hasty();
    let worker = client(&platform);
    let target = worker.take_target();
    assert_eq!(worker.send("POST", &target, &worker.get_headers(), "").await.unwrap().status, 405);
    assert_eq!(worker.get("/v2/another/job-take/worker-abc").await.unwrap().status, 404);
    assert_eq!(worker.send("GET", &target, &[], "").await.unwrap().status, 401);
    assert_eq!(worker.send("GET", &target, &[("Authorization", "another")], "").await.unwrap().status, 401);
    assert_eq!(worker.done("nobody", json!({ "output": 1 })).await.unwrap().status, 404);
    let job = platform.submit(json!(1));
    let not_json = worker.post("RUNPOD_WEBHOOK_POST_OUTPUT", &job, "isStream=false", "NaN");
    assert_eq!(not_json.await.unwrap().status, 400);
}

#[tokio::test]
async fn every_shape_of_the_environment_leads_here() {
    let platform = hasty();
    for urls in [Urls::Full, Urls::Bare, Urls::GpuName, Urls::ExampleNames, Urls::Hub] {
        let worker = Client::new(&platform, &platform.environment_of("w-2", urls));
        let job = platform.submit(json!({ "a": 1 }));
        assert_eq!(worker.take().await.unwrap().json()["id"], job, "{urls:?}");
        assert_eq!(worker.done(&job, json!({ "output": 1 })).await.unwrap().status, 200, "{urls:?}");
    }
    assert_eq!(platform.problems(), Vec::<String>::new());
    let hub = platform.environment(Urls::Hub);
    let names: Vec<&str> = hub.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"RUNPOD_TEST") && !names.contains(&"RUNPOD_WEBHOOK_PING"));
    assert!(!names.contains(&"RUNPOD_WEBHOOK_POST_STREAM"));
    assert!(hub[0].1.ends_with("/job-take/$RUNPOD_POD_ID"), "{}", hub[0].1);
    let example = Client::new(&platform, &platform.environment(Urls::ExampleNames));
    assert!(example.variable("RUNPOD_WEBHOOK_JOB_STREAM").contains("/job-stream/$RUNPOD_POD_ID/$ID?gpu="));
    let full = platform.environment(Urls::Full);
    assert!(full[0].1.ends_with("/job-take/$ID?gpu=NVIDIA+A100+80GB+PCIe"), "{}", full[0].1);
    assert_eq!(Duration::from_millis(full.last().unwrap().1.parse().unwrap()), Duration::from_secs(10));
}
