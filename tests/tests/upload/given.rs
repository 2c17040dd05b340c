//! Links that the job gives for its results.

use std::time::{Duration, Instant};

use base64_simd::URL_SAFE_NO_PAD;
use brightrun_tests::faults::{FaultServer, Reply};
use brightrun_worker::{
    net::Names,
    storage::upload::{Place, Store, upload_link},
};

use crate::{ATTEMPTS, Bench, says, soon, stand::Stand, store::get};

const PATH: &str = "/storage/v1/object/upload/sign/results/job/a.json";

fn token(end: u64) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode_to_string(text.as_bytes());
    let claims = format!("{{\"url\":\"results/job/a.json\",\"upsert\":true,\"exp\":{end}}}");
    format!("{}.{}.c2ln", part("{\"alg\":\"HS256\"}"), part(&claims))
}

/// A far day.
const NOT_OVER: u64 = 4_000_000_000;

async fn bench(replies: impl IntoIterator<Item = Reply>) -> (FaultServer, Bench) {
    let server = FaultServer::start().await.unwrap();
    server.on(PATH, replies);
    let link = server.url(&format!("{PATH}?token={}", token(NOT_OVER)));
    let bench = Bench::new(Store::Local).allow(&server).file("a.json", b"{\"a\":1}").link("a.json", &link);
    (server, bench)
}

#[tokio::test]
async fn a_file_goes_to_its_link_by_one_put() {
    let (server, bench) = bench([Reply::file("{\"Key\":\"results/job/a.json\"}")]).await;
    let bench = bench.file("b.bin", b"b").link("other", "https://h/x?token=S3CR3T");
    let delivered = bench.deliver().await.unwrap();
    let seen = server.seen();
    assert_eq!((seen.len(), seen[0].method.as_str(), seen[0].body.as_slice()), (1, "PUT", &b"{\"a\":1}"[..]));
    assert_eq!(seen[0].header("content-length"), Some("7"));
    assert_eq!(seen[0].header("content-type"), Some("application/json"));
    assert!(seen[0].query.starts_with("token=ey") && seen[0].header("authorization").is_none());
    let Place::Given(url) = &delivered.files[0].place else { panic!("{delivered:?}") };
    assert_eq!(url.as_str(), server.url(PATH));
    assert_eq!(delivered.not_delivered, ["b.bin"]);
    assert!(delivered.warnings[0].contains("other, which is no file"), "{:?}", delivered.warnings);
    assert!(delivered.warnings[1].contains("not delivered"), "{:?}", delivered.warnings);
}

#[tokio::test]
async fn what_has_no_link_goes_to_the_bucket() {
    let stand = Stand::start().await;
    let (_server, given) = bench([Reply::status(200)]).await;
    let mut both = Bench::bucket(stand.address, "key-secret").file("a.json", b"{}").file("b.json", b"[]");
    (both.links, both.policy) = (given.links, given.policy);
    let delivered = both.deliver().await.unwrap();
    assert!(matches!(delivered.files[0].place, Place::Given(_)));
    assert_eq!(get(&delivered.addresses()["b.json"]).await.2, b"[]");
    assert!(delivered.not_delivered.is_empty() && delivered.warnings.is_empty());
}

#[tokio::test]
async fn a_put_that_fails_is_tried_again() {
    let cut = Reply::file("x").cut_after(0).delayed(Duration::from_millis(5));
    let busy = Reply::refusal(503, "<Error><Code>SlowDown</Code></Error>");
    let (server, good) = bench([busy.clone(), busy.clone(), Reply::status(200)]).await;
    good.deliver().await.unwrap();
    assert_eq!(server.count(PATH), 3);
    assert!(server.seen().iter().all(|seen| seen.body == b"{\"a\":1}"));
    let (server, bad) = bench([busy]).await;
    says(&bad.fails().await, "ServerFailed", "HTTP 503 (SlowDown)");
    assert_eq!(server.count(PATH), ATTEMPTS as usize);
    // An answer is enough; its body is not needed.
    let (_server, good) = bench([cut]).await;
    good.deliver().await.unwrap();
    // The first attempt arrived, and its answer did not.
    let duplicate = Reply::refusal(400, r#"{"statusCode":"409","error":"Duplicate"}"#);
    let (_server, good) = bench([Reply::raw(""), duplicate.clone()]).await;
    good.deliver().await.unwrap();
    let (_server, bad) = bench([duplicate]).await;
    says(&bad.fails().await, "Refused", "make a link that may overwrite");
}

#[tokio::test]
async fn a_link_that_is_over_is_told_before_anything_is_sent() {
    let (server, bench) = bench([Reply::status(200)]).await;
    let bench = bench.link("a.json", &server.url(&format!("{PATH}?token={}", token(1_000_000_000))));
    says(&bench.fails().await, "LinkExpired", "make one that lasts longer than the job");
    assert_eq!(server.count(PATH), 0);
}

#[tokio::test]
async fn what_the_server_refuses_ends_at_once() {
    let expired = r#"{"statusCode":"400","error":"InvalidJWT","message":"\"exp\" claim timestamp check failed"}"#;
    for (reply, kind, text) in [
        (Reply::refusal(400, expired), "LinkExpired", "expired"),
        (Reply::refusal(403, "<Error><Code>AccessDenied</Code></Error>"), "Refused", "does not allow"),
        (Reply::refusal(403, "<Error><Code>SignatureDoesNotMatch</Code></Error>"), "Refused", "signature"),
        (Reply::status(404), "Refused", "no such bucket or link"),
        (Reply::status(413), "TooLarge", "7 bytes"),
        (Reply::redirect(307, "https://example.com/"), "Refused", "does not follow"),
        (Reply::redirect(302, "http://169.254.169.254/"), "Refused", "does not follow"),
    ] {
        let (server, bench) = bench([reply]).await;
        says(&bench.fails().await, kind, text);
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn links_lead_to_public_servers_only() {
    let server = FaultServer::start().await.unwrap();
    let mut bench = Bench::new(Store::Local).file("a", b"x").link("a", &server.url("/a"));
    says(&bench.fails().await, "NotAllowed", "not encrypted");
    bench.policy.plain_http = true;
    says(&bench.fails().await, "RefusedAddress", "127.0.0.1");
    bench.policy.network.names = Names::with(|_| Ok(vec!["169.254.169.254".parse().unwrap()]));
    let bench = bench.link("a", "https://store.example/a?token=x");
    says(&bench.fails().await, "RefusedAddress", "metadata");
    assert_eq!(server.seen().len(), 0);
    for link in ["ftp://h/x", "https://u:p@h/", "https://h/\n", "no"] {
        assert!(upload_link(link).is_err(), "{link}");
    }
}

#[tokio::test]
async fn a_put_can_be_cancelled() {
    let (server, bench) = bench([Reply::status(200).delayed(Duration::from_secs(3600))]).await;
    let cancelling = async {
        soon(|| server.count(PATH) > 0).await;
        bench.cancel.cancel();
        Instant::now()
    };
    let (outcome, at) = tokio::join!(bench.deliver(), cancelling);
    says(&outcome.unwrap_err(), "Cancelled", "cancelled");
    assert!(at.elapsed() < Duration::from_secs(2));
}

/// A signature covers what it covers, and no more may be said than that.
#[tokio::test]
async fn headers_fit_the_kind_of_signature() {
    let server = FaultServer::start().await.unwrap();
    server.on("/a", [Reply::status(200)]);
    let bench = Bench::new(Store::Local).allow(&server).file("a", b"x");
    let mut bench = Some(bench);
    for (query, kind, md5, blob) in [
        ("X-Amz-Signature=0", true, true, false),
        ("AWSAccessKeyId=a&Signature=0&Expires=4000000000", false, false, false),
        ("sv=1&se=2999-01-01T00%3A00%3A00Z&sig=0", true, false, true),
        ("token=x", true, false, false),
    ] {
        let next = bench.take().unwrap().link("a", &server.url(&format!("/a?{query}")));
        next.deliver().await.unwrap();
        let seen = server.seen().pop().unwrap();
        let has = |name| seen.header(name).is_some();
        assert_eq!((has("content-type"), has("content-md5"), has("x-ms-blob-type")), (kind, md5, blob), "{query}");
        bench = Some(next);
    }
}
