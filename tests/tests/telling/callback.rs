//! What a callback hears, in which order, and how it knows who speaks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use brightrun_tests::faults::{FaultServer, Reply, Seen};
use brightrun_worker::{telling::Told, work::Ended};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::time::sleep;

use crate::{PATH, PATIENCE, at, failure, job, limits, message, messages, policy, soon, success, telling};

fn statuses(messages: &[Value]) -> Vec<&str> {
    messages.iter().map(|message| message["status"].as_str().unwrap()).collect()
}

/// As the page for the platform's developers says it is checked.
fn is_signed(seen: &Seen, secret: &str) -> bool {
    let Some(signature) = seen.header("x-brightrun-signature") else { return false };
    let (time, mac) = signature.split_once(",v1=").unwrap();
    let time = time.strip_prefix("t=").unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(time.parse().unwrap()) < 300, "{time}");
    let mut expected = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    expected.update([time.as_bytes(), b".", &seen.body].concat().as_slice());
    expected.verify_slice(&hex::decode(mac).unwrap()).is_ok()
}

#[tokio::test]
async fn every_change_is_told_in_order_and_the_end_last() {
    let server = FaultServer::start().await.unwrap();
    server.on(PATH, [Reply::status(200)]);
    let telling = telling(&policy(&server), limits(), &[]);
    let told = telling.begin(&job(&server.url(&format!("{PATH}?apikey=a"))), "job");
    soon(|| server.count(PATH) == 1).await;
    for (number, stage) in ["loading", "training", "evaluating", "saving", "uploading"].iter().enumerate() {
        told.progress(&at(stage, 1));
        soon(|| server.count(PATH) == number + 2).await;
    }
    told.ended(&success());
    telling.settle(PATIENCE).await;
    let all = messages(&server);
    let stages: Vec<&Value> = all.iter().map(|message| &message["output"]["stage"]).collect();
    assert_eq!(stages[..6], ["fetching", "loading", "training", "evaluating", "saving", "uploading"]);
    assert_eq!(statuses(&all)[..6], ["IN_PROGRESS"; 6]);
    let last = &all[6];
    assert_eq!((&last["id"], &last["job_id"], &last["status"]), (&json!("id-u1"), &json!("job"), &json!("COMPLETED")));
    assert_eq!(last["output"]["model_files"]["adapter_model.safetensors"], "https://store/x?X-Amz-Signature=0");
    assert!(last.get("error").is_none());
    for (number, message) in all.iter().enumerate() {
        assert_eq!(message["sequence"], json!(number + 1));
        assert!(message["event_id"].as_str().unwrap().ends_with(&format!("-{}", number + 1)));
    }
    let seen = &server.seen()[0];
    assert_eq!((seen.method.as_str(), seen.query.as_str()), ("POST", "apikey=a"));
    assert_eq!(seen.header("content-type"), Some("application/json"));
    assert_eq!(seen.header("x-brightrun-signature"), None);
}

#[tokio::test]
async fn each_end_has_its_word() {
    for (ended, status, error) in [
        (failure("the dataset is empty"), "FAILED", json!("the dataset is empty")),
        (Ended::Stopped, "CANCELLED", Value::Null),
        (success(), "COMPLETED", Value::Null),
    ] {
        let server = FaultServer::start().await.unwrap();
        server.on(PATH, [Reply::status(200)]);
        let telling = telling(&policy(&server), limits(), &[]);
        telling.begin(&job(&server.url(PATH)), "job").ended(&ended);
        telling.settle(PATIENCE).await;
        let last = messages(&server).pop().unwrap();
        assert_eq!((&last["status"], &last["error"]), (&json!(status), &error));
    }
}

#[tokio::test]
async fn a_job_that_goes_on_elsewhere_has_no_end_here() {
    let server = FaultServer::start().await.unwrap();
    server.on(PATH, [Reply::status(200)]);
    let telling = telling(&policy(&server), limits(), &[]);
    let told = telling.begin(&job(&server.url(PATH)), "job");
    soon(|| server.count(PATH) == 1).await;
    told.ended(&Ended::HandedBack);
    drop(told);
    telling.settle(PATIENCE).await;
    assert_eq!(statuses(&messages(&server)), ["IN_PROGRESS"]);
}

/// Whoever carries a job out and breaks down says nothing more.
#[tokio::test]
async fn a_job_that_nobody_ends_has_failed() {
    let server = FaultServer::start().await.unwrap();
    server.on(PATH, [Reply::status(200)]);
    let telling = telling(&policy(&server), limits(), &[]);
    let told: Told = telling.begin(&job(&server.url(PATH)), "job");
    let broken = tokio::spawn(async move {
        told.progress(&at("training", 1));
        panic!("as it should");
    });
    assert!(broken.await.is_err());
    telling.settle(PATIENCE).await;
    let last = messages(&server).pop().unwrap();
    assert!(last["status"] == "FAILED" && last["error"].as_str().unwrap().contains("fault"), "{last}");
}

#[tokio::test]
async fn a_slow_receiver_hears_the_newest_and_never_two_at_once() {
    let server = FaultServer::start().await.unwrap();
    let slow = Duration::from_millis(200);
    server.on(PATH, [Reply::status(200).delayed(slow)]);
    let telling = telling(&policy(&server), limits(), &[]);
    let told = telling.begin(&job(&server.url(PATH)), "job");
    soon(|| server.count(PATH) == 1).await;
    for step in 1..=1000 {
        told.progress(&at("training", step));
    }
    soon(|| server.count(PATH) == 2).await;
    told.progress(&at("saving", 1001));
    told.ended(&success());
    // The end waits for what is on its way.
    sleep(slow / 4).await;
    assert_eq!(server.count(PATH), 2);
    telling.settle(PATIENCE).await;
    let all = messages(&server);
    assert_eq!(statuses(&all), ["IN_PROGRESS", "IN_PROGRESS", "COMPLETED"]);
    assert_eq!(all[1]["output"]["current_step"], 1000);
    // After the end nothing is told.
    told.progress(&at("training", 1));
    told.ended(&failure("no"));
    drop(told);
    sleep(slow).await;
    assert_eq!(server.count(PATH), 3);
}

#[tokio::test]
async fn progress_is_told_at_its_pace_and_a_new_stage_sooner() {
    let server = FaultServer::start().await.unwrap();
    server.on(PATH, [Reply::status(200)]);
    let rare = brightrun_worker::telling::TellingLimits { progress: PATIENCE, ..limits() };
    let telling = telling(&policy(&server), rare, &[]);
    let told = telling.begin(&job(&server.url(PATH)), "job");
    soon(|| server.count(PATH) == 1).await;
    told.progress(&at("training", 1));
    soon(|| server.count(PATH) == 2).await;
    for step in 2..20 {
        told.progress(&at("training", step));
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(server.count(PATH), 2);
    told.progress(&at("saving", 20));
    soon(|| server.count(PATH) == 3).await;
    assert_eq!(messages(&server)[2]["output"]["current_step"], 20);
}

#[tokio::test]
async fn messages_are_signed_where_there_is_a_secret() {
    let server = FaultServer::start().await.unwrap();
    server.on(PATH, [Reply::status(200)]);
    let telling = telling(&policy(&server), limits(), &[("BRIGHTRUN_CALLBACK_SECRET", " k\u{e9}y \n")]);
    let told = telling.begin(&job(&server.url(PATH)), "job");
    soon(|| server.count(PATH) == 1).await;
    told.ended(&success());
    telling.settle(PATIENCE).await;
    let seen = server.seen();
    assert!(seen.len() == 2 && seen.iter().all(|seen| is_signed(seen, "k\u{e9}y")));
    let mut forged = seen[1].clone();
    forged.body[0] = b' ';
    assert!(!is_signed(&forged, "k\u{e9}y") && !is_signed(&seen[1], "key"));
}

#[tokio::test]
async fn the_end_is_sent_again_as_the_same_message() {
    let server = FaultServer::start().await.unwrap();
    let wrong = [Reply::status(503), Reply::raw(""), Reply::status(429), Reply::status(500), Reply::status(204)];
    server.on(PATH, wrong);
    let telling = telling(&policy(&server), limits(), &[("BRIGHTRUN_CALLBACK_SECRET", "key")]);
    let told = telling.begin(&job(&server.url(PATH)), "job");
    soon(|| server.count(PATH) == 1).await;
    told.ended(&success());
    telling.settle(PATIENCE).await;
    let seen = server.seen();
    let last: Vec<Value> = seen[1..].iter().map(message).collect();
    assert_eq!(last.len(), 4);
    assert!(last.iter().all(|message| *message == last[0]) && last[0]["status"] == "COMPLETED");
    assert!(seen.iter().all(|seen| is_signed(seen, "key")));
}
