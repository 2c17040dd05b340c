//! Those who are told of a job besides the queue: a callback that goes wrong, and a Supabase project.

#[path = "../shared/training.rs"]
mod bench;
mod callback;
mod dead;
mod project;
mod secrets;
mod supabase;
mod training;

use std::time::{Duration, Instant};

use brightrun_tests::{
    faults::{FaultServer, Seen},
    waiting::soon,
};
use brightrun_worker::{
    net::Network,
    storage::SourcePolicy,
    telling::{Telling, TellingLimits},
    work::{Answer, Ended, Job},
};
use serde_json::{Value, json};

/// Path of the callback.
const PATH: &str = "/functions/v1/training-callback";
/// Long enough for every machine; nothing is measured with it.
const PATIENCE: Duration = Duration::from_secs(60);
/// So long a call may take that does not wait, on a machine with whatever other work. Receivers that hang do so for longer.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Short where the tests wait, generous everywhere else.
fn limits() -> TellingLimits {
    TellingLimits {
        progress: Duration::from_millis(20),
        change: Duration::from_millis(1),
        last_of_callback: Duration::from_secs(10),
        last_of_row: Duration::from_secs(10),
        first_pause: Duration::from_millis(5),
        longest_pause: Duration::from_millis(20),
        archive: Duration::from_secs(30),
        ..TellingLimits::default()
    }
}

/// Allows plain links to this server, and to no other of this machine.
fn policy(server: &FaultServer) -> SourcePolicy {
    SourcePolicy {
        plain_http: true,
        network: Network { allowed_addresses: vec![server.address()], ..Network::default() },
        ..SourcePolicy::service()
    }
}

fn telling(policy: &SourcePolicy, limits: TellingLimits, variables: &[(&str, &str)]) -> Telling {
    let value = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    Telling::with_limits(value, policy, limits).unwrap()
}

fn job(callback: &str) -> Job {
    Job::read(json!({ "id": "id-u1", "input": { "job_id": "job", "callback_url": callback } })).unwrap()
}

fn at(stage: &str, step: u64) -> Value {
    json!({
        "status": "running", "stage": stage, "progress": 45.5, "current_epoch": 2, "current_step": step,
        "metrics": { "training_loss": 1.5, "training_loss_raw": 1.25, "throughput": 125.5 }, "error_message": null,
    })
}

fn success() -> Ended {
    let output = json!({
        "status": "success", "job_id": "job", "progress": 100.0, "current_epoch": 3, "current_step": 1500,
        "model_files": { "adapter_model.safetensors": "https://store/x?X-Amz-Signature=0" },
        "model_metadata": { "final_loss": 0.45 }, "metrics": { "training_loss": 0.5 },
    });
    Ended::Answered(Answer { output: Some(output), ..Answer::default() })
}

fn failure(error: &str) -> Ended {
    Ended::Answered(Answer { error: Some(error.to_owned()), ..Answer::default() })
}

fn message(seen: &Seen) -> Value {
    serde_json::from_slice(&seen.body).unwrap()
}

fn messages(server: &FaultServer) -> Vec<Value> {
    server.seen().iter().map(message).collect()
}

/// What a call gives that must not wait.
#[track_caller]
fn at_once<T>(call: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let value = call();
    assert!(begin.elapsed() < AT_ONCE, "it took {:?}", begin.elapsed());
    value
}
