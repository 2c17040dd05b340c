//! A secret in every place that an input has, looked for in every text that comes out.

use std::{fs, time::Duration};

use brightrun_tests::faults::{FaultServer, Reply};
use brightrun_worker::Redacted;
use brightrun_worker::storage::{S3Settings, Source, StoreKey};

use crate::{Bench, body};

/// Shaped like a token, so that it is known for one in a path too.
const SECRET: &str = "S3CR3Tabcdefghijk0123456789";

fn link(server: &FaultServer, path: &str) -> String {
    server.url(&format!("{path}/{SECRET}/d.jsonl?token={SECRET}&X-Amz-Signature={SECRET}#{SECRET}"))
}

#[track_caller]
fn clean(text: &str) {
    assert!(!text.contains(SECRET) && !text.contains("S3CR3T"), "{text}");
}

#[tokio::test]
async fn no_error_repeats_a_secret() {
    let server = FaultServer::start().await.unwrap();
    let json = format!(r#"{{"statusCode":"403","error":"{SECRET}","code":"{SECRET}","message":"token={SECRET}"}}"#);
    let xml =
        format!("<Error><Code>{SECRET}</Code><Message>{SECRET}</Message><StringToSign>{SECRET}</StringToSign></Error>");
    let replies = [
        Reply::refusal(400, &json),
        Reply::refusal(403, &xml),
        Reply::refusal(500, &json),
        Reply::status(404),
        Reply::redirect(302, &format!("ftp://{SECRET}/{SECRET}")),
        Reply::redirect(302, &format!("https://{SECRET}:{SECRET}@host/{SECRET}")),
        Reply::redirect(302, &format!("http://169.254.169.254/{SECRET}?token={SECRET}")),
        Reply::redirect(302, &format!("http://[{SECRET}]/")),
        Reply::redirect(302, ""),
        Reply::file(body(100)).header("content-encoding", SECRET),
        Reply::file(body(100)).cut_after(10),
        Reply::file(body(100)).length_off_by(-1),
        Reply::file(body(100)).without_length(),
        Reply::file(body(100)).without_length().header("content-length", SECRET),
        Reply::file(body(10_000)),
        Reply::raw(format!("HTTP/1.1 {SECRET}\r\n\r\n")),
        Reply::raw(SECRET),
        Reply::endless_headers(),
        Reply::file(body(100)).delayed(Duration::from_secs(3600)),
    ];
    for (index, reply) in replies.into_iter().enumerate() {
        let path = format!("/{index}");
        server.on(&format!("{path}/{SECRET}/d.jsonl"), [reply]);
        let mut bench = Bench::new(&[&server]);
        bench.policy.max_bytes = 5000;
        bench.limits.attempts = 2;
        bench.limits.headers = Duration::from_millis(500);
        let error = bench.get(&link(&server, &path)).await.unwrap_err();
        clean(&format!("{error} {error:?} {error:#?}"));
        // It still says where.
        assert!(
            error.to_string().contains("/S3CR…/") || error.to_string().contains("/d.jsonl") || index > 3,
            "{error}"
        );
    }
}

#[tokio::test]
async fn sources_policies_and_other_errors_are_clean() {
    let server = FaultServer::start().await.unwrap();
    let mut bench = Bench::new(&[]);
    let source = Source::parse(&link(&server, "")).unwrap();
    clean(&format!("{source} {source:?}"));
    for text in [
        link(&server, ""),
        format!("https://{SECRET}.invalid/{SECRET}?{SECRET}").replace(&format!("{SECRET}.invalid"), "host.invalid"),
        format!("s3://bucket/{SECRET}"),
        format!("host/file?token={SECRET}"),
        server.url(&format!("/d?X-Amz-Date=20200101T000000Z&X-Amz-Expires=1&X-Amz-Signature={SECRET}")),
    ] {
        let error = bench.get(&text).await.unwrap_err();
        clean(&format!("{error} {error:?}"));
    }
    let hidden = || Redacted::hidden(SECRET.to_owned());
    bench.policy.s3 = Some(S3Settings {
        endpoint: None,
        region: Some("us-east-1".into()),
        key: StoreKey::Given { id: hidden(), secret: hidden(), session_token: Some(hidden()) },
        trusted: true,
    });
    clean(&format!("{:?}", bench.policy));
    for text in [format!("ftp://h/{SECRET}"), format!("https://{SECRET}@h/"), format!("s3://b/k?{SECRET}")] {
        let error = Source::parse(&text).unwrap_err();
        clean(&format!("{error} {error:?}"));
    }
}

#[tokio::test]
async fn what_is_left_for_a_later_fetch_holds_no_secret() {
    let server = FaultServer::start().await.unwrap();
    let path = format!("/{SECRET}/d.jsonl");
    server.on(&path, [Reply::file(body(100)).etag("\"a\"").dripping(50, Duration::from_secs(3600))]);
    let mut bench = Bench::new(&[&server]);
    (bench.limits.idle, bench.limits.attempts) = (Duration::from_millis(300), 1);
    bench.get(&link(&server, "")).await.unwrap_err();
    assert_eq!(bench.names().len(), 2);
    for name in bench.names() {
        clean(&String::from_utf8(fs::read(bench.folder.path().join(name)).unwrap()).unwrap());
    }
}
