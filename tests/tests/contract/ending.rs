//! What the platform hears in the end.

use std::{collections::BTreeMap, path::Path, sync::OnceLock};

use brightrun_tests::faults::{FaultServer, Reply};
use brightrun_tests::platform::Status;
use brightrun_trainer::{config::ModelConfig, lora, run::Parameters};
use brightrun_worker::storage::upload::Store;
use hyper::Request;
use s3s::Body;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::{
    Ended, allow, bench, ended, one, one_at,
    store::{self, get},
    tiny,
};

/// Dollars an hour, as the platform says it.
const PRICE: f64 = 3.35;

/// A job that went well, with its files in a store, and what came by their links.
struct Delivered {
    job: Ended,
    fetched: BTreeMap<String, (u16, Vec<u8>)>,
}

fn delivered() -> &'static Delivered {
    static ONCE: OnceLock<Delivered> = OnceLock::new();
    ONCE.get_or_init(|| {
        Runtime::new().unwrap().block_on(async {
            let (_folder, address) =
                store::start(|request: Request<_>, s3| store::answer(request.map(Body::from), s3)).await;
            let mut input =
                bench::input("delivered", json!({ "max_steps": 30, "eval_steps": 10, "learning_rate": 0.02 }));
            input["gpu_config"] = json!({ "gpu_type": "H100", "num_gpus": 1, "cost_per_gpu_hour": PRICE });
            let bucket = store::settings(address, "key-secret");
            let job = one_at(input, |settings| settings.store = Store::Bucket(Box::new(bucket))).await;
            let mut fetched = BTreeMap::new();
            for (name, link) in job.output()["model_files"].as_object().unwrap() {
                let (status, _, bytes) = get(link.as_str().unwrap()).await;
                fetched.insert(name.clone(), (status, bytes));
            }
            Delivered { job, fetched }
        })
    })
}

fn output() -> &'static Value {
    delivered().job.output()
}

#[test]
fn success_says_what_the_platform_reads() {
    let output = output();
    assert_eq!((&output["status"], &output["progress"]), (&json!("success"), &json!(100.0)));
    assert_eq!((&output["job_id"], &output["current_step"]), (&json!("delivered-0"), &json!(30)));
    assert!(output["current_epoch"].is_u64());
    let metadata = &output["model_metadata"];
    assert_eq!((&metadata["base_model"], &metadata["lora_rank"]), (&json!("brightrun/demo-moe"), &json!(4)));
    assert!(metadata["final_loss"].is_f64() && metadata["training_time"].as_f64().unwrap() > 0.0, "{metadata}");
    for name in ["training_loss", "validation_loss", "learning_rate", "throughput", "gradient_norm"] {
        assert!(output["metrics"][name].is_f64(), "{name}");
    }
    assert!(delivered().job.view.error.is_none());
}

#[test]
fn cost_is_the_time_at_the_requests_price() {
    let cost = &output()["cost"];
    let (seconds, dollars) = (cost["gpu_seconds"].as_f64().unwrap(), cost["usd"].as_f64().unwrap());
    assert!(seconds > 0.0 && (dollars - seconds / 3600.0 * PRICE).abs() < 1e-9 + dollars * 1e-6, "{cost}");
}

#[test]
fn model_files_names_are_plain() {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | '-');
    for name in delivered().fetched.keys() {
        assert!(!name.is_empty() && name.chars().all(plain) && !name.starts_with('/'), "{name:?}");
    }
}

#[test]
fn every_promised_file_answers_a_plain_get() {
    for name in [
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_args.json",
        "trainer_state.json",
        "metrics.jsonl",
        "loss_curve.svg",
        "loss_curve.png",
        "dataset_report.json",
        "README.md",
        "result.json",
    ] {
        let (status, bytes) = &delivered().fetched[name];
        assert!(*status == 200 && !bytes.is_empty(), "{name}: HTTP {status}");
        let written = |folder: &str| delivered().job.files.get(&format!("{folder}{name}"));
        assert_eq!(Some(bytes), written("adapter/").or_else(|| written("")), "{name}");
    }
}

#[test]
fn links_live_for_a_day_to_a_week() {
    for link in output()["model_files"].as_object().unwrap().values() {
        let url: url::Url = link.as_str().unwrap().parse().unwrap();
        let lives = url.query_pairs().find(|(name, _)| name == "X-Amz-Expires").unwrap().1.parse::<u64>().unwrap();
        assert!((24 * 3600..=7 * 24 * 3600).contains(&lives), "{lives} s");
    }
}

#[test]
fn result_json_is_beside_the_files_and_says_all_that_the_answer_says() {
    let result: Value = serde_json::from_slice(&delivered().fetched["result.json"].1).unwrap();
    for (name, said) in output().as_object().unwrap() {
        match name.as_str() {
            // Links are made afterwards.
            "model_files" => continue,
            "model_metadata" => {
                for (name, said) in said.as_object().unwrap().iter().filter(|(name, _)| *name != "warnings") {
                    assert_eq!(result["model_metadata"][name], *said, "{name}");
                }
            }
            _ => assert_eq!(result[name], *said, "{name}"),
        }
    }
}

/// The platform's formula, written down a second time.
fn stars(losses: &[f64], validation: Option<f64>) -> (u64, &'static str) {
    let (Some(first), Some(last)) = (losses.first(), losses.last()) else { return (3, "unknown") };
    let reduction = (first - last) / first * 100.0;
    let (stars, word) = match reduction {
        _ if reduction > 50.0 => (5, "excellent"),
        _ if reduction > 30.0 => (4, "good"),
        _ if reduction > 15.0 => (3, "fair"),
        _ if reduction > 5.0 => (2, "poor"),
        _ => (1, "poor"),
    };
    match validation {
        Some(validation) if validation - last > 0.5 => ((stars - 1).max(2), "overfit"),
        _ => (stars, word),
    }
}

fn quality_is_right(job: &Ended) -> u64 {
    let state = job.json("trainer_state.json");
    let history = state["log_history"].as_array().unwrap();
    let all = |name: &str| history.iter().filter_map(|entry| entry[name].as_f64()).collect::<Vec<f64>>();
    let (losses, validation) = (all("loss_smoothed"), all("eval_loss").last().copied());
    let quality = &job.output()["quality"];
    let (stars, word) = stars(&losses, validation);
    assert_eq!((&quality["overall_score"], &quality["convergence_quality"]), (&json!(stars), &json!(word)));
    let perplexity = quality["perplexity"].as_f64().unwrap();
    assert!((perplexity - validation.unwrap().exp()).abs() < perplexity * 1e-9, "{quality}");
    stars
}

#[test]
fn quality_follows_the_formula() {
    let slow = one(bench::input("slow", json!({ "learning_rate": 1e-5 })));
    assert_ne!(quality_is_right(&slow), quality_is_right(&delivered().job), "two jobs of different quality");
}

#[test]
fn the_default_adapter_is_bf16_and_says_so() {
    let metadata = &output()["model_metadata"];
    assert_eq!(metadata["adapter_dtype"], "bf16");
    let file = &delivered().fetched["adapter_model.safetensors"].1;
    let header: Value =
        serde_json::from_slice(&file[8..8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize]).unwrap();
    let tensors = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    assert!(tensors.into_iter().all(|(_, tensor)| tensor["dtype"] == "BF16"));
}

/// Of the model that the platform's users train.
#[test]
fn default_adapters_stay_under_50_mb() {
    let text = include_str!("../../../worker/tests/fixtures/qwen3_next_80b/config.json");
    let config = ModelConfig::parse(text, Path::new("config.json")).unwrap();
    let plan = lora::plan(&config, &Parameters::default().lora()).unwrap();
    let parameters: usize = plan.modules.iter().map(|module| module.rank * (module.inputs + module.outputs)).sum();
    // 12 layers of attention, 36 of DeltaNet, 48 shared experts: each linear's inputs and outputs, times the rank.
    assert_eq!(parameters, (12 * 21_504 + 36 * 20_480 + 48 * 7_680) * 16);
    assert!(2 * parameters < 50_000_000, "in bf16");
}

#[test]
fn adapters_above_50_mb_carry_a_warning() {
    let large = json!({ "lora_rank": 1024, "expert_rank": 512, "targets": "all", "adapter_dtype": "f32" });
    let jobs = ended(&[tiny(json!({})), tiny(large)]);
    let told = |job: &Ended| job.warnings().iter().any(|warning| warning.contains("50 MB"));
    let bytes = |job: &Ended| job.files["adapter/adapter_model.safetensors"].len();
    assert!(bytes(&jobs[0]) < 50_000_000 && !told(&jobs[0]));
    assert!(bytes(&jobs[1]) > 50_000_000 && told(&jobs[1]), "{:?}", jobs[1].warnings());
}

/// A job whose dataset's link is refused.
async fn refused() -> (Ended, FaultServer) {
    let server = FaultServer::start().await.unwrap();
    server.on("/data.jsonl", [Reply::status(403)]);
    let mut job = tiny(json!({}));
    job["dataset_url"] = json!(server.url("/data.jsonl?token=S3CR3T"));
    (one_at(job, allow(&server)).await, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn failure_is_a_top_level_error() {
    let (job, _server) = refused().await;
    assert_eq!(job.view.status, Status::Failed);
    let answer = &job.view.results[0];
    assert!(answer["error"].is_string(), "{answer}");
    assert_eq!((&answer["output"]["status"], &answer["output"]["error_message"]), (&json!("failed"), &answer["error"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_says_what_failed_without_secrets_and_noise() {
    let (job, _server) = refused().await;
    let (error, answer) = (job.error(), job.view.results[0].to_string());
    assert!(error.contains("403") && error.contains("/data.jsonl"), "{error}");
    for never in ["S3CR3T", "token=", "panicked", "backtrace", ".rs:", "Error {"] {
        assert!(!answer.contains(never), "{never} is in {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_adapter_to_fetch_it_is_a_failure() {
    let server = FaultServer::start().await.unwrap();
    server.on("/result.json", [Reply::status(200)]);
    let mut job = tiny(json!({}));
    job["upload_urls"] = json!({ "result.json": server.url("/result.json") });
    let job = one_at(job, allow(&server)).await;
    assert!(job.error().contains("could not be delivered"), "{}", job.error());
    assert_ne!(job.view.output.as_ref().unwrap()["status"], "success");
}
