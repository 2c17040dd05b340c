//! A worker that trains, at work for a simulator of the platform.

use std::{collections::HashMap, sync::Arc, time::Duration};

use brightrun_tests::platform::{Options, Platform, Urls};
use brightrun_worker::{
    life::{Settings, Training},
    net::Network,
    runpod::{Client, ClientLimits, Endpoints, Pace, Serving},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[path = "settings.rs"]
mod settings;

pub(crate) use settings::settings;

/// Long enough for every machine; nothing is measured with it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(900);

/// A worker, until it is told to go.
pub(crate) fn worker(platform: &Platform, settings: Settings) -> (JoinHandle<()>, CancellationToken) {
    let variables: HashMap<String, String> =
        platform.environment_of(&settings.worker, Urls::Full).into_iter().collect();
    let endpoints = Endpoints::from_variables(|name| variables.get(name).cloned()).unwrap().unwrap();
    let client = Arc::new(Client::new(endpoints, Network::default(), ClientLimits::default()).unwrap());
    let pace = Pace { progress: Duration::from_millis(20), ..Pace::default() };
    let serving = Serving::new(client, Training::new(settings), pace);
    let leave = CancellationToken::new();
    let until = leave.clone();
    (tokio::spawn(async move { serving.run(&until).await.unwrap() }), leave)
}

pub(crate) fn platform() -> Platform {
    let options =
        Options { ping_milliseconds: 100, redispatch_after: Some(Duration::from_secs(2)), ..Options::default() };
    Platform::start_with(options).unwrap()
}

/// A job of the embedded model and conversations, with these hyperparameters above those of a small one.
pub(crate) fn input(name: &str, changes: Value) -> Value {
    let mut hyperparameters = json!({
        "base_model": "brightrun/demo-moe", "max_steps": 4, "eval_steps": 2, "batch_size": 2, "max_seq_length": 256,
        "lora_rank": 4, "save_steps": 1,
    });
    hyperparameters.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    json!({ "job_id": name, "dataset_url": "demo:conversations", "hyperparameters": hyperparameters })
}
