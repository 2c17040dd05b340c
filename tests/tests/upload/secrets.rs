//! A secret in every place that a delivery has, looked for in every text that comes out.

use brightrun_tests::faults::{FaultServer, Reply};
use brightrun_worker::{
    Redacted,
    storage::{StoreKey, upload::Store},
};

use crate::{Bench, JOB};

/// Shaped like a token, so that it is known for one in a path too.
const SECRET: &str = "S3CR3Tabcdefghijk0123456789";

#[track_caller]
fn clean(text: &str) {
    assert!(!text.contains(SECRET) && !text.contains("S3CR3T"), "{text}");
}

fn replies() -> Vec<Reply> {
    let json = format!(r#"{{"statusCode":"403","error":"{SECRET}","code":"{SECRET}","message":"token={SECRET}"}}"#);
    let xml =
        format!("<Error><Code>{SECRET}</Code><Message>{SECRET}</Message><StringToSign>{SECRET}</StringToSign></Error>");
    vec![
        Reply::refusal(400, &json),
        Reply::refusal(403, &xml),
        Reply::refusal(500, &xml),
        Reply::status(404),
        Reply::redirect(301, &format!("https://{SECRET}:{SECRET}@h/{SECRET}")).header("x-amz-bucket-region", SECRET),
        Reply::refusal(503, &json).header("retry-after", SECRET),
        Reply::raw(format!("HTTP/1.1 {SECRET}\r\n\r\n")),
        Reply::raw(SECRET),
    ]
}

#[tokio::test]
async fn no_error_of_a_store_repeats_a_secret() {
    for reply in replies() {
        let server = FaultServer::start().await.unwrap();
        server.on("/bucket/", [Reply::status(200)]);
        server.on(&format!("/bucket/{SECRET}/{JOB}/{SECRET}"), [Reply::status(404), reply]);
        let mut bench = Bench::bucket(server.address(), SECRET).file(SECRET, b"content");
        let Store::Bucket(settings) = &mut bench.store else { panic!("local") };
        let hidden = || Redacted::hidden(SECRET.to_owned());
        settings.s3.key = StoreKey::Given { id: hidden(), secret: hidden(), session_token: Some(hidden()) };
        settings.prefix = SECRET.into();
        clean(&format!("{:?}", settings.s3));
        let error = bench.fails().await;
        clean(&format!("{error} {error:?} {error:#?}"));
    }
}

#[tokio::test]
async fn no_error_of_a_link_repeats_a_secret() {
    for reply in replies() {
        let server = FaultServer::start().await.unwrap();
        server.on(&format!("/{SECRET}/a"), [reply]);
        let link = server.url(&format!("/{SECRET}/a?token={SECRET}&X-Amz-Signature={SECRET}#{SECRET}"));
        let bench = Bench::new(Store::Local).allow(&server).file("a", b"content").link("a", &link);
        clean(&format!("{:?}", bench.links));
        let error = bench.fails().await;
        clean(&format!("{error} {error:?} {error:#?}"));
    }
}

#[tokio::test]
async fn what_is_delivered_shows_no_signature_by_accident() {
    let server = FaultServer::start().await.unwrap();
    server.on("/bucket/", [Reply::status(200)]);
    let replies = [Reply::status(404), Reply::status(200), Reply::file("content"), Reply::file("content")];
    server.on(&format!("/bucket/runs/{JOB}/a"), replies);
    let bench = Bench::bucket(server.address(), SECRET).file("a", b"content");
    let delivered = bench.deliver().await.unwrap();
    assert!(!format!("{delivered:?}").contains("X-Amz-"));
    assert!(delivered.addresses()["a"].contains("X-Amz-Signature="));
}
