//! `brightrun worker` killed at every stage of a job: the platform gives the job to the next worker, and the adapter is the
//! one of a worker that nobody killed.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use brightrun_tests::{
    child::Running,
    faults::{FaultServer, Reply},
    platform::{Extent, Fault, Options, Platform, Route, Status, Urls, answer_problems, order_problems},
};
use brightrun_trainer::demo;
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{
    place::quick,
    shim::{self, Action, Call},
};

/// Long enough for every machine; nothing is measured with it.
const PATIENCE: Duration = Duration::from_secs(900);
/// So many of the calls that change a file are killed before, spread over the whole job.
const KILLS: usize = 30;
/// Jobs at the same time.
const THREADS: usize = 2;

/// A platform, a volume and a server with a dataset.
struct Scene {
    runtime: Runtime,
    platform: Platform,
    volume: TempDir,
    server: FaultServer,
}

// === impl Scene ===

impl Scene {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let options = Options {
            ping_milliseconds: 100,
            redispatch_after: Some(Duration::from_millis(700)),
            ..Options::default()
        };
        let platform = Platform::start_with(options).unwrap();
        let server = runtime.block_on(FaultServer::start()).unwrap();
        Self { runtime, platform, volume: tempfile::tempdir().unwrap(), server }
    }

    fn start(&self) -> Running {
        Running::start(&mut self.worker()).unwrap()
    }

    fn worker(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brightrun"));
        command.args(["worker", "--allow-http", "--allow-private-addresses", "--volume"]).arg(self.volume.path());
        command.envs(self.platform.environment(Urls::Full)).env("BRIGHTRUN_HOLD_SECONDS", "0");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Submits a job whose dataset comes from the server, and whose adapter goes there.
    fn submit(&self, dataset: Reply, upload: Reply) -> String {
        self.server.on("/data.jsonl", [dataset]);
        self.server.on("/adapter", [upload]);
        self.platform.submit(json!({
            "job_id": "j", "dataset_url": self.server.url("/data.jsonl"), "hyperparameters": quick(),
            "upload_urls": { "adapter_model.safetensors": self.server.url("/adapter") },
        }))
    }

    fn ends(&self, job: &str) {
        self.runtime.block_on(self.platform.until_status(job, Status::Completed, PATIENCE)).unwrap();
        assert_eq!(self.platform.job(job).unwrap().results.len(), 1);
        // The platform knows of the result a moment before its answer to the worker is out.
        let right = |platform: &Platform| answer_problems(&platform.seen()).is_empty().then_some(());
        self.runtime.block_on(self.platform.until(PATIENCE, "answer to every delivery", right)).unwrap();
        assert_eq!(order_problems(&self.platform.seen(), Duration::ZERO), [""; 0]);
    }

    /// What the server got, which is what lies on the volume.
    fn adapter(&self) -> Vec<u8> {
        let sent = self.server.seen().into_iter().rfind(|seen| seen.path == "/adapter").unwrap().body;
        let path = self.volume.path().join("brightrun/jobs/j/adapter/adapter_model.safetensors");
        assert_eq!(fs::read(path).unwrap(), sent);
        sent
    }

    /// Waits until the server was asked for a path.
    fn until_asked(&self, path: &str) {
        while !self.server.seen().iter().any(|seen| seen.path == path) {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn dataset() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    demo::write_dataset(&path).unwrap();
    fs::read(path).unwrap()
}

/// The calls of a whole job that change what is on the volume, and the adapter.
fn unbroken() -> (Vec<Call>, Vec<u8>) {
    let (scene, outside) = (Scene::new(), tempfile::tempdir().unwrap());
    let log = outside.path().join("log");
    let mut command = scene.worker();
    shim::under(&mut command, scene.volume.path());
    let worker = Running::start(command.env("SHIM_LOG", &log)).unwrap();
    let job = scene.submit(Reply::file(dataset()), Reply::status(200));
    scene.ends(&job);
    worker.kill_now().unwrap();
    // Beats of the lease come when they come, and what is looked at before any job is none of it.
    let mut calls = Call::all(&fs::read_to_string(log).unwrap());
    calls.retain(|call| !call.line.contains("lease-") && !call.line.contains("probe"));
    (calls, scene.adapter())
}

fn killed_before(call: &Call, whole: &[u8]) {
    let scene = Scene::new();
    let mut command = scene.worker();
    shim::at(&mut command, scene.volume.path(), call, Action::Kill);
    let mut worker = Running::start(&mut command).unwrap();
    let job = scene.submit(Reply::file(dataset()), Reply::status(200));
    assert_eq!(worker.wait().unwrap().code(), None, "not killed before {call}");
    let worker = scene.start();
    scene.ends(&job);
    assert!(scene.adapter() == whole, "killed before {call}: another adapter");
    worker.kill_now().unwrap();
}

#[test]
fn a_job_whose_worker_is_killed_at_any_stage_is_finished_by_the_next_one() {
    let (calls, whole) = unbroken();
    let of = |part: &str| calls.iter().any(|call| call.line.contains(part));
    for stage in ["request.sha256", "dataset-data.jsonl", "cache", "checkpoints/", "adapter/", "result.json"] {
        assert!(of(stage), "no call for {stage} in {calls:#?}");
    }
    let chosen: Vec<&Call> = calls.iter().step_by(calls.len().div_ceil(KILLS)).chain(calls.last()).collect();
    let next = AtomicUsize::new(0);
    let one_after_another = || {
        while let Some(call) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            killed_before(call, &whole);
        }
    };
    thread::scope(|scope| (0..THREADS).for_each(|_| drop(scope.spawn(one_after_another))));
}

#[test]
fn killed_while_it_fetches_or_delivers_a_job_loses_nothing_either() {
    let (_, whole) = unbroken();
    let slow = Duration::from_secs(600);
    let stages = [
        ("/data.jsonl", Reply::file(dataset()).dripping(2000, slow), Reply::status(200)),
        ("/adapter", Reply::file(dataset()), Reply::status(200).delayed(slow)),
    ];
    for (path, data, upload) in stages {
        let scene = Scene::new();
        let worker = scene.start();
        let job = scene.submit(data, upload);
        scene.until_asked(path);
        worker.kill_now().unwrap();
        scene.server.on("/data.jsonl", [Reply::file(dataset())]);
        scene.server.on("/adapter", [Reply::status(200)]);
        let worker = scene.start();
        scene.ends(&job);
        assert!(scene.adapter() == whole, "killed at {path}: another adapter");
        worker.kill_now().unwrap();
    }
}

#[test]
fn a_result_is_kept_and_said_until_the_platform_takes_it() {
    let scene = Scene::new();
    scene.platform.fault(Route::Done, Fault::status(503), Extent::UntilMended);
    let worker = scene.start();
    let job = scene.submit(Reply::file(dataset()), Reply::status(200));
    let wait = scene.platform.until_count(Route::Done, 2, PATIENCE);
    scene.runtime.block_on(wait).unwrap();
    // Whoever comes after it finds what is done, and trains nothing.
    worker.kill_now().unwrap();
    let log = |volume: &Path| fs::read_to_string(volume.join("brightrun/jobs/j/metrics.jsonl")).unwrap();
    let before = log(scene.volume.path());
    let worker = scene.start();
    scene.runtime.block_on(scene.platform.until_count(Route::Done, 3, PATIENCE)).unwrap();
    scene.platform.mend(Route::Done);
    scene.ends(&job);
    assert_eq!(log(scene.volume.path()), before);
    worker.kill_now().unwrap();
}
