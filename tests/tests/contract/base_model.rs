//! Which base model is trained.

use std::{fs, path::Path};

use brightrun_tests::faults::{FaultServer, Reply};
use brightrun_worker::life::{Models, Settings};
use serde_json::{Value, json};

use crate::{allow, ended_at, one_at, tiny};

/// A folder with a model that an operator put there under a name.
fn demo_model(folder: &Path) -> Models {
    let model = folder.join("model");
    brightrun_trainer::demo::write_model(&model).unwrap();
    let path = model.display().to_string();
    let variable = |name: &str| match name {
        "MODEL_PATH" => Some(path.clone()),
        "MODEL_NAME" => Some("Qwen/Qwen3-Next-80B-A3B-Instruct".to_owned()),
        _ => None,
    };
    Models::from_variables(variable).unwrap()
}

/// What the platform fills in where nobody has said a model.
fn of_the_platform() -> Value {
    tiny(json!({ "base_model": "mistralai/Mistral-7B-v0.1" }))
}

#[test]
fn the_operators_model_outranks_the_requests_and_the_result_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let models = demo_model(folder.path());
    let job = &ended_at(&[of_the_platform()], |settings| settings.models = models)[0];
    let metadata = &job.output()["model_metadata"];
    assert_eq!(metadata["base_model"], "Qwen/Qwen3-Next-80B-A3B-Instruct");
    assert_eq!(metadata["base_model_asked"], "mistralai/Mistral-7B-v0.1");
    assert!(job.warnings().iter().any(|warning| warning.contains("mistralai/Mistral-7B-v0.1")), "{metadata}");
}

#[test]
fn the_result_says_which_base_was_really_used() {
    let folder = tempfile::tempdir().unwrap();
    let models = demo_model(folder.path());
    let job = &ended_at(&[of_the_platform()], |settings| settings.models = models)[0];
    let metadata = &job.output()["model_metadata"];
    assert_eq!(metadata["base_model_path"], json!(folder.path().join("model")));
    assert_eq!(metadata["base_model_sha256"].as_str().unwrap().len(), 64);
    assert!(metadata.as_object().unwrap().contains_key("base_model_revision"), "{metadata}");
}

#[test]
fn models_are_found_by_the_operators_map_of_names() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    brightrun_trainer::demo::write_model(&model).unwrap();
    let map = json!({ "mistralai/Mistral-7B-v0.1": model }).to_string();
    let models = Models::from_variables(|name| (name == "MODEL_PATHS").then(|| map.clone())).unwrap();
    let job = &ended_at(&[of_the_platform()], |settings| settings.models = models)[0];
    assert_eq!(job.output()["model_metadata"]["base_model"], "mistralai/Mistral-7B-v0.1");
    assert_eq!(job.warnings().iter().filter(|warning| warning.contains("asked for")).count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsupported_architecture_is_refused_before_any_download() {
    let (folder, server) = (tempfile::tempdir().unwrap(), FaultServer::start().await.unwrap());
    server.on("/data.jsonl", [Reply::status(404)]);
    let config = json!({ "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096 });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let path = folder.path().display().to_string();
    let mut job = of_the_platform();
    job["dataset_url"] = json!(server.url("/data.jsonl"));
    let models = Models::from_variables(|name| (name == "MODEL_PATH").then(|| path.clone())).unwrap();
    let change = |settings: &mut Settings| {
        allow(&server)(settings);
        settings.models = models;
    };
    let error = one_at(job, change).await.error().to_lowercase();
    assert!(error.contains("mistral") && error.contains("qwen"), "{error}");
    assert_eq!(server.seen().len(), 0, "something was fetched for a job that cannot be run");
}
