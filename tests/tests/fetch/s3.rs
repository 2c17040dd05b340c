//! `s3://`: against a real S3 server, which checks signatures, and against one that goes wrong.

use std::{fs, net::SocketAddr};

use brightrun_tests::faults::{FaultServer, Ranges, Reply};
use brightrun_worker::storage::{S3Settings, StoreKey};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::{Bench, body, gzip, nobody, says};

/// Serves the folders of a folder as buckets.
async fn store(folder: &TempDir) -> SocketAddr {
    let mut builder = S3ServiceBuilder::new(FileSystem::new(folder.path()).unwrap());
    builder.set_auth(SimpleAuth::from_single("key-id", "key-secret"));
    let service = builder.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let connection = Builder::new(TokioExecutor::new());
                let _ = connection.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

fn bench(endpoint: SocketAddr, secret: &str) -> Bench {
    let mut bench = Bench::new(&[]);
    bench.policy.s3 = Some(S3Settings {
        endpoint: Some(format!("http://{endpoint}").parse().unwrap()),
        region: Some("us-east-1".into()),
        key: StoreKey::given("key-id", secret),
        trusted: true,
    });
    // The operator's endpoint needs no leave of the policy for links.
    bench.policy.plain_http = false;
    bench
}

#[tokio::test]
async fn an_object_of_a_real_store_arrives() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("bucket/jobs/ö")).unwrap();
    fs::write(folder.path().join("bucket/jobs/ö/d 1.jsonl"), body(300_000)).unwrap();
    fs::write(folder.path().join("bucket/d.gz"), gzip(&body(300_000))).unwrap();
    let address = store(&folder).await;
    let good = bench(address, "key-secret");
    let fetched = good.expect("s3://bucket/jobs/ö/d 1.jsonl", &body(300_000)).await;
    assert!(fetched.etag.is_some());
    good.expect("s3://bucket/d.gz", &body(300_000)).await;

    let good = bench(address, "key-secret");
    says(&good.fails("s3://bucket/other").await, "WrongLink", "check the bucket and the key");
    says(&good.fails("s3://other/d.gz").await, "WrongLink", "check the bucket and the key");
    says(&bench(address, "wrong").fails("s3://bucket/d.gz").await, "WrongLink", "check AWS_ACCESS_KEY_ID");
    let mut small = bench(address, "key-secret");
    small.policy.max_bytes = 1000;
    says(&small.fails("s3://bucket/jobs/ö/d 1.jsonl").await, "TooLarge", "300000 bytes");
}

#[tokio::test]
async fn a_store_that_goes_wrong_is_treated_as_any_server() {
    let server = FaultServer::start().await.unwrap();
    let content = body(5000);
    let good = Reply::file(content.clone()).etag("\"a\"").ranges(Ranges::Unconditional);
    let slow_down = Reply::refusal(503, "<Error><Code>SlowDown</Code></Error>");
    server.on("/bucket/d", [slow_down.clone(), good.clone().cut_after(1000), good]);
    let fetched = bench(server.address(), "key-secret").expect("s3://bucket/d", &content).await;
    assert_eq!((fetched.resumed, server.count("/bucket/d")), (1, 3));
    let last = &server.seen()[2];
    assert_eq!((last.range_start(), last.header("if-match")), (Some(1000), Some("\"a\"")));
    let signature = last.header("authorization").unwrap();
    assert!(signature.starts_with("AWS4-HMAC-SHA256 Credential=key-id/") && !last.query.contains("X-Amz-Signature"));

    server.on("/bucket/busy", [slow_down]);
    says(&bench(server.address(), "k").fails("s3://bucket/busy").await, "ServerFailed", "HTTP 503 (SlowDown)");
    assert_eq!(server.count("/bucket/busy"), crate::ATTEMPTS as usize);
    says(&bench(nobody(), "k").fails("s3://bucket/d").await, "Unreachable", "no connection");
}

#[tokio::test]
async fn an_object_that_changed_is_fetched_anew() {
    let server = FaultServer::start().await.unwrap();
    let changed = Reply::refusal(412, "<Error><Code>PreconditionFailed</Code></Error>");
    let (old, new) = (Reply::file(body(5000)).etag("\"a\""), Reply::file("new").etag("\"b\""));
    server.on("/bucket/d", [old.cut_after(1000), changed, new]);
    bench(server.address(), "key-secret").expect("s3://bucket/d", b"new").await;
    assert_eq!(server.count("/bucket/d"), 3);
}

/// A store may send text without end; the SDK would read it all.
#[tokio::test]
async fn the_text_of_a_stores_refusal_is_bounded() {
    let server = FaultServer::start().await.unwrap();
    server.on("/bucket/d", [Reply::refusal(403, &"x".repeat(5_000_000))]);
    let error = bench(server.address(), "key-secret").get("s3://bucket/d").await.unwrap_err();
    assert!(error.to_string().len() < 400, "{error}");
}
