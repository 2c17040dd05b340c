//! How much of everything.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{Bench, PATIENCE, reply};

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_too_large_are_refused_before_they_are_read() {
    let (bench, _folder) = Bench::start().await;
    for (path, most) in [("/run", 10 << 20), ("/runsync", 20 << 20)] {
        let announced = [("content-type", "application/json"), ("content-length", &(most + 1).to_string() as &str)];
        let refused = bench.ask("POST", path, &announced, "").await;
        assert!(refused.status == 413 && refused.json()["error"].is_string(), "{refused:?}");
        assert_eq!(refused.headers["connection"], "close");
    }
    // Who sends all of it before reading an answer gets one, too.
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    let head = format!(
        "POST /run HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        bench.address,
        12 << 20
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..12 {
        stream.write_all(&vec![b' '; 1 << 20]).await.unwrap();
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(reply(stream).await.status, 413);
    // The same where it is not announced.
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    let head = format!(
        "POST /run HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
        bench.address
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = format!("100000\r\n{}\r\n", " ".repeat(1 << 20));
    for _ in 0..11 {
        stream.write_all(piece.as_bytes()).await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(reply(stream).await.status, 413);
    // One that just fits is taken.
    let large = json!({ "input": { "x": "x".repeat((10 << 20) - 200) } });
    let id = bench.run_body(large).await;
    bench.until(&id, "COMPLETED").await;
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_so() {
    let (bench, _folder) = Bench::start_with(|settings| {
        settings.limits.queue = 2;
        settings.limits.queue_bytes = 1000;
    })
    .await;
    let running = bench.run(json!({ "steps": 1_000_000 })).await;
    bench.until(&running, "IN_PROGRESS").await;
    let waiting = bench.run(json!({})).await;
    let large = bench.post("/run", &json!({ "input": "x".repeat(1000) })).await;
    assert!(large.status == 429 && large.text.contains("bytes"), "{large:?}");
    bench.run(json!({})).await;
    let full = bench.post("/run", &json!({ "input": {} })).await;
    assert!(full.status == 429 && full.json()["error"].as_str().unwrap().contains("2 jobs wait"), "{full:?}");
    assert_eq!(full.headers["retry-after"], "60");
    bench.post(&format!("/cancel/{waiting}"), &json!(null)).await;
    bench.run(json!({})).await;
    bench.post(&format!("/cancel/{running}"), &json!(null)).await;
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_jobs_are_remembered() {
    let (bench, _folder) = Bench::start_with(|settings| settings.limits.history = 3).await;
    let mut ids = Vec::new();
    for number in 0..6 {
        ids.push(bench.run(json!({ "number": number })).await);
    }
    bench.until(&ids[5], "COMPLETED").await;
    // The oldest goes a moment after the newest has ended.
    let end = Instant::now() + PATIENCE;
    while bench.get("/requests").await.json()["requests"].as_array().unwrap().len() > 3 {
        assert!(Instant::now() < end);
        sleep(Duration::from_millis(10)).await;
    }
    for (number, id) in ids.iter().enumerate() {
        let expected = if number < 3 { 404 } else { 200 };
        assert_eq!(bench.get(&format!("/status/{id}")).await.status, expected, "{number}");
    }
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_remembered_only_so_long() {
    let (bench, _folder) = Bench::start_with(|settings| settings.limits.keep = Duration::from_millis(100)).await;
    let id = bench.run(json!({})).await;
    let end = Instant::now() + PATIENCE;
    while bench.get(&format!("/status/{id}")).await.status == 200 {
        assert!(Instant::now() < end);
        sleep(Duration::from_millis(50)).await;
    }
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_never_end_are_cut_off() {
    let (bench, _folder) = Bench::start_with(|settings| {
        settings.limits.head = Duration::from_millis(300);
        settings.limits.body = Duration::from_millis(300);
    })
    .await;
    let head = format!("POST /run HTTP/1.1\r\nhost: {}\r\ncontent-length: 100\r\n\r\n{{", bench.address);
    for begin in ["", "GET /hea", "GET /health HTTP/1.1\r\nhost: localhost\r\nx-slow: ", &head] {
        let mut stream = TcpStream::connect(bench.address).await.unwrap();
        stream.write_all(begin.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "{begin:?} holds its connection");
    }
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_never_end_are_refused() {
    let (bench, _folder) = Bench::start().await;
    let long = "x".repeat(64 << 10);
    assert_eq!(bench.ask("GET", "/health", &[("x-long", &long)], "").await.status, 431);
    let many: Vec<(String, &str)> = (0..200).map(|number| (format!("x-{number}"), "1")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    assert_eq!(bench.ask("GET", "/health", &many, "").await.status, 431);
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_holds_all_connections_is_waited_for() {
    let (bench, _folder) = Bench::start_with(|settings| {
        settings.limits.connections = 2;
        settings.limits.head = Duration::from_millis(400);
    })
    .await;
    let held = [TcpStream::connect(bench.address).await.unwrap(), TcpStream::connect(bench.address).await.unwrap()];
    sleep(Duration::from_millis(50)).await;
    let begin = Instant::now();
    assert_eq!(bench.get("/health").await.status, 200);
    assert!(begin.elapsed() >= Duration::from_millis(200), "{:?}", begin.elapsed());
    drop(held);
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_requests_wait() {
    let (bench, _folder) = Bench::start_with(|settings| settings.limits.waiting = 1).await;
    let id = bench.run(json!({ "steps": 1_000_000 })).await;
    bench.until(&id, "IN_PROGRESS").await;
    let path = format!("/status-sync/{id}?wait=60000");
    let waiting = bench.get(&path);
    let second = async {
        sleep(Duration::from_millis(200)).await;
        let begin = Instant::now();
        let told = bench.get(&path).await.json();
        assert!(told["status"] == "IN_PROGRESS" && begin.elapsed() < Duration::from_secs(20), "{told}");
        bench.post(&format!("/cancel/{id}"), &json!(null)).await;
    };
    let (first, ()) = tokio::join!(waiting, second);
    assert_eq!(first.json()["status"], "CANCELLED");
    bench.goes().await;
}
