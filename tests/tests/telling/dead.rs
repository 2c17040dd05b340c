//! Receivers that are dead, slow, elsewhere or hostile: nobody waits for them, and they are left alone.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use brightrun_tests::faults::{FaultServer, Reply};
use brightrun_worker::{net::Names, storage::SourcePolicy, telling::TellingLimits};
use serde_json::json;
use tokio::{net::TcpListener, time::sleep};

use crate::{AT_ONCE, PATH, PATIENCE, at, at_once, failure, job, limits, policy, soon, success, telling};

/// Long for one who should not wait, short for one who waits.
const LAST: Duration = Duration::from_millis(600);

fn impatient() -> TellingLimits {
    TellingLimits {
        answer: Duration::from_millis(200),
        last_of_callback: LAST,
        last_of_row: LAST,
        failures: 3,
        ..limits()
    }
}

/// Tells of a whole job, and nobody waits while it does; how long the rest took then.
async fn tells(policy: &SourcePolicy, url: &str) -> Duration {
    let telling = telling(policy, impatient(), &[]);
    let told = at_once(|| telling.begin(&job(url), "job"));
    for step in 0..20 {
        at_once(|| told.progress(&at("training", step)));
        sleep(Duration::from_millis(5)).await;
    }
    at_once(|| told.ended(&success()));
    at_once(|| drop(told));
    let begin = Instant::now();
    telling.settle(PATIENCE).await;
    begin.elapsed()
}

/// Waits for the message on its way and for the end, each as long as it may take, and for no more.
#[track_caller]
fn is_bounded(time: Duration) {
    let most = impatient().answer + LAST;
    assert!(time < most + Duration::from_secs(2), "{time:?}");
}

#[tokio::test]
async fn nobody_waits_for_a_receiver_that_is_dead_or_slow() {
    let server = FaultServer::start().await.unwrap();
    let hour = Duration::from_secs(3600);
    for (path, reply) in [
        ("/hangs", Reply::status(200).delayed(hour)),
        ("/half", Reply::raw("HTTP/1.1 200 OK\r\nx: ")),
        ("/endless", Reply::endless_headers()),
        ("/body", Reply::refusal(500, "slowly").dripping(1, hour)),
        ("/large", Reply::file(vec![0; 10 << 20])),
        ("/nonsense", Reply::raw("hello")),
        ("/cut", Reply::raw("")),
        ("/404", Reply::status(404)),
        ("/500", Reply::status(500)),
    ] {
        server.on(path, [reply]);
        is_bounded(tells(&policy(&server), &server.url(path)).await);
        assert!(server.count(path) >= 2, "{path}");
    }
}

#[tokio::test]
async fn telling_of_a_step_costs_next_to_nothing() {
    const STEPS: u32 = 10_000;
    let server = FaultServer::start().await.unwrap();
    server.on(PATH, [Reply::status(200).delayed(PATIENCE)]);
    let telling = telling(&policy(&server), impatient(), &[]);
    let told = telling.begin(&job(&server.url(PATH)), "job");
    soon(|| server.count(PATH) == 1).await;
    let step = at("training", 1);
    let begin = Instant::now();
    (0..STEPS).for_each(|_| told.progress(&step));
    // Each takes some microseconds; the receiver, a minute.
    assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
}

/// Connections are taken, and never read.
#[tokio::test]
async fn nobody_waits_for_a_receiver_that_does_not_read() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut policy = SourcePolicy { plain_http: true, ..SourcePolicy::service() };
    policy.network.allowed_addresses = vec![address];
    is_bounded(tells(&policy, &format!("http://{address}/")).await);
}

/// Nobody listens there: the discard port.
#[tokio::test]
async fn nobody_waits_for_a_receiver_that_is_not_there() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], 9));
    let mut policy = SourcePolicy { plain_http: true, ..SourcePolicy::service() };
    policy.network.allowed_addresses = vec![nobody];
    is_bounded(tells(&policy, &format!("http://{nobody}/")).await);
    policy.network.names = Names::with(|_| {
        std::thread::sleep(Duration::from_secs(2));
        Ok(vec![])
    });
    is_bounded(tells(&policy, "https://nowhere.example/").await);
}

/// A job may be over before a receiver has failed again and again.
#[tokio::test]
async fn a_receiver_that_has_not_heard_of_progress_is_named_in_the_result() {
    let server = FaultServer::start().await.unwrap();
    server.on(PATH, [Reply::status(404), Reply::status(200)]);
    let telling = telling(&policy(&server), impatient(), &[]);
    let told = telling.begin(&job(&server.url(&format!("{PATH}?key=S3CR3T"))), "job");
    soon(|| !told.warnings().is_empty()).await;
    let warnings = told.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("HTTP 404") && !warnings[0].contains("S3CR3T"), "{warnings:?}");
    // One that has heard the next is not.
    told.progress(&at("training", 1));
    soon(|| told.warnings().is_empty()).await;
}

#[tokio::test]
async fn a_receiver_that_fails_again_and_again_hears_of_the_end_only() {
    let server = FaultServer::start().await.unwrap();
    let failures = impatient().failures as usize;
    let dead = std::iter::repeat_n(Reply::status(404), failures);
    server.on(PATH, dead.chain([Reply::status(200)]));
    let telling = telling(&policy(&server), impatient(), &[]);
    let told = telling.begin(&job(&server.url(&format!("{PATH}?key=S3CR3T"))), "job");
    for step in 0..50 {
        told.progress(&at("training", step));
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(server.count(PATH), failures);
    let warnings = told.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("HTTP 404") && warnings[0].contains(PATH), "{warnings:?}");
    assert!(!warnings[0].contains("S3CR3T"));
    told.ended(&success());
    telling.settle(PATIENCE).await;
    assert_eq!(server.count(PATH), failures + 1);
}

#[tokio::test]
async fn an_end_that_is_refused_is_not_repeated() {
    let elsewhere = FaultServer::start().await.unwrap();
    elsewhere.on("/", [Reply::status(200)]);
    for reply in [
        Reply::status(404),
        Reply::status(401),
        Reply::redirect(302, &elsewhere.url("/")),
        Reply::redirect(307, &elsewhere.url("/")),
        Reply::redirect(308, "http://169.254.169.254/"),
    ] {
        let server = FaultServer::start().await.unwrap();
        server.on(PATH, [reply]);
        let telling = telling(&policy(&server), limits(), &[]);
        let told = telling.begin(&job(&server.url(PATH)), "job");
        soon(|| server.count(PATH) == 1).await;
        told.ended(&success());
        telling.settle(PATIENCE).await;
        assert_eq!(server.count(PATH), 2);
    }
    assert_eq!(elsewhere.seen().len(), 0);
}

#[tokio::test]
async fn callbacks_lead_to_public_servers_only() {
    let server = FaultServer::start().await.unwrap();
    server.on(PATH, [Reply::status(200)]);
    let mut policy = SourcePolicy::service();
    let plain = telling(&policy, limits(), &[]);
    let told = plain.begin(&job(&server.url(&format!("{PATH}?key=S3CR3T"))), "job");
    let warnings = told.warnings();
    assert!(
        warnings.len() == 1 && warnings[0].contains("not encrypted") && !warnings[0].contains("S3CR3T"),
        "{warnings:?}"
    );
    policy.plain_http = true;
    is_bounded(tells(&policy, &server.url(PATH)).await);
    policy.network.names = Names::with(|_| Ok(vec!["10.0.0.7".parse().unwrap()]));
    is_bounded(tells(&policy, &format!("http://receiver.example:{}/", server.address().port())).await);
    assert_eq!(server.seen().len(), 0);
}

#[tokio::test]
async fn whatever_a_callback_is_the_job_is_told_of_to_others() {
    let telling = telling(&SourcePolicy::service(), limits(), &[]);
    for callback in [json!(7), json!(null), json!({}), json!("no"), json!("ftp://h/"), json!("https://u:p@h/")] {
        let mut job = job("");
        job.input["callback_url"] = callback;
        let told = telling.begin(&job, "job");
        told.progress(&json!("no object"));
        told.ended(&failure("why"));
    }
    let mut job = job("");
    job.input = json!("no object");
    telling.begin(&job, "job").ended(&success());
    telling.settle(PATIENCE).await;
}
