//! Servers that take their time, and callers that lose patience. Servers here wait far longer than any test would: what
//! is shown is that the fetch ends although the server does not.

use std::time::{Duration, Instant};

use brightrun_tests::faults::{FaultServer, Reply};
use brightrun_worker::storage::{FetchError, FetchLimits, Source, fetch_blocking};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{ATTEMPTS, Bench, NAME, body, says};

/// What a server waits.
const FOREVER: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(150);
/// What a test waits before it has failed.
const PATIENCE: Duration = Duration::from_secs(300);

#[tokio::test]
async fn headers_that_do_not_come() {
    let server = FaultServer::start().await.unwrap();
    server.on("/d", [Reply::file(body(10)).delayed(FOREVER)]);
    let mut bench = Bench::new(&[&server]);
    bench.limits.headers = SHORT;
    says(&bench.fails(&server.url("/d")).await, "TooSlow", "the answer took longer");
    assert_eq!(server.count("/d"), ATTEMPTS as usize);
}

#[tokio::test]
async fn a_body_that_stops_coming_can_be_resumed_by_a_later_fetch() {
    let server = FaultServer::start().await.unwrap();
    let content = body(5000);
    let good = Reply::file(content.clone()).etag("\"a\"");
    server.on("/d", [good.clone().dripping(4000, FOREVER)]);
    let mut bench = Bench::new(&[&server]);
    bench.limits.idle = SHORT;
    bench.limits.attempts = 1;
    says(&bench.get(&server.url("/d?token=1")).await.unwrap_err(), "TooSlow", "the next byte took longer");
    assert_eq!(bench.names(), [format!("{NAME}.part"), format!("{NAME}.part.json")]);
    // Another link to the same file.
    server.on("/d", [good]);
    bench.limits = FetchLimits::default();
    let fetched = bench.expect(&server.url("/d?token=2"), &content).await;
    assert_eq!((fetched.resumed, server.seen()[1].range_start()), (1, Some(4000)));
}

#[tokio::test]
async fn a_body_that_drips_is_given_up() {
    let server = FaultServer::start().await.unwrap();
    server.on("/d", [Reply::file(body(1_000_000)).dripping(1, Duration::from_millis(10))]);
    let mut bench = Bench::new(&[&server]);
    bench.limits.rate_window = SHORT;
    bench.limits.minimum_rate = 1 << 20;
    says(&bench.fails(&server.url("/d")).await, "TooSlow", "bytes came in");
}

#[tokio::test]
async fn a_fetch_has_an_end() {
    let server = FaultServer::start().await.unwrap();
    server.on("/busy", [Reply::status(503)]);
    server.on("/slow", [Reply::file(body(1_000_000)).dripping(1, Duration::from_millis(10))]);
    let mut bench = Bench::new(&[&server]);
    bench.limits = FetchLimits { attempts: u32::MAX, deadline: SHORT * 2, first_pause: SHORT, ..bench.limits };
    for path in ["/busy", "/slow"] {
        says(&bench.fails(&server.url(path)).await, "Deadline", "not fetched within");
    }
}

#[tokio::test]
async fn a_server_says_when_to_come_back() {
    let server = FaultServer::start().await.unwrap();
    let content = body(10);
    let busy = |after: &str| Reply::status(429).header("retry-after", after);
    server.on("/soon", [busy("1"), Reply::file(content.clone())]);
    let begin = Instant::now();
    Bench::new(&[&server]).expect(&server.url("/soon"), &content).await;
    assert!(begin.elapsed() >= Duration::from_secs(1));
    server.on("/past", [busy("Sun, 06 Nov 1994 08:49:37 GMT"), Reply::file(content.clone())]);
    Bench::new(&[&server]).expect(&server.url("/past"), &content).await;
    server.on("/late", [busy("7200"), Reply::file(content)]);
    let error = Bench::new(&[&server]).fails(&server.url("/late")).await;
    says(&error, "ServerFailed", "HTTP 429, and asks to come back in 2 h");
    assert_eq!(server.count("/late"), 1);
}

#[tokio::test]
async fn cancelling_ends_every_kind_of_waiting() {
    let server = FaultServer::start().await.unwrap();
    server.on("/head", [Reply::file(body(10)).delayed(FOREVER)]);
    server.on("/body", [Reply::file(body(10)).dripping(5, FOREVER)]);
    server.on("/tagged", [Reply::file(body(10)).etag("\"a\"").dripping(5, FOREVER)]);
    server.on("/pause", [Reply::status(429).header("retry-after", "50")]);
    for (path, left) in [("/head", 0), ("/body", 0), ("/tagged", 2), ("/pause", 0)] {
        let bench = Bench::new(&[&server]);
        let url = server.url(path);
        let fetching = bench.get(&url);
        let cancelling = async {
            while server.count(path) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // So that the five bytes are there. If they were late, nothing would be left, and the test would say so.
            tokio::time::sleep(Duration::from_millis(300)).await;
            bench.cancel.cancel();
        };
        let (outcome, ()) = timeout(PATIENCE, async { tokio::join!(fetching, cancelling) }).await.unwrap();
        assert!(matches!(outcome, Err(FetchError::Cancelled { .. })), "{path}: {outcome:?}");
        assert_eq!((bench.names().len(), server.count(path)), (left, 1), "{path}");
    }
    let bench = Bench::new(&[&server]);
    bench.cancel.cancel();
    says(&bench.fails(&server.url("/never")).await, "Cancelled", "was cancelled");
    assert_eq!(server.count("/never"), 0);
}

#[tokio::test]
async fn two_fetches_do_not_write_one_file() {
    let server = FaultServer::start().await.unwrap();
    server.on("/slow", [Reply::file(body(10)).delayed(FOREVER)]);
    server.on("/d", [Reply::file(body(10))]);
    let bench = Bench::new(&[&server]);
    let url = server.url("/slow");
    let first = bench.get(&url);
    let second = async {
        while server.count("/slow") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let error = bench.get(&server.url("/d")).await.unwrap_err();
        bench.cancel.cancel();
        error
    };
    let (first, second) = timeout(PATIENCE, async { tokio::join!(first, second) }).await.unwrap();
    says(&second, "Busy", "another process");
    says(&first.unwrap_err(), "Cancelled", "");
    assert_eq!(server.count("/d"), 0);
}

#[test]
fn callers_without_a_runtime_can_fetch() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = runtime.block_on(FaultServer::start()).unwrap();
    server.on("/d", [Reply::status(500), Reply::file(body(100))]);
    let bench = Bench::new(&[&server]);
    let source = Source::parse(&server.url("/d")).unwrap();
    let token = CancellationToken::new();
    let fetched = fetch_blocking(&source, &bench.target(), &bench.policy, &bench.limits, &|_| {}, &token).unwrap();
    assert_eq!((fetched.bytes, server.count("/d")), (100, 2));
}
