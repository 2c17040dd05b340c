//! A store that goes wrong. What lies in it afterwards is whole, and nothing is left behind.

use std::{
    fs,
    time::{Duration, Instant},
};

use brightrun_tests::faults::{FaultServer, Reply};
use brightrun_worker::storage::upload::Store;

use crate::{
    ATTEMPTS, Bench, JOB, PART, body, says, soon,
    stand::{Fault, Stand},
    store::{get, settings},
};

fn is_part(request: &str) -> bool {
    request.contains("partNumber=2")
}

fn is_put(request: &str) -> bool {
    request.starts_with("PUT ") && !request.contains("partNumber=")
}

#[tokio::test]
async fn a_part_that_was_interrupted_is_sent_again() {
    for fault in [
        Fault::Cut,
        Fault::Flip,
        Fault::Lost,
        Fault::Says(503, "SlowDown"),
        Fault::Says(500, "InternalError"),
        Fault::Says(502, ""),
        Fault::Says(400, "RequestTimeout"),
    ] {
        let stand = Stand::start().await;
        let content = body(2 * PART as usize + 1000);
        stand.fault(ATTEMPTS as usize - 1, fault, is_part);
        let bench = Bench::bucket(stand.address, "key-secret").file("a", &content);
        let delivered = bench.deliver().await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert!(get(&delivered.addresses()["a"]).await.2 == content, "{fault:?}");
        assert_eq!(stand.count(|request| request.contains("partNumber=1")), 1, "{fault:?}");
        assert_eq!(stand.count(is_part), ATTEMPTS as usize, "{fault:?}");
        assert_eq!(stand.left_behind(), [""; 0], "{fault:?}");
    }
}

#[tokio::test]
async fn one_request_is_sent_again_too() {
    for fault in [Fault::Cut, Fault::Flip, Fault::Lost, Fault::Says(503, "SlowDown"), Fault::Says(502, "")] {
        let stand = Stand::start().await;
        stand.fault(ATTEMPTS as usize - 1, fault, is_put);
        let content = body(500_000);
        let bench = Bench::bucket(stand.address, "key-secret").file("a", &content);
        let delivered = bench.deliver().await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert!(get(&delivered.addresses()["a"]).await.2 == content, "{fault:?}");
    }
}

#[tokio::test]
async fn no_parts_are_left_behind_after_a_failure() {
    for (fault, kind, text) in [
        (Fault::Says(503, "SlowDown"), "ServerFailed", "HTTP 503 (SlowDown)"),
        (Fault::Says(403, "AccessDenied"), "AccessDenied", "does not allow"),
        (Fault::Cut, "ServerFailed", "connection"),
        // This store hashes what comes, and calls its own failure what does not fit the signature.
        (Fault::Flip, "ServerFailed", "HTTP 500 (InternalError)"),
        (Fault::Says(400, "BadDigest"), "ServerFailed", "other bytes arrived"),
    ] {
        let stand = Stand::start().await;
        stand.fault(usize::MAX, fault, is_part);
        let bench = Bench::bucket(stand.address, "key-secret").file("a", &body(2 * PART as usize + 1000));
        says(&bench.fails().await, kind, text);
        assert_eq!(stand.count(|request| request.starts_with("DELETE ")), 1, "{fault:?}");
        assert_eq!(stand.left_behind(), [""; 0], "{fault:?}");
        assert!(!stand.path(&format!("runs/{JOB}/a")).exists());
    }
}

#[tokio::test]
async fn an_abort_that_fails_at_first_is_tried_again() {
    let stand = Stand::start().await;
    stand.fault(usize::MAX, Fault::Says(403, "AccessDenied"), is_part);
    stand.fault(2, Fault::Says(502, ""), |request| request.starts_with("DELETE "));
    let bench = Bench::bucket(stand.address, "key-secret").file("a", &body(2 * PART as usize));
    says(&bench.fails().await, "AccessDenied", "does not allow");
    assert_eq!(stand.left_behind(), [""; 0]);
}

#[tokio::test]
async fn a_completion_whose_answer_is_lost_is_found_out() {
    let stand = Stand::start().await;
    stand.fault(1, Fault::Lost, |request| request.starts_with("POST ") && request.contains("uploadId="));
    // What Amazon says of an upload that is complete.
    stand.fault(1, Fault::Says(404, "NoSuchUpload"), |request| request.starts_with("POST ") && request.contains("Id="));
    let content = body(2 * PART as usize);
    let bench = Bench::bucket(stand.address, "key-secret").file("a", &content);
    let delivered = bench.deliver().await.unwrap();
    assert!(get(&delivered.addresses()["a"]).await.2 == content);
}

#[tokio::test]
async fn a_delivery_that_is_cancelled_ends_soon_and_leaves_nothing() {
    let phases: [fn(&str) -> bool; 6] = [
        |request| request == "HEAD /bucket/",
        |request| request.starts_with("HEAD /bucket/runs"),
        |request| request.starts_with("POST ") && request.contains("?uploads"),
        is_part,
        |request| request.starts_with("POST ") && request.contains("uploadId="),
        |request| request.starts_with("GET /bucket/runs"),
    ];
    for (number, phase) in phases.into_iter().enumerate() {
        let stand = Stand::start().await;
        stand.fault(usize::MAX, Fault::Hangs, phase);
        let bench = Bench::bucket(stand.address, "key-secret").file("a", &body(2 * PART as usize));
        let cancelling = async {
            soon(|| stand.count(phase) > 0).await;
            bench.cancel.cancel();
            Instant::now()
        };
        let (outcome, at) = tokio::join!(bench.deliver(), cancelling);
        says(&outcome.unwrap_err(), "Cancelled", "cancelled");
        assert!(at.elapsed() < Duration::from_secs(2), "{number}: {:?}", at.elapsed());
        assert_eq!(stand.left_behind(), [""; 0], "{number}");
    }
}

#[tokio::test]
async fn a_delivery_that_is_dropped_removes_its_parts() {
    let stand = Stand::start().await;
    stand.fault(usize::MAX, Fault::Hangs, is_part);
    let bench = Bench::bucket(stand.address, "key-secret").file("a", &body(2 * PART as usize));
    let outcome = tokio::time::timeout(Duration::from_millis(1500), bench.deliver()).await;
    assert!(outcome.is_err() && stand.count(is_part) == 1);
    soon(|| stand.left_behind().is_empty()).await;
}

#[tokio::test]
async fn a_store_that_cannot_be_used_says_why() {
    let stand = Stand::start().await;
    let bench = |secret| Bench::bucket(stand.address, secret).file("a", b"content");
    says(&bench("wrong").fails().await, "WrongKey", "check BUCKET_ACCESS_KEY_ID");
    for (status, code, kind, text) in [
        (403, "AccessDenied", "AccessDenied", "give the operator's key leave"),
        (403, "InvalidAccessKeyId", "WrongKey", "does not know the operator's key"),
        (403, "RequestTimeTooSkewed", "ClockSkew", "clock is wrong"),
        (400, "ExpiredToken", "ExpiredKey", "has expired"),
        (301, "PermanentRedirect", "WrongRegion", "S3_REGION"),
        (413, "EntityTooLarge", "TooLarge", "7 bytes"),
        (507, "XMinioStorageFull", "Refused", "full"),
    ] {
        stand.fault(1, Fault::Says(status, code), is_put);
        says(&bench("key-secret").fails().await, kind, text);
    }
    stand.remove_bucket();
    says(&bench("key-secret").fails().await, "NoSuchBucket", "s3://bucket: there is no such bucket");
    let nobody = Bench::bucket(([127, 0, 0, 1], 9).into(), "k").file("a", b"content");
    says(&nobody.fails().await, "Unreachable", "no connection");
}

#[tokio::test]
async fn a_store_that_does_not_know_checksums_gets_none() {
    for (status, code) in [(501, "NotImplemented"), (400, "InvalidArgument")] {
        let stand = Stand::start().await;
        stand.fault(1, Fault::Says(status, code), is_put);
        let bench = Bench::bucket(stand.address, "key-secret").file("a", b"content").file("b", b"other");
        let delivered = bench.deliver().await.unwrap();
        assert_eq!(get(&delivered.addresses()["b"]).await.2, b"other");
        assert_eq!(stand.count(is_put), 3);
    }
}

/// Answers as a store would, but for what lies there then.
async fn lying(held: Reply) -> (FaultServer, Bench) {
    let server = FaultServer::start().await.unwrap();
    server.on("/bucket/", [Reply::status(200)]);
    server.on(&format!("/bucket/runs/{JOB}/a"), [Reply::status(404), Reply::status(200), held]);
    let bench = Bench::bucket(server.address(), "k").file("a", b"content");
    (server, bench)
}

#[tokio::test]
async fn other_bytes_in_the_store_are_found() {
    let other = "\"00000000000000000000000000000000\"";
    let (_server, bench) = lying(Reply::file("conten")).await;
    says(&bench.fails().await, "Corrupt", "it has 6 bytes and not 7");
    let (_server, bench) = lying(Reply::file("content").header("x-amz-checksum-sha256", "AAAA")).await;
    says(&bench.fails().await, "Corrupt", "another SHA-256");
    let (_server, bench) = lying(Reply::status(404)).await;
    says(&bench.fails().await, "Corrupt", "does not know the file");
    let (_server, bench) = lying(Reply::file("kontent").etag(other)).await;
    says(&bench.fails().await, "Corrupt", "read back");
    // A store whose tags are no hashes is no liar.
    let (server, bench) = lying(Reply::file("content").etag(other)).await;
    bench.deliver().await.unwrap();
    assert_eq!(server.seen().iter().filter(|seen| seen.method == "GET").count(), 2);
}

#[tokio::test]
async fn a_link_that_does_not_open_is_found_now() {
    let stand = Stand::start().await;
    stand.fault(usize::MAX, Fault::Says(403, "AccessDenied"), |request| request.starts_with("GET /bucket/runs"));
    let bench = Bench::bucket(stand.address, "key-secret").file("a", b"content");
    says(&bench.fails().await, "LinkDoesNotOpen", "HTTP 403 (AccessDenied)");
}

#[tokio::test]
async fn another_region_is_named() {
    let server = FaultServer::start().await.unwrap();
    server.on("/bucket/", [Reply::status(301).header("x-amz-bucket-region", "eu-central-1")]);
    let bench = Bench::bucket(server.address(), "k").file("a", b"content");
    says(&bench.fails().await, "WrongRegion", "another region, eu-central-1; the operator sets it with S3_REGION");
}

#[tokio::test]
async fn files_that_change_or_go_are_named() {
    let stand = Stand::start().await;
    let bench = Bench::bucket(stand.address, "key-secret").file("a", b"content");
    fs::remove_file(&bench.files[0].path).unwrap();
    says(&bench.fails().await, "Disk", "cannot read");
    // Between two attempts at sending it.
    for gone in [true, false] {
        let bench = Bench::bucket(stand.address, "key-secret").file("a", b"content");
        stand.fault(1, Fault::Hangs, is_put);
        let path = bench.files[0].path.clone();
        let mut bench = bench;
        bench.limits.answer = Duration::from_millis(300);
        let before = stand.count(is_put);
        let changing = async {
            soon(|| stand.count(is_put) > before).await;
            if gone { fs::remove_file(&path).unwrap() } else { fs::write(&path, b"longer content").unwrap() }
        };
        let (outcome, ()) = tokio::join!(bench.deliver(), changing);
        let (kind, text) = if gone { ("Disk", "cannot read") } else { ("ChangedOnDisk", "changed while it was sent") };
        says(&outcome.unwrap_err(), kind, text);
    }
}

#[tokio::test]
async fn a_store_that_is_too_slow_is_given_up() {
    let stand = Stand::start().await;
    stand.fault(usize::MAX, Fault::Hangs, is_put);
    let mut bench = Bench::bucket(stand.address, "key-secret").file("a", b"content");
    bench.limits.answer = Duration::from_millis(100);
    says(&bench.fails().await, "TooSlow", "took longer than 100ms");
    bench.limits.deadline = Duration::from_millis(250);
    bench.limits.answer = Duration::from_secs(60);
    says(&bench.fails().await, "Deadline", "not delivered within");
}

/// The store's own certificate counts, not whether a stranger's link might lead there.
#[tokio::test]
async fn the_operators_store_may_be_private() {
    let stand = Stand::start().await;
    let bench = Bench::new(Store::Bucket(Box::new(settings(stand.address, "key-secret")))).file("a", b"content");
    assert!(!bench.policy.network.private_addresses && bench.policy.network.allowed_addresses.is_empty());
    bench.deliver().await.unwrap();
}

/// This store lists uploads, which the other one does not.
#[tokio::test]
async fn what_a_killed_worker_left_of_a_file_is_removed() {
    let server = FaultServer::start().await.unwrap();
    let key = format!("runs/{JOB}/a");
    let upload = |key: &str, id: &str| format!("<Upload><Key>{key}</Key><UploadId>{id}</UploadId></Upload>");
    let left = upload(&key, "left") + &upload(&format!("{key}.other"), "of-another-file");
    let list = Reply::file(format!("<ListMultipartUploadsResult>{left}</ListMultipartUploadsResult>"));
    let begun = "<InitiateMultipartUploadResult><UploadId>new</UploadId></InitiateMultipartUploadResult>";
    let done = "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>";
    let content = body(2 * PART as usize);
    server.on("/bucket/", [Reply::status(200), list]);
    let part = Reply::status(200).etag("\"x\"");
    let replies = [
        Reply::status(404),
        Reply::status(204),
        Reply::file(begun),
        part.clone(),
        part,
        Reply::file(done),
        Reply::file(content.clone()),
    ];
    server.on(&format!("/bucket/{key}"), replies);
    Bench::bucket(server.address(), "k").file("a", &content).deliver().await.unwrap();
    let seen = server.seen();
    let removed: Vec<&str> =
        seen.iter().filter(|seen| seen.method == "DELETE").map(|seen| seen.query.as_str()).collect();
    assert_eq!(removed.len(), 1);
    assert!(removed[0].contains("uploadId=left"), "{removed:?}");
}

#[tokio::test]
async fn a_store_that_asks_for_too_long_a_pause_is_given_up() {
    let server = FaultServer::start().await.unwrap();
    server.on("/bucket/", [Reply::status(503).header("retry-after", "3600")]);
    let bench = Bench::bucket(server.address(), "k").file("a", b"content");
    says(&bench.fails().await, "ServerFailed", "asks to come back in 60 min");
    assert_eq!(server.seen().len(), 1);
}
