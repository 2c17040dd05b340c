//! The operator's Supabase project: rows are written, archives brought there, and a project that fails costs nothing but a
//! warning.

use std::{
    fs,
    io::Read,
    time::{Duration, Instant},
};

use brightrun_worker::{
    storage::SourcePolicy,
    telling::{Telling, TellingLimits, Told},
    work::Ended,
};
use flate2::read::GzDecoder;
use hyper::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    PATIENCE, at, at_once, failure, job, limits,
    project::{Fault, KEY, Project},
    soon, success, telling,
};

/// A row's id.
const ID: &str = "6f1c2b1e-8a53-4a0e-9d5e-2f6f0d0c7a11";
const OBJECT: &str = "lora-models/adapters/6f1c2b1e-8a53-4a0e-9d5e-2f6f0d0c7a11.tar.gz";

struct Bench {
    project: Project,
    telling: Telling,
    folder: TempDir,
}

impl Bench {
    async fn start() -> Self {
        Self::start_with(limits()).await
    }

    async fn start_with(limits: TellingLimits) -> Self {
        let project = Project::start(ID).await;
        // The operator's own project may be private.
        let telling = project.telling(&SourcePolicy::service(), limits);
        let folder = tempfile::tempdir().unwrap();
        let adapter = folder.path().join("adapter");
        fs::create_dir(&adapter).unwrap();
        fs::write(adapter.join("adapter_model.safetensors"), vec![5; 300_000]).unwrap();
        fs::write(adapter.join("adapter_config.json"), "{}").unwrap();
        Self { project, telling, folder }
    }

    fn begin(&self) -> Told {
        at_once(|| self.telling.begin(&job(""), ID))
    }

    async fn adapter(&self, told: &Told) -> Result<Option<String>, String> {
        sendable(told.adapter(&self.folder.path().join("adapter"), &CancellationToken::new())).await
    }

    async fn end(&self, told: &Told, ended: &Ended) {
        at_once(|| told.ended(ended));
        self.telling.settle(PATIENCE).await;
    }

    /// The adapter's archive, and what is wrong with it, where it does not come.
    async fn archive_fails(&self) -> String {
        let told = self.begin();
        let error = self.adapter(&told).await.unwrap_err();
        assert!(error.contains("the adapter's archive is not in lora-models") && !error.contains("S3CR3T"), "{error}");
        self.end(&told, &success()).await;
        let row = self.project.row(ID);
        assert_eq!((&row["status"], &row["adapter_file_path"]), (&json!("completed"), &Value::Null));
        assert_eq!(row["error_message"], json!(error));
        assert_eq!(fs::read_dir(self.folder.path()).unwrap().count(), 1, "something is left");
        error
    }
}

/// Whoever awaits it may want to do so on another thread.
fn sendable<T: Send>(work: T) -> T {
    work
}

#[tokio::test]
async fn a_row_shows_the_job_from_its_beginning_to_its_end() {
    let bench = Bench::start().await;
    let told = bench.begin();
    soon(|| bench.project.writes().len() == 1).await;
    let begin = json!({
        "progress": 0, "current_epoch": 0, "current_step": 0, "status": "running", "error_message": null,
    });
    assert_eq!(bench.project.row(ID), begin);
    told.progress(&at("training", 450));
    soon(|| bench.project.writes().len() == 2).await;
    let row = bench.project.row(ID);
    assert_eq!((&row["progress"], &row["current_step"], &row["current_epoch"]), (&json!(45), &json!(450), &json!(2)));
    assert_eq!((&row["current_loss"], &row["tokens_per_second"]), (&json!(1.25), &json!(125.5)));
    assert_eq!(bench.adapter(&told).await, Ok(Some(OBJECT.into())));
    bench.end(&told, &success()).await;
    let writes = bench.project.writes();
    assert_eq!(writes.len(), 3);
    // Who waits for the one finds the other.
    let last = &writes[2];
    assert_eq!((&last["status"], &last["adapter_file_path"]), (&json!("completed"), &json!(OBJECT)));
    assert_eq!((&last["progress"], &last["current_step"]), (&json!(100), &json!(1500)));
    assert_eq!((&last["final_loss"], &last["current_loss"]), (&json!(0.45), &json!(0.5)));
    assert_eq!(told.warnings(), [""; 0]);
}

#[tokio::test]
async fn each_end_has_its_word() {
    for (ended, expected) in [
        (failure("the dataset is empty"), json!({ "status": "failed", "error_message": "the dataset is empty" })),
        (Ended::Stopped, json!({ "status": "cancelled" })),
    ] {
        let bench = Bench::start().await;
        let told = bench.begin();
        soon(|| bench.project.writes().len() == 1).await;
        bench.end(&told, &ended).await;
        assert_eq!(bench.project.writes()[1..], [expected]);
    }
}

#[tokio::test]
async fn the_archive_is_one_folder_and_the_same_each_time() {
    let bench = Bench::start().await;
    let told = bench.begin();
    assert_eq!(bench.adapter(&told).await, Ok(Some(OBJECT.into())));
    let first = bench.project.object(OBJECT).unwrap();
    let mut archive = tar::Archive::new(GzDecoder::new(&first[..]));
    let mut names = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let read = entry.read_to_end(&mut Vec::new()).unwrap();
        names.push((entry.path().unwrap().display().to_string(), read));
    }
    let expected =
        [("adapter/", 0), ("adapter/adapter_config.json", 2), ("adapter/adapter_model.safetensors", 300_000)];
    assert_eq!(names, expected.map(|(name, bytes)| (name.to_owned(), bytes)));
    // A job may be done twice.
    assert_eq!(bench.adapter(&told).await, Ok(Some(OBJECT.into())));
    assert_eq!(bench.project.object(OBJECT).unwrap(), first);
    assert_eq!(fs::read_dir(bench.folder.path()).unwrap().count(), 1, "something is left");
}

#[tokio::test]
async fn what_was_stored_is_compared() {
    let bench = Bench::start().await;
    bench.project.faults(Method::POST, [Fault::Changes]);
    let told = bench.begin();
    assert_eq!(bench.adapter(&told).await, Ok(Some(OBJECT.into())));
    assert_eq!(bench.project.asked(&Method::POST).len(), 2);
    let asked = bench.project.asked(&Method::POST).pop().unwrap();
    assert_eq!(bench.project.object(OBJECT).unwrap(), asked.body);
    // Where the store says its sum, that is enough.
    bench.project.with_tags();
    assert_eq!(bench.adapter(&told).await, Ok(Some(OBJECT.into())));
}

#[tokio::test]
async fn an_upload_that_fails_is_tried_again() {
    let bench = Bench::start().await;
    let wrong =
        [Fault::Says(503, ""), Fault::Says(400, r#"{"statusCode":"500","error":"Internal"}"#), Fault::Says(429, "")];
    bench.project.faults(Method::POST, wrong);
    bench.project.faults(Method::GET, [Fault::Says(502, "")]);
    let told = bench.begin();
    assert_eq!(bench.adapter(&told).await, Ok(Some(OBJECT.into())));
    assert_eq!(bench.project.asked(&Method::POST).len(), 5);
}

#[tokio::test]
async fn a_store_that_refuses_is_a_warning_that_says_what_to_do() {
    let bench = Bench::start().await;
    bench.project.without_bucket();
    assert!(bench.archive_fails().await.contains("make it"));
    let bench = Bench::start().await;
    bench.project.takes_at_most(10);
    assert!(bench.archive_fails().await.contains("raise the bucket's"));
    let bench = Bench::start().await;
    let jwt = r#"{"statusCode":"403","error":"Unauthorized","message":"S3CR3T"}"#;
    bench.project.faults(Method::POST, [Fault::Says(400, jwt)]);
    assert!(bench.archive_fails().await.contains("SUPABASE_SERVICE_ROLE_KEY"));
    let bench = Bench::start().await;
    bench.project.faults(Method::POST, [Fault::Says(302, "S3CR3T")]);
    assert!(bench.archive_fails().await.contains("refuses it"));
    let short = TellingLimits { archive: Duration::from_millis(300), ..limits() };
    let bench = Bench::start_with(short).await;
    bench.project.faults(Method::POST, [Fault::Hangs]);
    let error = bench.archive_fails().await;
    assert!(error.contains("300ms"), "{error}");
    let bench = Bench::start().await;
    fs::remove_dir_all(bench.folder.path().join("adapter")).unwrap();
    fs::create_dir(bench.folder.path().join("adapter")).unwrap();
    assert!(bench.archive_fails().await.contains("cannot archive"));
}

#[tokio::test]
async fn an_upload_can_be_cancelled() {
    let bench = Bench::start().await;
    bench.project.faults(Method::POST, [Fault::Hangs]);
    let told = bench.begin();
    let (cancel, folder) = (CancellationToken::new(), bench.folder.path().join("adapter"));
    let cancelling = async {
        soon(|| !bench.project.asked(&Method::POST).is_empty()).await;
        cancel.cancel();
        Instant::now()
    };
    let (outcome, at) = tokio::join!(told.adapter(&folder, &cancel), cancelling);
    assert!(outcome.unwrap_err().contains("cancelled") && at.elapsed() < Duration::from_secs(2));
    soon(|| fs::read_dir(bench.folder.path()).unwrap().count() == 1).await;
}

#[tokio::test]
async fn a_row_that_is_not_there_is_told_once() {
    let bench = Bench::start().await;
    let told = at_once(|| bench.telling.begin(&job(""), "another"));
    soon(|| bench.project.asked(&Method::PATCH).len() == 1).await;
    told.progress(&at("training", 1));
    soon(|| bench.project.asked(&Method::PATCH).len() == 2).await;
    bench.end(&told, &success()).await;
    let warnings = told.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("no row with the job's job_id"), "{warnings:?}");
    assert_eq!((bench.project.writes(), bench.project.asked(&Method::PATCH).len()), (vec![], 3));
}

#[tokio::test]
async fn a_name_that_no_row_has_is_not_asked_for() {
    let bench = Bench::start().await;
    for name in ["a&id=neq.0", "../x", "", "a b", "x)"] {
        let told = bench.telling.begin(&job(""), name);
        told.progress(&at("training", 1));
        assert_eq!(bench.adapter(&told).await, Ok(None));
        bench.end(&told, &success()).await;
        assert!(told.warnings()[0].contains("is no id of a row"));
    }
    assert_eq!(bench.project.asked(&Method::PATCH).len(), 0);
}

#[tokio::test]
async fn a_table_that_fails_costs_a_warning_and_the_end_arrives_all_the_same() {
    let bench = Bench::start().await;
    let refused = r#"{"code":"PGRST204","message":"Could not find the 'S3CR3T' column"}"#;
    bench.project.faults(Method::PATCH, [Fault::Says(400, refused), Fault::Says(500, ""), Fault::Says(503, "")]);
    let told = bench.begin();
    soon(|| bench.project.asked(&Method::PATCH).len() == 1).await;
    bench.end(&told, &success()).await;
    let warnings = told.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("lacks one of the columns"), "{warnings:?}");
    assert_eq!(bench.project.asked(&Method::PATCH).len(), 4);
    assert_eq!(bench.project.row(ID)["status"], "completed");
}

#[tokio::test]
async fn a_wrong_key_is_named_and_not_shown() {
    let project = Project::start(ID).await;
    let variables =
        [("SUPABASE_URL", format!("http://{}", project.address)), ("SUPABASE_SERVICE_KEY", format!("{KEY}x"))];
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let telling = telling(&SourcePolicy::service(), limits(), &variables);
    let told = telling.begin(&job(""), ID);
    soon(|| !told.warnings().is_empty()).await;
    let warning = told.warnings().pop().unwrap();
    assert!(warning.contains("SUPABASE_SERVICE_ROLE_KEY") && !warning.contains("S3CR3T"), "{warning}");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), "a").unwrap();
    let error = told.adapter(folder.path(), &CancellationToken::new()).await.unwrap_err();
    assert!(error.contains("SUPABASE_SERVICE_ROLE_KEY") && !error.contains("S3CR3T"), "{error}");
    assert!(!format!("{telling:?}").contains("S3CR3T"));
}

#[tokio::test]
async fn nobody_waits_for_a_project_that_does_not_answer() {
    let short =
        TellingLimits { answer: Duration::from_millis(100), last_of_row: Duration::from_millis(300), ..limits() };
    let bench = Bench::start_with(short).await;
    bench.project.faults(Method::PATCH, vec![Fault::Hangs; 100]);
    let told = bench.begin();
    for step in 0..20 {
        at_once(|| told.progress(&at("training", step)));
        sleep(Duration::from_millis(5)).await;
    }
    let begin = Instant::now();
    bench.end(&told, &success()).await;
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn without_a_project_there_is_no_archive() {
    let telling = telling(&SourcePolicy::service(), limits(), &[]);
    let told = telling.begin(&job(""), ID);
    assert_eq!(told.adapter(std::path::Path::new("/nowhere"), &CancellationToken::new()).await, Ok(None));
    told.ended(&success());
}
