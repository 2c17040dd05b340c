//! Connections that break, answers that lie, content that changes.

use std::sync::Mutex;

use brightrun_tests::faults::{FaultServer, Ranges, Reply};
use brightrun_worker::storage::{FetchProgress, Source, fetch};

use crate::{ATTEMPTS, Bench, body, nobody, says};

/// Longer than what a socket's buffers take at once.
const LONG: usize = 3_000_000;

#[tokio::test]
async fn a_good_file_arrives_with_its_hash_and_progress() {
    let server = FaultServer::start().await.unwrap();
    let content = body(LONG);
    server.on("/d", [Reply::file(content.clone()).etag("\"a\"")]);
    let bench = Bench::new(&[&server]);
    let progress = Mutex::new(Vec::new());
    let source = Source::parse(&server.url("/d?token=x")).unwrap();
    let note = |now: FetchProgress| progress.lock().unwrap().push(now);
    let fetched = fetch(&source, &bench.target(), &bench.policy, &bench.limits, &note, &bench.cancel).await.unwrap();
    assert_eq!((fetched.etag.as_deref(), fetched.resumed), (Some("\"a\""), 0));
    bench.expect(&server.url("/d"), &content).await;

    let progress = progress.into_inner().unwrap();
    assert_eq!(progress[0], FetchProgress { bytes: 0, total: Some(LONG as u64) });
    assert_eq!(progress.last().unwrap().bytes, LONG as u64);
    assert!(progress.len() >= 4 && progress.windows(2).all(|pair| pair[0].bytes <= pair[1].bytes), "{progress:?}");

    let seen = &server.seen()[0];
    assert_eq!((seen.method.as_str(), seen.query.as_str()), ("GET", "token=x"));
    assert_eq!(seen.header("accept-encoding"), Some("gzip"));
    for name in ["cookie", "authorization", "referer", "range", "proxy-authorization"] {
        assert_eq!(seen.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_at_any_byte_is_resumed() {
    let server = FaultServer::start().await.unwrap();
    let content = body(5000);
    let good = Reply::file(content.clone()).etag("\"a\"");
    for cut in [0, 1, 2, 100, 2500, 4998, 4999] {
        let path = format!("/{cut}");
        server.on(&path, [good.clone().cut_after(cut), good.clone()]);
        let fetched = Bench::new(&[&server]).expect(&server.url(&path), &content).await;
        let seen = server.seen();
        let second = seen.last().unwrap();
        assert_eq!(server.count(&path), 2);
        if cut == 0 {
            assert_eq!((second.header("range"), fetched.resumed), (None, 0));
        } else {
            assert_eq!((second.range_start(), second.header("if-range")), (Some(cut), Some("\"a\"")));
            assert_eq!(fetched.resumed, 1);
        }
    }
}

#[tokio::test]
async fn a_date_is_good_enough_to_resume_and_nothing_is_not() {
    let server = FaultServer::start().await.unwrap();
    let content = body(5000);
    let date = "Tue, 01 Sep 2026 10:00:00 GMT";
    let dated = Reply::file(content.clone()).header("last-modified", date).ranges(Ranges::Unconditional);
    server.on("/dated", [dated.clone().cut_after(1000), dated]);
    Bench::new(&[&server]).expect(&server.url("/dated"), &content).await;
    assert_eq!(server.seen()[1].header("if-range"), Some(date));
    assert_eq!(server.seen()[1].range_start(), Some(1000));
    for tag in [None, Some("W/\"weak\"")] {
        let path = format!("/{}", tag.is_some());
        let plain = tag.into_iter().fold(Reply::file(content.clone()), |reply, tag| reply.header("etag", tag));
        server.on(&path, [plain.clone().cut_after(1000), plain]);
        let fetched = Bench::new(&[&server]).expect(&server.url(&path), &content).await;
        assert_eq!((fetched.resumed, server.seen().last().unwrap().header("range")), (0, None));
    }
}

#[tokio::test]
async fn a_reset_is_survived() {
    let server = FaultServer::start().await.unwrap();
    let content = body(LONG);
    let good = Reply::file(content.clone()).etag("\"a\"");
    server.on("/d", [good.clone().reset_after(LONG / 2), good]);
    Bench::new(&[&server]).expect(&server.url("/d"), &content).await;
    assert_eq!(server.count("/d"), 2);
}

#[tokio::test]
async fn many_cuts_are_no_failure_while_bytes_come() {
    let server = FaultServer::start().await.unwrap();
    let content = body(10_000);
    let good = Reply::file(content.clone()).etag("\"a\"");
    server.on("/d", [good.cut_after(1000)]);
    let mut bench = Bench::new(&[&server]);
    bench.limits.progress = 1000;
    let fetched = bench.expect(&server.url("/d"), &content).await;
    assert_eq!((server.count("/d"), fetched.resumed), (10, 9));
}

#[tokio::test]
async fn servers_without_proper_ranges_are_asked_for_everything() {
    let server = FaultServer::start().await.unwrap();
    let content = body(5000);
    let good = Reply::file(content.clone()).etag("\"a\"");
    for (ranges, requests) in [(Ranges::Ignored, 2), (Ranges::Wrong, 3), (Ranges::Refused, 3)] {
        let path = format!("/{ranges:?}");
        server.on(&path, [good.clone().cut_after(1000), good.clone().ranges(ranges)]);
        let fetched = Bench::new(&[&server]).expect(&server.url(&path), &content).await;
        assert_eq!((server.count(&path), fetched.resumed), (requests, 0), "{ranges:?}");
    }
}

#[tokio::test]
async fn a_part_that_nobody_asked_for_is_refused() {
    let server = FaultServer::start().await.unwrap();
    server.on("/d", [Reply::refusal(206, "part").header("content-range", "bytes 0-3/4")]);
    says(&Bench::new(&[&server]).fails(&server.url("/d")).await, "BrokenAnswer", "was asked for all of it");
    assert_eq!(server.count("/d"), ATTEMPTS as usize);
}

#[tokio::test]
async fn content_that_changed_once_is_fetched_anew() {
    let server = FaultServer::start().await.unwrap();
    let (old, new) = (Reply::file(body(5000)).etag("\"old\""), Reply::file(vec![b'x'; 6000]).etag("\"new\""));
    // A good server heeds If-Range; another sends the rest of the new content, which does not fit.
    for (ranges, requests) in [(Ranges::Supported, 2), (Ranges::Unconditional, 3)] {
        let path = format!("/{ranges:?}");
        server.on(&path, [old.clone().cut_after(1000), new.clone().ranges(ranges)]);
        let fetched = Bench::new(&[&server]).expect(&server.url(&path), &[b'x'; 6000]).await;
        assert_eq!((server.count(&path), fetched.etag.as_deref()), (requests, Some("\"new\"")), "{ranges:?}");
    }
}

/// The same length, so that only the tag tells.
#[tokio::test]
async fn the_rest_of_another_content_is_never_joined() {
    let server = FaultServer::start().await.unwrap();
    let new = Reply::file(vec![b'x'; 5000]).etag("\"new\"").ranges(Ranges::Unconditional);
    server.on("/d", [Reply::file(body(5000)).etag("\"old\"").cut_after(1000), new]);
    Bench::new(&[&server]).expect(&server.url("/d"), &[b'x'; 5000]).await;
}

#[tokio::test]
async fn content_that_never_rests_ends_with_that() {
    let server = FaultServer::start().await.unwrap();
    let replies = (0..9).map(|tag| Reply::file(body(5000)).etag(&format!("\"{tag}\"")).cut_after(1000));
    server.on("/d", replies);
    let mut bench = Bench::new(&[&server]);
    bench.limits.attempts = 9;
    says(&bench.fails(&server.url("/d")).await, "Changed", "changed 3 times");
    assert_eq!(server.count("/d"), 4);
}

#[tokio::test]
async fn a_body_shorter_than_announced_is_tried_again() {
    let server = FaultServer::start().await.unwrap();
    let content = body(5000);
    let good = Reply::file(content.clone());
    server.on("/once", [good.clone().length_off_by(10), good.clone()]);
    Bench::new(&[&server]).expect(&server.url("/once"), &content).await;
    server.on("/always", [good.length_off_by(10)]);
    says(&Bench::new(&[&server]).fails(&server.url("/always")).await, "ServerFailed", "ended before");
    assert_eq!(server.count("/always"), ATTEMPTS as usize);
}

#[tokio::test]
async fn a_body_longer_than_announced_is_not_taken_for_whole() {
    let server = FaultServer::start().await.unwrap();
    let content = body(5000);
    let good = Reply::file(content.clone()).etag("\"a\"");
    server.on("/once", [good.clone().length_off_by(-10), good.clone()]);
    Bench::new(&[&server]).expect(&server.url("/once"), &content).await;
    assert_eq!(server.seen()[1].header("range"), None);
    server.on("/always", [good.length_off_by(-10)]);
    says(
        &Bench::new(&[&server]).fails(&server.url("/always")).await,
        "BrokenAnswer",
        "more bytes than it had announced",
    );
    assert_eq!(server.count("/always"), ATTEMPTS as usize);
}

#[tokio::test]
async fn chunks_need_no_length_and_their_end_is_needed() {
    let server = FaultServer::start().await.unwrap();
    let content = body(5000);
    let good = Reply::file(content.clone()).chunked().dripping(700, std::time::Duration::ZERO);
    server.on("/d", [good.clone().cut_after(4999), good]);
    Bench::new(&[&server]).expect(&server.url("/d"), &content).await;
    assert_eq!(server.count("/d"), 2);
}

#[tokio::test]
async fn a_file_of_unknown_length_is_refused() {
    let server = FaultServer::start().await.unwrap();
    server.on("/d", [Reply::file(body(5000)).without_length()]);
    says(&Bench::new(&[&server]).fails(&server.url("/d")).await, "BrokenAnswer", "how long the file is");
}

#[tokio::test]
async fn what_is_no_http_is_named() {
    let server = FaultServer::start().await.unwrap();
    let garbage: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let cases = [
        ("/garbage", Reply::raw(garbage), "it is not HTTP"),
        ("/ssh", Reply::raw("SSH-2.0-OpenSSH\r\n"), "it is not HTTP"),
        ("/endless", Reply::endless_headers(), "it is not HTTP"),
        ("/length", Reply::file("x").without_length().header("content-length", "-1"), "it is not HTTP"),
        ("/none", Reply::status(204), "holds no file"),
        ("/odd", Reply::status(304), "holds no file"),
    ];
    for (path, reply, expected) in cases {
        server.on(path, [reply]);
        says(&Bench::new(&[&server]).fails(&server.url(path)).await, "BrokenAnswer", expected);
        assert_eq!(server.count(path), ATTEMPTS as usize, "{path}");
    }
    server.on("/nothing", [Reply::raw("")]);
    says(&Bench::new(&[&server]).fails(&server.url("/nothing")).await, "ServerFailed", "the connection ended");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_tried_and_named() {
    let mut bench = Bench::new(&[]);
    bench.policy.network.allowed_addresses.push(nobody());
    says(&bench.fails(&format!("http://{}/d", nobody())).await, "Unreachable", "3 attempts");
    says(&bench.fails("https://no-such-host.invalid/d").await, "Unreachable", "cannot be resolved");
}
