//! Who may ask, and what.

use brightrun_worker::service::Service;
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{Bench, Obedient, PATIENCE, key, settings};

/// Method, path, headers, and the status of the answer.
type Case = (&'static str, &'static str, &'static [(&'static str, &'static str)], u16);

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test(flavor = "multi_thread")]
async fn with_a_key_only_who_has_it_may_ask() {
    let (key, text) = key();
    let (bench, _folder) = Bench::start_with(|settings| settings.key = Some(key)).await;
    let (bearer, bare) = (format!("Bearer {text}"), text.to_owned());
    for path in ["/health", "/metrics", "/openapi.json", "/requests", "/status/x", "/nowhere", "/v2/e/stream/x"] {
        for headers in [&[][..], &[("authorization", "Bearer wrong")], &[("authorization", "")]] {
            let reply = bench.ask("GET", path, headers, "").await;
            assert_eq!((reply.status, reply.json()["error"].is_string()), (401, true), "{path}");
            assert_eq!(reply.headers["www-authenticate"], "Bearer");
        }
        for good in [&bearer, &bare] {
            assert_ne!(bench.ask("GET", path, &[("authorization", good)], "").await.status, 401, "{path}");
        }
    }
    // With a key it does not matter under which name it is reached, and a form is as good as JSON.
    let headers = [("authorization", bearer.as_str()), ("host", "train.example"), ("content-type", "text/plain")];
    assert_eq!(bench.ask("POST", "/run", &headers, r#"{"input": {}}"#).await.status, 200);
    let refused = bench.ask("POST", "/run", &[JSON], r#"{"input": {}}"#).await;
    assert_eq!((refused.status, bench.work.begun.load(std::sync::atomic::Ordering::SeqCst) <= 1), (401, true));
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_pages_of_others_cannot_ask() {
    let (bench, _folder) = Bench::start().await;
    let run = r#"{"input": {}}"#;
    let cases: [Case; 7] = [
        ("POST", "/run", &[JSON, ("host", "evil.example:8000")], 403),
        ("GET", "/health", &[("host", "evil.example")], 403),
        ("POST", "/run", &[JSON, ("origin", "https://evil.example")], 403),
        ("POST", "/purge-queue", &[("origin", "null")], 403),
        ("GET", "/requests", &[("sec-fetch-site", "cross-site")], 403),
        ("POST", "/run", &[("content-type", "text/plain")], 415),
        // What a browser asks before it sends JSON.
        ("OPTIONS", "/run", &[("access-control-request-method", "POST")], 405),
    ];
    for (method, path, headers, status) in cases {
        let reply = bench.ask(method, path, headers, if path == "/run" { run } else { "" }).await;
        assert_eq!((reply.status, reply.json()["error"].is_string()), (status, true), "{method} {path} {headers:?}");
        assert!(!reply.headers.keys().any(|name| name.starts_with("access-control")), "{reply:?}");
    }
    assert_eq!(bench.get("/requests").await.json(), json!({ "requests": [] }));
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_machines_need_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::open(settings(folder.path()), Obedient::default(), CancellationToken::new()).await.unwrap();
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let error = timeout(PATIENCE, service.run(listener)).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("BRIGHTRUN_API_KEY"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_is_json_and_says_what_to_do() {
    let (bench, _folder) = Bench::start().await;
    let cases: [(&str, &str, &str, u16, &str); 12] = [
        ("GET", "/", "", 404, "/openapi.json"),
        ("GET", "/v2/e/nowhere", "", 404, "/openapi.json"),
        ("GET", "/run", "", 405, "POST"),
        ("DELETE", "/status/x", "", 405, "GET, POST"),
        ("GET", "/cancel/x", "", 405, "POST"),
        ("POST", "/metrics", "", 405, "GET"),
        ("GET", "/status/unknown", "", 404, "no job"),
        ("GET", "/status/..%2f", "", 404, "no such address"),
        ("POST", "/run", "", 400, "not JSON"),
        ("POST", "/run", "{}", 400, "input is missing"),
        ("POST", "/runsync", "[1]", 400, "JSON object"),
        ("POST", "/run", r#"{"input": 1, "webhook": "ftp://h/"}"#, 400, "webhook"),
    ];
    for (method, path, body, status, says) in cases {
        let reply = bench.ask(method, path, &[JSON], body).await;
        let error: Value = reply.json();
        assert_eq!(reply.status, status, "{method} {path}: {reply:?}");
        assert!(error["error"].as_str().unwrap().contains(says), "{method} {path}: {error}");
        assert_eq!(reply.headers["content-type"], "application/json");
    }
    bench.goes().await;
}
