//! The rules of the job contract with the platform, one test each, with the product as it is: a worker that trains the embedded
//! model takes jobs from a simulator of the platform, and what the platform sees is looked at. Requests, what is shown while a job
//! runs, how it ends. Rules that need a card, or hours, have their tests elsewhere; `tests/README.md` says where.

mod base_model;
#[path = "../shared/training.rs"]
mod bench;
mod ending;
mod request;
mod running;
#[path = "../shared/store.rs"]
mod store;

use std::{collections::BTreeMap, fs, path::Path};

use brightrun_tests::{
    faults::FaultServer,
    platform::{JobView, Status},
};
use brightrun_worker::life::Settings;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use bench::PATIENCE;

/// A job that came to its end.
struct Ended {
    /// What the platform knows of it.
    view: JobView,
    /// What lies in its folder.
    files: BTreeMap<String, Vec<u8>>,
}

// === impl Ended ===

impl Ended {
    /// The result of a job that went well.
    #[track_caller]
    fn output(&self) -> &Value {
        assert_eq!(self.view.status, Status::Completed, "{:?}", self.view.error);
        self.view.output.as_ref().unwrap()
    }

    /// Why it failed.
    #[track_caller]
    fn error(&self) -> &str {
        assert_eq!(self.view.status, Status::Failed, "{:?}", self.view.output);
        self.view.error.as_deref().unwrap()
    }

    /// A JSON file of its folder.
    #[track_caller]
    fn json(&self, name: &str) -> Value {
        self.output();
        serde_json::from_slice(&self.files[name]).unwrap()
    }

    /// The hyperparameters that it was run with.
    #[track_caller]
    fn parameters(&self) -> Value {
        self.json("training_args.json")["parameters"].clone()
    }

    /// What its owner is warned of.
    #[track_caller]
    fn warnings(&self) -> Vec<String> {
        let warnings = self.output()["model_metadata"]["warnings"].as_array().unwrap();
        warnings.iter().map(|warning| warning.as_str().unwrap().to_owned()).collect()
    }
}

/// The smallest job: two steps, since the first is taken with a learning rate of zero; nothing is measured.
fn tiny(changes: Value) -> Value {
    let mut hyperparameters =
        json!({ "max_steps": 2, "batch_size": 1, "eval_steps": 100, "save_steps": 100, "validation_split": 0 });
    hyperparameters.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    bench::input("tiny", hyperparameters)
}

/// Puts jobs before one worker, one after another.
fn ended(jobs: &[Value]) -> Vec<Ended> {
    ended_at(jobs, |_| {})
}

/// The only one of these.
fn one(job: Value) -> Ended {
    ended(&[job]).remove(0)
}

/// The same, with other settings of the operator's.
fn ended_at(jobs: &[Value], change: impl FnOnce(&mut Settings)) -> Vec<Ended> {
    Runtime::new().unwrap().block_on(end_at(jobs, change))
}

/// One job, where the test speaks to servers.
async fn one_at(job: Value, change: impl FnOnce(&mut Settings)) -> Ended {
    end_at(&[job], change).await.remove(0)
}

/// Lets the worker speak to a server of this machine.
fn allow(server: &FaultServer) -> impl FnOnce(&mut Settings) {
    let address = server.address();
    move |settings| {
        settings.sources.plain_http = true;
        settings.sources.network.allowed_addresses = vec![address];
    }
}

/// Every job has a folder of its own, also where they have the same name.
async fn end_at(jobs: &[Value], change: impl FnOnce(&mut Settings)) -> Vec<Ended> {
    let (platform, volume) = (bench::platform(), tempfile::tempdir().unwrap());
    let mut settings = bench::settings(volume.path(), "one");
    change(&mut settings);
    let (working, leave) = bench::worker(&platform, settings);
    let mut all = Vec::new();
    for (number, job) in jobs.iter().enumerate() {
        let mut job = job.clone();
        let name = format!("{}-{number}", job["job_id"].as_str().unwrap());
        job["job_id"] = json!(name);
        let id = platform.submit(job);
        let over = |view: &JobView| view.status.ended();
        let view = platform.until(PATIENCE, "end of a job", |platform| platform.job(&id).filter(over)).await.unwrap();
        all.push(Ended { view, files: files_of(&volume.path().join("jobs").join(&name)) });
    }
    leave.cancel();
    working.await.unwrap();
    assert_eq!(platform.problems(), [""; 0]);
    all
}

/// What lies in a folder and below, by name; nothing where there is none.
fn files_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    files
}
