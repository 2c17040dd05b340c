//! The wire check finds every planted deviation, and none where there is none.

use brightrun_tests::platform::{KEY, Platform, Route, wire_problems};
use serde_json::{Value, json};

use crate::{
    client::{self, Client},
    hasty,
};

/// The only problem of the last request has these words.
fn assert_last(platform: &Platform, words: &str) {
    let seen = platform.seen();
    let problems = wire_problems(seen.last().unwrap());
    assert!(problems.len() == 1 && problems[0].contains(words), "{words}: {problems:#?}");
}

/// A progress with other headers: each is set, added, or left out where it has no value.
async fn with_headers(worker: &Client, changes: &[(&str, Option<&str>)]) {
    let mut headers = worker.post_headers("job");
    for &(name, value) in changes {
        headers.retain(|(known, _)| *known != name);
        headers.extend(value.map(|value| (name, value)));
    }
    let body = r#"{"status": "IN_PROGRESS", "output": "ü ✓"}"#;
    let target = worker.target("RUNPOD_WEBHOOK_POST_OUTPUT", "job", "isStream=false");
    worker.send("POST", &target, &headers, body).await.unwrap();
}

#[tokio::test]
async fn what_the_sdk_sends_is_right() {
    let platform = hasty();
    let worker = client::Client::new(&platform, &platform.environment(crate::Urls::Full));
    worker.take().await.unwrap();
    worker.take_batch(2).await.unwrap();
    worker.stops().await.unwrap();
    worker.ping(&[]).await.unwrap();
    worker.ping(&["a", "b"]).await.unwrap();
    let unhealthy = "status=unhealthy&check=_memory_check&reason=RuntimeError%3A+Insufficient&runpod_version=1.12.0";
    let ping = worker.target("RUNPOD_WEBHOOK_PING", "", unhealthy);
    worker.send("GET", &ping, &[("accept", "*/*"), ("authorization", KEY), ("user-agent", "x")], "").await.unwrap();
    with_headers(&worker, &[]).await;
    let error = json!({ "error_type": "<class 'ValueError'>", "error_message": "boom", "error_traceback": "",
        "hostname": "h", "worker_id": "w", "runpod_version": "1.12.0" });
    let right = [
        json!({}),
        json!({ "output": null }),
        json!({ "output": [], "error": "m", "stopPod": true }),
        json!({ "error": "m" }),
        json!({ "error": error.to_string() }),
    ];
    for body in right {
        worker.done("job", body).await.unwrap();
    }
    worker.post("RUNPOD_WEBHOOK_POST_OUTPUT", "job", "isStream=true", r#"{"output": []}"#).await.unwrap();
    worker.stream("job", json!({ "output": 1 })).await.unwrap();
    let problems: Vec<String> = platform.seen().iter().flat_map(wire_problems).collect();
    assert_eq!((problems, platform.seen().len()), (Vec::new(), 14));
}

#[tokio::test]
async fn wrong_headers_are_found() {
    let platform = hasty();
    let worker = client::Client::new(&platform, &platform.environment(crate::Urls::Full));
    let bearer = format!("Bearer {KEY}");
    with_headers(&worker, &[("Authorization", Some(&bearer))]).await;
    assert_last(&platform, "authorization");
    assert_eq!(platform.seen()[0].status(), Some(401));
    with_headers(&worker, &[("Content-Type", Some("application/json"))]).await;
    assert_last(&platform, "content-type");
    with_headers(&worker, &[("X-Request-ID", Some("another"))]).await;
    assert_last(&platform, "x-request-id");
    for name in ["charset", "Accept", "User-Agent"] {
        with_headers(&worker, &[(name, None)]).await;
        assert_last(&platform, &name.to_ascii_lowercase());
    }
    with_headers(&worker, &[("authorization", Some("another"))]).await;
    assert_last(&platform, "authorization is there twice");
    let target = worker.target("RUNPOD_WEBHOOK_PING", "", "runpod_version=1");
    worker.get(&target).await.unwrap();
    assert_last(&platform, "content-type");
    worker.send("GET", &worker.take_target(), &worker.get_headers()[1..], "").await.unwrap();
    assert_last(&platform, "content-type");
}

#[tokio::test]
async fn wrong_addresses_are_found() {
    let platform = hasty();
    let worker = client::Client::new(&platform, &platform.environment(crate::Urls::Bare));
    let job_take = |query: &str| format!("/v2/ep123/job-take/worker-abc{query}");
    let planted = [
        ("&job_in_progress=0", "begin with ?"),
        ("?gpu=A?job_in_progress=0", "a second ?"),
        ("", "parameters"),
        ("?job_in_progress=2", "neither 0 nor 1"),
        ("?job_in_progress=0&gpu=A", "parameters"),
        ("?batch_size=2&job_in_progress=0", "parameters"),
    ];
    for (query, words) in planted {
        worker.get(&job_take(query)).await.unwrap();
        let problems = wire_problems(platform.seen().last().unwrap());
        assert!(problems.iter().any(|problem| problem.contains(words)), "{query}: {problems:?}");
    }
    let others = [
        ("/v2/ep123/job-take/$ID?job_in_progress=0", "placeholder"),
        ("/v2/ep123/job-take/?job_in_progress=0", "an id is empty"),
        ("/v2/ep123/job-take-batch/w?batch_size=1&job_in_progress=0", "more than one job"),
        ("/v2/ep123/job-stop/w?job_in_progress=0", "parameters"),
        ("/v2/ep123/take/w", "no such address"),
    ];
    for (target, words) in others {
        worker.get(target).await.unwrap();
        assert_last(&platform, words);
    }
    let headers = [("Authorization", KEY), ("User-Agent", "x"), ("Accept", "*/*")];
    let pings = [
        ("", "parameters"),
        ("?job_id=a", "parameters"),
        ("?job_id=a,b&runpod_version=1", "%2C"),
        ("?job_id=a%2Ca&runpod_version=1", "twice"),
        ("?job_id=&runpod_version=1", "empty"),
        ("?runpod_version=", "empty"),
        ("?status=healthy&check=a&reason=b&runpod_version=1", "unhealthy"),
        ("?runpod_version=1&retry_ping=0", "parameters"),
    ];
    for (query, words) in pings {
        worker.send("GET", &format!("/v2/ep123/ping/w{query}"), &headers, "").await.unwrap();
        assert_last(&platform, words);
    }
}

#[tokio::test]
async fn wrong_bodies_are_found() {
    let platform = hasty();
    let worker = client::Client::new(&platform, &platform.environment(crate::Urls::Full));
    let post = async |parameters: &str, body: &str, words: &str| {
        worker.post("RUNPOD_WEBHOOK_POST_OUTPUT", "job", parameters, body).await.unwrap();
        assert_last(&platform, words);
    };
    let result = "isStream=false";
    post(result, r#"{"output": NaN}"#, "no JSON object").await;
    post(result, "[1]", "no JSON object").await;
    post(result, r#"{"error": {"message": "m"}}"#, "should be a string").await;
    post(result, r#"{"error": ""}"#, "error is empty").await;
    post(result, r#"{"output": 1, "status": "COMPLETED"}"#, "keys").await;
    post(result, r#"{"stopPod": true, "output": 1}"#, "keys").await;
    post(result, r#"{"output": 1, "stopPod": false}"#, "stopPod").await;
    post(result, r#"{"output": 1, "status": "IN_PROGRESS"}"#, "keys").await;
    post(result, r#"{"status": "IN_PROGRESS"}"#, "keys").await;
    post("isStream=true", r#"{"status": "IN_PROGRESS", "output": 1}"#, "isStream").await;
    post("isStream=1", r#"{"output": 1}"#, "isStream").await;
    post("", r#"{"output": 1}"#, "parameters").await;
    let error = |value: Value| json!({ "error": value.to_string() }).to_string();
    post(result, &error(json!({ "error_type": "t", "error_message": "m" })), "the error has the keys").await;
    worker.stream("job", json!({ "output": 1, "more": 1 })).await.unwrap();
    assert_last(&platform, "keys");
    worker.post("RUNPOD_WEBHOOK_POST_STREAM", "job", "isStream=true", r#"{"output": 1}"#).await.unwrap();
    assert_last(&platform, "isStream");
    assert_eq!(platform.count(Route::Stream), 2);
}
