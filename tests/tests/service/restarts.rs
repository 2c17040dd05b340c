//! What is left when the program ends, and what becomes of it when it begins again.

use std::{fs, path::Path, sync::atomic::Ordering};

use brightrun_worker::service::Service;
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{Bench, Obedient, settings};

/// What a program that is killed now would leave behind.
fn image(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        // What lies in the memory of other processes is no file.
        if !entry.file_name().to_string_lossy().ends_with("-shm") {
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    copy
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_answered_after_a_kill() {
    let (bench, folder) = Bench::start().await;
    let done = bench.run(json!({ "x": "é" })).await;
    let failed = bench.run(json!({ "error": "no" })).await;
    let (before, wrong) = (bench.until(&done, "COMPLETED").await, bench.until(&failed, "FAILED").await);
    let image = image(folder.path());
    let again = Bench::at(settings(image.path())).await;
    assert_eq!((again.status(&done).await, again.status(&failed).await), (before, wrong));
    again.goes().await;
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_under_way_goes_on_first_after_a_kill() {
    let (bench, folder) = Bench::start().await;
    let running = bench.run(json!({ "steps": 200, "pause": 10 })).await;
    let waiting = [bench.run(json!({})).await, bench.run(json!({})).await];
    bench.until(&running, "IN_PROGRESS").await;
    let image = image(folder.path());
    let again = Bench::at(settings(image.path())).await;
    again.until(&running, "IN_PROGRESS").await;
    assert_eq!(again.status(&waiting[0]).await["status"], "IN_QUEUE");
    for id in &waiting {
        again.until(id, "COMPLETED").await;
    }
    let told = again.status(&running).await;
    assert_eq!((&told["status"], &told["retries"]), (&json!("COMPLETED"), &json!(1)));
    assert_eq!(again.work.begun.load(Ordering::SeqCst), 3);
    again.goes().await;
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_cancelled_is_not_begun_again() {
    let (bench, folder) = Bench::start().await;
    let running = bench.run(json!({ "steps": 100, "pause": 10, "deaf": 1 })).await;
    bench.until(&running, "IN_PROGRESS").await;
    bench.post(&format!("/cancel/{running}"), &json!(null)).await;
    let image = image(folder.path());
    let again = Bench::at(settings(image.path())).await;
    assert_eq!(again.status(&running).await["status"], "CANCELLED");
    assert_eq!(again.work.begun.load(Ordering::SeqCst), 0);
    again.goes().await;
    bench.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_told_to_go_leaves_its_job_in_the_queue_and_first() {
    let (bench, folder) = Bench::start().await;
    let running = bench.run(json!({ "steps": 100, "pause": 10, "resumable": 1 })).await;
    let waiting = bench.run(json!({})).await;
    bench.until(&running, "IN_PROGRESS").await;
    bench.goes().await;
    let again = Bench::at(settings(folder.path())).await;
    again.until(&running, "IN_PROGRESS").await;
    assert_eq!(again.status(&waiting).await["status"], "IN_QUEUE");
    again.until(&waiting, "COMPLETED").await;
    // It ended in order, so this is no retry.
    assert!(again.status(&running).await.get("retries").is_none());
    again.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_told_to_go_still_takes_what_a_job_that_cannot_pause_gives() {
    let (bench, folder) = Bench::start().await;
    let running = bench.run(json!({ "steps": 40, "pause": 10 })).await;
    bench.until(&running, "IN_PROGRESS").await;
    bench.leave.cancel();
    // While the last job ends, requests are answered, and jobs are taken for later.
    let later = bench.run(json!({ "y": 2 })).await;
    assert_eq!(bench.status(&later).await["status"], "IN_QUEUE");
    bench.goes().await;
    let again = Bench::at(settings(folder.path())).await;
    assert_eq!(again.status(&running).await["status"], "COMPLETED");
    again.until(&later, "COMPLETED").await;
    again.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_ends_the_program_again_and_again_is_given_up() {
    let (bench, folder) = Bench::start().await;
    let running = bench.run(json!({ "steps": 200, "pause": 10 })).await;
    let waiting = bench.run(json!({})).await;
    bench.until(&running, "IN_PROGRESS").await;
    let mut images = vec![image(folder.path())];
    bench.goes().await;
    for _ in 0..29 {
        let again = Bench::at(settings(images.last().unwrap().path())).await;
        again.until(&running, "IN_PROGRESS").await;
        images.push(image(images.last().unwrap().path()));
        again.post(&format!("/cancel/{running}"), &json!(null)).await;
        again.goes().await;
    }
    let last = Bench::at(settings(images.last().unwrap().path())).await;
    let told = last.until(&running, "FAILED").await;
    assert!(told["error"].as_str().unwrap().contains("ended 30 times"), "{told}");
    last.until(&waiting, "COMPLETED").await;
    last.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_service_has_a_folder() {
    let (bench, folder) = Bench::start().await;
    let second = Service::open(settings(folder.path()), Obedient::default(), CancellationToken::new()).await;
    assert!(second.err().unwrap().to_string().contains("another brightrun serve"));
    bench.goes().await;
    Bench::at(settings(folder.path())).await.goes().await;
}
