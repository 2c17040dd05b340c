//! Servers that say no: each kind with what to do next, and asked again only where that can help.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use brightrun_tests::faults::{FaultServer, Reply};

use crate::{ATTEMPTS, Bench, body, says};

#[tokio::test]
async fn a_server_that_recovers_is_waited_for() {
    let server = FaultServer::start().await.unwrap();
    let content = body(1000);
    for status in [408, 429, 500, 502, 503, 504] {
        let path = format!("/{status}");
        server.on(&path, [Reply::status(status), Reply::status(status), Reply::file(content.clone())]);
        Bench::new(&[&server]).expect(&server.url(&path), &content).await;
        assert_eq!(server.count(&path), 3);
    }
    server.on("/never", [Reply::status(500)]);
    says(
        &Bench::new(&[&server]).fails(&server.url("/never")).await,
        "ServerFailed",
        "(3 attempts): it answered HTTP 500",
    );
    assert_eq!(server.count("/never"), ATTEMPTS as usize);
}

#[tokio::test]
async fn a_clear_no_is_believed_at_once() {
    let server = FaultServer::start().await.unwrap();
    let cases = [
        (400, "", "WrongLink", "make a new one"),
        (401, "", "WrongLink", "does not allow"),
        (403, "", "WrongLink", "does not allow"),
        (404, "", "WrongLink", "no such file"),
        (410, "", "WrongLink", "no such file"),
        (400, r#"{"statusCode":"400","error":"InvalidJWT","message":"jwt expired"}"#, "Expired", "make a new one"),
        (400, r#"{"statusCode":"404","error":"not_found","message":"Object not found"}"#, "WrongLink", "no such file"),
        (400, r#"{"statusCode":"403","error":"Unauthorized","message":"x"}"#, "WrongLink", "does not allow"),
        (403, "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>", "Expired", "expired"),
        (400, "<Error><Code>ExpiredToken</Code></Error>", "Expired", "expired"),
        (403, "<Error><Code>SignatureDoesNotMatch</Code></Error>", "WrongLink", "its signature is not valid"),
        (404, "<Error><Code>NoSuchKey</Code></Error>", "WrongLink", "no such file"),
    ];
    for (index, (status, text, kind, expected)) in cases.into_iter().enumerate() {
        let path = format!("/{index}");
        server.on(&path, [Reply::refusal(status, text)]);
        says(&Bench::new(&[&server]).fails(&server.url(&path)).await, kind, expected);
        assert_eq!(server.count(&path), 1, "{status} {text}");
    }
}

#[tokio::test]
async fn supabase_can_be_down_behind_a_400() {
    let server = FaultServer::start().await.unwrap();
    let down = Reply::refusal(400, r#"{"statusCode":"503","error":"DatabaseTimeout","message":"x"}"#);
    server.on("/d", [down, Reply::file("x")]);
    Bench::new(&[&server]).expect(&server.url("/d"), b"x").await;
}

#[tokio::test]
async fn the_text_of_a_refusal_is_bounded() {
    let server = FaultServer::start().await.unwrap();
    let endless = format!("<Error><Code>AccessDenied</Code>{}", "x".repeat(5_000_000));
    server.on("/d", [Reply::refusal(403, &endless)]);
    says(&Bench::new(&[&server]).fails(&server.url("/d")).await, "WrongLink", "(AccessDenied)");
}

#[tokio::test]
async fn a_link_that_says_it_is_over_is_not_tried() {
    let server = FaultServer::start().await.unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let token = |end: u64| {
        let part = |text: String| base64_simd::URL_SAFE_NO_PAD.encode_to_string(text);
        let (head, claims) = (part("{\"alg\":\"HS256\"}".into()), part(format!("{{\"url\":\"b/d\",\"exp\":{end}}}")));
        format!("/d?token={head}.{claims}.c2lnbmF0dXJl")
    };
    let bench = Bench::new(&[&server]);
    let hours = Duration::from_secs(3 * 3600 + 60).as_secs();
    says(&bench.fails(&server.url(&token(now - hours))).await, "Expired", "the link expired 3 h ago; make a new one");
    let amazon = "/d?X-Amz-Date=20200101T000000Z&X-Amz-Expires=3600&X-Amz-Signature=0";
    says(&bench.fails(&server.url(amazon)).await, "Expired", "days ago; make a new one");
    assert_eq!(server.count("/d"), 0);
    server.on("/d", [Reply::file("x")]);
    bench.expect(&server.url(&token(now + hours)), b"x").await;
    // A redirect to a link that is over is not followed either.
    server.on("/r", [Reply::redirect(302, &token(now - hours))]);
    says(&bench.get(&server.url("/r")).await.unwrap_err(), "Expired", "3 h ago");
    assert_eq!(server.count("/d"), 1);
}
