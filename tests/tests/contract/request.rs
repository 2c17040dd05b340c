//! What a request may say.

use std::sync::OnceLock;

use brightrun_tests::faults::{FaultServer, Reply};
use serde_json::{Value, json};

use crate::{Ended, allow, ended, one, one_at, tiny};

/// The same job in the three ways to spell it.
fn spelt() -> &'static [Ended] {
    static JOBS: OnceLock<Vec<Ended>> = OnceLock::new();
    JOBS.get_or_init(|| {
        let with = |hyperparameters: Value, gpu: Value| {
            let mut job = tiny(json!({ "lora_rank": null }));
            job["hyperparameters"].as_object_mut().unwrap().extend(hyperparameters.as_object().unwrap().clone());
            job["gpu_config"] = gpu;
            job
        };
        ended(&[
            with(
                json!({ "num_epochs": 2, "lora_rank": 6, "lora_alpha": 10, "lora_dropout": 0.2 }),
                json!({ "gpu_type": "H100", "num_gpus": 1 }),
            ),
            with(json!({ "epochs": 2, "rank": 6, "alpha": 10, "dropout": 0.2 }), json!({ "type": "H100", "count": 1 })),
            with(json!({ "epochs": 2, "r": 6, "alpha": 10, "dropout": 0.2 }), json!({ "type": "H100", "count": 1 })),
        ])
    })
}

fn spelt_alike(name: &str, value: Value) {
    for job in spelt() {
        assert_eq!(job.parameters()[name], value);
        assert_eq!(job.warnings().iter().filter(|warning| warning.contains("known field")).count(), 0);
    }
}

#[test]
fn epochs_and_num_epochs_mean_the_same() {
    spelt_alike("num_epochs", json!(2));
}

#[test]
fn lora_rank_and_rank_and_r_mean_the_same() {
    spelt_alike("lora_rank", json!(6));
}

#[test]
fn lora_alpha_and_alpha_mean_the_same() {
    spelt_alike("lora_alpha", json!(10.0));
}

#[test]
fn lora_dropout_and_dropout_mean_the_same() {
    spelt_alike("lora_dropout", json!(0.2));
}

#[test]
fn a_job_in_other_words_gives_the_same_adapter() {
    let adapter = |job: &'static Ended| &job.files["adapter/adapter_model.safetensors"];
    assert!(spelt().iter().all(|job| adapter(job) == adapter(&spelt()[0])));
}

/// One names a problem of many cards only where it was understood.
#[test]
fn gpu_type_and_type_and_num_gpus_and_count_mean_the_same() {
    let with = |gpu: Value| {
        let mut job = tiny(json!({}));
        job["gpu_config"] = gpu;
        job
    };
    let jobs = ended(&[
        with(json!({ "gpu_type": "H100", "num_gpus": 8 })),
        with(json!({ "type": "H100", "count": 8 })),
        with(json!({ "gpu_type": "H100", "type": "A100" })),
    ]);
    assert_eq!(jobs[0].error(), jobs[1].error());
    assert!(jobs[2].error().contains("gpu_config.type") && jobs[2].error().contains("gpu_config.gpu_type"));
}

#[test]
fn given_twice_with_different_values_is_an_error_naming_both() {
    let pairs = [
        ("num_epochs", json!(2), "epochs", json!(3)),
        ("lora_rank", json!(8), "rank", json!(16)),
        ("lora_rank", json!(8), "r", json!(16)),
        ("lora_alpha", json!(8), "alpha", json!(16)),
        ("lora_dropout", json!(0.1), "dropout", json!(0.2)),
    ];
    let jobs: Vec<Value> = pairs.iter().map(|(a, x, b, y)| tiny(json!({ *a: x, *b: y }))).collect();
    for (job, (a, x, b, y)) in ended(&jobs).iter().zip(&pairs) {
        let error = job.error();
        let named = [format!("hyperparameters.{a}"), format!("hyperparameters.{b}"), x.to_string(), y.to_string()];
        assert!(named.iter().all(|text| error.contains(text)), "{error}");
    }
}

#[test]
fn given_twice_with_the_same_value_is_no_error() {
    let job = one(tiny(json!({ "lora_rank": 8, "rank": 8, "r": 8.0, "num_epochs": 2, "epochs": 2 })));
    assert_eq!(job.parameters()["lora_rank"], 8);
}

#[test]
fn callback_url_may_be_absent() {
    assert!(tiny(json!({}))["callback_url"].is_null());
    assert_eq!(one(tiny(json!({}))).output()["status"], "success");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_that_answers_404_for_ever_is_never_fatal_and_bounded() {
    const MOST: usize = 100;
    let server = FaultServer::start().await.unwrap();
    server.on("/callback", [Reply::status(404)]);
    let mut job = tiny(json!({}));
    job["callback_url"] = json!(server.url("/callback"));
    assert_eq!(one_at(job, allow(&server)).await.output()["status"], "success");
    assert!(server.count("/callback") <= MOST);
}

#[test]
fn more_gpus_than_there_are_is_an_error() {
    let mut job = tiny(json!({}));
    job["gpu_config"] = json!({ "gpu_type": "H100", "num_gpus": 64 });
    let job = one(job);
    assert!(job.error().contains("num_gpus: is 64, and this machine has"), "{}", job.error());
}

#[test]
fn gpu_config_may_be_absent() {
    let job = tiny(json!({}));
    assert!(job["gpu_config"].is_null());
    assert_eq!(one(job).output()["status"], "success");
}

#[test]
fn gpu_config_may_lack_cost_and_memory() {
    let mut job = tiny(json!({}));
    job["gpu_config"] = json!({ "gpu_type": "H100", "num_gpus": 1 });
    assert_eq!(one(job).output()["status"], "success");
}

/// $4.18 an hour of an H100.
#[test]
fn without_a_price_in_the_request_the_price_table_counts() {
    let mut job = tiny(json!({}));
    job["gpu_config"] = json!({ "gpu_type": "H100", "num_gpus": 1 });
    let job = one(job);
    let cost = &job.output()["cost"];
    let (seconds, dollars) = (cost["gpu_seconds"].as_f64(), cost["usd"].as_f64());
    let (Some(seconds), Some(dollars)) = (seconds, dollars) else { panic!("cost is {cost}") };
    assert!((dollars - seconds * 0.00116).abs() < dollars * 1e-6, "{cost}");
}

#[test]
fn old_ranges_are_accepted() {
    let least = json!({ "learning_rate": 1e-5, "batch_size": 1, "num_epochs": 1, "lora_rank": 4 });
    let most = json!({ "learning_rate": 1e-3, "batch_size": 64, "num_epochs": 20, "lora_rank": 128 });
    for (job, given) in ended(&[tiny(least.clone()), tiny(most.clone())]).iter().zip([least, most]) {
        for (name, value) in given.as_object().unwrap() {
            assert_eq!(job.parameters()[name], *value, "{name}");
        }
    }
}

/// Eight are understood, and refused only because this machine does not have them.
#[test]
fn one_to_eight_gpus_may_be_asked_for() {
    let with = |count: u64| {
        let mut job = tiny(json!({}));
        job["gpu_config"] = json!({ "num_gpus": count });
        job
    };
    let jobs = ended(&[with(1), with(8)]);
    assert_eq!(jobs[0].output()["status"], "success");
    let error = jobs[1].view.error.as_deref().unwrap_or("this machine has");
    assert!(error.contains("this machine has"), "{error}");
}

/// What a job says least.
fn unsaid() -> &'static Ended {
    static JOB: OnceLock<Ended> = OnceLock::new();
    JOB.get_or_init(|| {
        one(json!({
            "job_id": "unsaid", "dataset_url": "demo:conversations",
            "hyperparameters": { "base_model": "brightrun/demo-moe", "max_steps": 2 },
        }))
    })
}

#[test]
fn what_is_not_said_has_the_old_defaults() {
    let parameters = unsaid().parameters();
    let expected = json!({
        "lora_alpha": 32.0, "lora_dropout": 0.05, "schedule": "cosine", "warmup": { "ratio": 0.1 }, "optimizer": "adamw",
        "max_seq_length": 2048, "base_precision": "nf4",
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(parameters[name], *value, "{name}");
    }
}

/// The share of the text that is learnt.
fn learnt(job: &Ended) -> f64 {
    job.json("dataset_report.json")["training"]["learnt_share"].as_f64().unwrap()
}

#[test]
fn only_the_assistant_is_learnt_unless_train_on_prompt_says_otherwise() {
    assert!(learnt(unsaid()) < 0.9);
    let old = one(tiny(json!({ "train_on_prompt": true })));
    assert!(learnt(&old) > 0.99 && old.json("training_args.json")["assistant_only_loss"] == false);
}

fn targets(job: &Ended) -> Vec<String> {
    serde_json::from_value(job.json("adapter/adapter_config.json")["target_modules"].clone()).unwrap()
}

#[test]
fn the_default_targets_leave_routed_experts_alone() {
    let expected = [
        "in_proj_qkvz",
        "k_proj",
        "o_proj",
        "out_proj",
        "q_proj",
        "shared_expert.down_proj",
        "shared_expert.gate_proj",
        "shared_expert.up_proj",
        "v_proj",
    ];
    assert_eq!(targets(unsaid()), expected);
}

#[test]
fn other_targets_are_the_users_choice() {
    let sets = [json!("classic"), json!("all"), json!("servable"), json!(["q_proj", "v_proj"])];
    let jobs: Vec<Value> = sets.iter().map(|set| tiny(json!({ "targets": set }))).collect();
    let ended = ended(&jobs);
    let of = |number: usize| targets(&ended[number]);
    let has = |number: usize, name: &str| of(number).iter().any(|target| target.ends_with(name));
    for classic in ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"] {
        assert!(has(0, classic) && has(1, classic), "{classic}");
    }
    assert!(!has(0, "in_proj_qkvz") && has(1, "in_proj_qkvz") && has(1, "out_proj"));
    assert!(!of(2).iter().any(|name| name.starts_with("in_proj")) && has(2, "out_proj"));
    assert_eq!(of(3), ["q_proj", "v_proj"]);
}

#[test]
fn presets_set_six_values() {
    let names = ["learning_rate", "batch_size", "num_epochs", "lora_rank", "lora_alpha", "lora_dropout"];
    let presets = [
        ("fast", [1e-4, 8.0, 1.0, 8.0, 16.0, 0.05]),
        ("balanced", [5e-5, 4.0, 3.0, 16.0, 32.0, 0.1]),
        ("quality", [3e-5, 2.0, 5.0, 32.0, 64.0, 0.1]),
        ("conservative", [1e-4, 4.0, 3.0, 8.0, 16.0, 0.05]),
        ("aggressive", [3e-4, 16.0, 10.0, 32.0, 64.0, 0.1]),
    ];
    let jobs: Vec<Value> = presets
        .iter()
        .map(|(preset, _)| tiny(json!({ "preset": preset, "batch_size": null, "lora_rank": null })))
        .collect();
    for (job, (preset, values)) in ended(&jobs).iter().zip(presets) {
        for (name, value) in names.iter().zip(values) {
            assert_eq!(job.parameters()[*name].as_f64(), Some(value), "{preset}: {name}");
        }
    }
}

#[test]
fn explicit_values_win_over_the_preset() {
    let job = one(tiny(json!({ "preset": "aggressive", "r": 12, "lora_rank": null, "learning_rate": 0.002 })));
    let parameters = job.parameters();
    assert_eq!((&parameters["lora_rank"], &parameters["learning_rate"]), (&json!(12), &json!(0.002)));
    assert_eq!((&parameters["lora_alpha"], &parameters["num_epochs"]), (&json!(64.0), &json!(10)));
}

/// However it is split: the 48 conversations are three steps of 16.
#[test]
fn batch_size_is_the_number_of_sequences_of_a_step() {
    let with = |tokens: u64| {
        tiny(json!({ "batch_size": 16, "num_epochs": 1, "max_steps": null, "micro_batch_tokens": tokens }))
    };
    for job in ended(&[with(256), with(4096)]) {
        assert_eq!((&job.output()["current_step"], &job.output()["current_epoch"]), (&json!(3), &json!(1)));
    }
}
