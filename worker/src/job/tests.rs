use brightrun_trainer::{lora::TargetSet, optim::OptimizerKind, schedule::WarmUp};
use serde_json::json;

use super::*;

fn with(hyperparameters: Value) -> Value {
    let mut all = json!({ "base_model": "brightrun/demo-moe" });
    let fields = hyperparameters.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(fields);
    json!({ "input": { "job_id": "j", "dataset_url": "demo:conversations", "hyperparameters": all } })
}

fn job(request: &Value) -> JobSpec {
    parse(&request.to_string(), &Overrides::default(), "fallback").unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn problems(request: &Value) -> Vec<String> {
    parse(&request.to_string(), &Overrides::default(), "fallback")
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn the_platforms_request_is_understood() {
    let request = json!({ "id": "abc-u1", "input": {
        "job_id": "3fa85f64-5717-4562-b3fc-2c963f66afa6",
        "dataset_url": "file:///data/my%20file.jsonl",
        "hyperparameters": { "base_model": "/models/qwen", "learning_rate": 0.0002, "batch_size": 8, "num_epochs": 5,
            "lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.1, "warmup_steps": 10, "weight_decay": 0.0 },
        "gpu_config": { "gpu_type": "H100" },
        "callback_url": null,
    }});
    let job = job(&request);
    assert_eq!(job.job_id, "3fa85f64-5717-4562-b3fc-2c963f66afa6");
    assert_eq!(job.base_model, BaseModel::Folder("/models/qwen".into()));
    assert_eq!(job.dataset, Dataset::File("/data/my file.jsonl".into()));
    let expected = Parameters {
        batch_size: 8,
        num_epochs: 5,
        lora_dropout: 0.1,
        warmup: WarmUp::Steps(10),
        ..Parameters::default()
    };
    assert_eq!(job.parameters, expected);
    assert_eq!((job.gpu.kind.as_deref(), job.warnings.len()), (Some("H100"), 0));
}

#[test]
fn a_validation_file_is_a_dataset_of_its_own() {
    assert_eq!(job(&with(json!({}))).validation, None);
    for name in ["validation_url", "validation_dataset_url"] {
        let mut request = with(json!({}));
        request["input"][name] = json!("held-out.jsonl");
        let job = job(&request);
        assert_eq!((job.validation, job.warnings), (Some(Dataset::File("held-out.jsonl".into())), vec![]));
        request["input"][name] = json!(7);
        assert!(problems(&request)[0].starts_with(&format!("{name}: must be a text")));
    }
}

#[test]
fn what_is_not_said_has_the_default() {
    let request = json!({ "input": { "dataset_url": "d.jsonl", "base_model": "brightrun/demo-moe" } });
    let job = job(&request);
    assert_eq!((job.job_id.as_str(), &job.parameters), ("fallback", &Parameters::default()));
    assert_eq!((job.base_model, job.dataset), (BaseModel::Demo, Dataset::File("d.jsonl".into())));
}

#[test]
fn every_parameter_reaches_the_run() {
    let given: Value = serde_json::from_str(
        r#"{
        "learning_rate": 0.001, "schedule": "linear", "warmup_ratio": 0.2, "batch_size": 3, "num_epochs": 2, "max_steps": 7,
        "optimizer": "adamw8bit", "weight_decay": 0.01, "max_grad_norm": 0.5, "lora_rank": 4, "lora_alpha": 8.5,
        "lora_dropout": 0.0, "use_rslora": true, "targets": ["q_proj", "mlp.gate"], "expert_rank": 2,
        "unhit_experts": "zero", "router_aux_loss": true, "base_precision": "full", "adapter_dialect": "fused",
        "adapter_dtype": "f32", "max_seq_length": 512, "packing": false, "train_on_prompt": true, "train_on_all_turns": true,
        "validation_split": 0.25, "seed": 9, "gradient_accumulation_steps": 2, "micro_batch_tokens": 1024, "recompute": true,
        "adam_beta1": 0.8, "adam_beta2": 0.99, "adam_epsilon": 1e-6, "loraplus_lr_ratio": 16.0, "neftune_noise_alpha": 5.0,
        "init_adapter": "adapters/one", "eval_steps": 5, "eval_epochs": 2, "early_stopping_patience": 3, "early_stopping_threshold": 0.01,
        "load_best_at_end": true, "max_loss_growth": 2.0, "save_steps": 50, "save_minutes": 2.5, "keep_checkpoints": 5
    }"#).unwrap();
    let parameters = job(&with(given.clone())).parameters;
    let mut back = serde_json::to_value(&parameters).unwrap();
    let warmup = back.as_object_mut().unwrap().remove("warmup").unwrap();
    assert_eq!(warmup, json!({ "ratio": 0.2 }));
    let mut given = given;
    given.as_object_mut().unwrap().remove("warmup_ratio");
    assert_eq!(back, given);
    let default = serde_json::to_value(Parameters::default()).unwrap();
    for (name, value) in back.as_object().unwrap() {
        assert_ne!(*value, default[name], "{name} was tested with its default, which proves nothing");
    }
    assert_eq!(parameters.optimizer, OptimizerKind::AdamW8bit);
}

#[test]
fn aliases_work_agree_or_are_named() {
    let parameters = job(&with(json!({ "epochs": 7, "r": 8, "rank": 8.0, "alpha": 4, "dropout": 0 }))).parameters;
    assert_eq!((parameters.num_epochs, parameters.lora_rank), (7, 8));
    assert_eq!((parameters.lora_alpha, parameters.lora_dropout), (4.0, 0.0));
    assert_eq!(
        problems(&with(json!({ "lora_rank": 8, "r": 16 }))),
        [
            "hyperparameters.lora_rank: is also given as hyperparameters.r with another value (8 and 16); keep one of them"
        ]
    );
    assert_eq!(problems(&with(json!({ "warmup_steps": 5, "warmup_ratio": 0.1 }))).len(), 1);
    let mut request = with(json!({}));
    request["input"]["base_model"] = json!("other");
    assert!(problems(&request)[0].starts_with("hyperparameters.base_model: is also given as base_model"));
}

#[test]
fn explicit_values_win_over_a_preset() {
    let parameters = job(&with(json!({ "preset": "aggressive", "r": 64, "targets": "all" }))).parameters;
    assert_eq!((parameters.learning_rate, parameters.batch_size, parameters.num_epochs), (3e-4, 16, 10));
    assert_eq!((parameters.lora_rank, parameters.lora_alpha, parameters.lora_dropout), (64, 64.0, 0.1));
    assert_eq!(parameters.targets, TargetSet::All);
    assert!(problems(&with(json!({ "preset": "slow" })))[0].contains("must be one of fast, balanced"));
}

#[test]
fn all_problems_are_reported_at_once_with_their_paths() {
    let request = json!({ "input": {
        "job_id": "../../etc", "dataset_url": "ftp://host/data?token=secret",
        "hyperparameters": { "learning_rate": "fast", "batch_size": 0, "epochs": 1.5, "lora_rank": -3, "lora_alpha": 1e300,
            "targets": [], "schedule": "step", "train_on_prompt": "yes", "seed": 1e300 },
    }});
    let problems = problems(&request);
    let paths: Vec<&str> = problems.iter().map(|problem| problem.split(": ").next().unwrap()).collect();
    let expected = [
        "hyperparameters.learning_rate",
        "hyperparameters.schedule",
        "hyperparameters.batch_size",
        "hyperparameters.epochs",
        "hyperparameters.lora_rank",
        "hyperparameters.lora_alpha",
        "hyperparameters.targets",
        "hyperparameters.train_on_prompt",
        "hyperparameters.seed",
        "job_id",
        "hyperparameters.base_model",
        "dataset_url",
    ];
    assert_eq!(paths, expected, "{problems:#?}");
    assert!(problems.iter().all(|problem| !problem.contains("secret")));
    assert_eq!(problems[2], "hyperparameters.batch_size: must be a whole number from 1 to 4096, not 0");
}

#[test]
fn what_needs_validation_is_refused_without() {
    let given = json!({ "validation_split": 0, "early_stopping_patience": 2, "load_best_at_end": true });
    assert_eq!(problems(&with(given.clone())).len(), 2);
    let mut request = with(given);
    request["input"]["validation_url"] = json!("held-out.jsonl");
    assert_eq!(job(&request).parameters.early_stopping_patience, Some(2));
}

#[test]
fn the_command_line_outranks_the_request() {
    let request = with(json!({ "lora_rank": 8 }));
    let overrides = Overrides {
        job_id: Some("k".into()),
        dataset: Some("other.jsonl".into()),
        base_model: Some("/models/m".into()),
        ..Overrides::default()
    };
    let job = parse(&request.to_string(), &overrides, "x").unwrap();
    assert_eq!((job.job_id.as_str(), job.parameters.lora_rank), ("k", 8));
    assert_eq!(job.base_model, BaseModel::Folder("/models/m".into()));
    assert_eq!(job.dataset, Dataset::File("other.jsonl".into()));
    let job = parse("{\"input\": {}}", &overrides, "x").unwrap();
    assert_eq!(job.parameters, Parameters::default());
    assert!(parse("{\"input\": 3}", &overrides, "x").is_err());
}

#[test]
fn names_that_leave_their_folder_are_refused() {
    for id in ["", ".", "..", ".hidden", "a/b", "a\\b", "a b", "ä", "a\0", &"x".repeat(129)] {
        let mut request = with(json!({}));
        request["input"]["job_id"] = json!(id);
        assert!(problems(&request)[0].starts_with("job_id: must be 1 to 128"), "{id:?}");
    }
    let mut request = with(json!({}));
    request["input"]["job_id"] = json!("x".repeat(128));
    assert_eq!(job(&request).job_id.len(), 128);
}

#[test]
fn misspelt_fields_are_recognised() {
    for (misspelt, meant) in [
        ("neftune_alpha", "neftune_noise_alpha"),
        ("lora_plus_ratio", "loraplus_lr_ratio"),
        ("learningRate", "learning_rate"),
        ("num_epoch", "num_epochs"),
        ("save_step", "save_steps"),
    ] {
        let warnings = job(&with(json!({ misspelt: 1 }))).warnings;
        assert!(warnings[0].ends_with(&format!("; did you mean {meant}?")), "{warnings:?}");
    }
    assert!(!job(&with(json!({ "wandb_project": "x" }))).warnings[0].contains("did you mean"));
}

#[test]
fn unknown_fields_are_warned_of() {
    let mut request = with(json!({ "learning_rates": 1 }));
    request["input"]["extra"] = json!({});
    request["surprise"] = json!(1);
    assert_eq!(
        job(&request).warnings,
        [
            "surprise is not a known field and has no effect",
            "extra is not a known field and has no effect",
            "hyperparameters.learning_rates is not a known field and has no effect; did you mean learning_rate?",
        ]
    );
}

#[test]
fn what_is_no_request_is_refused_without_a_panic() {
    for text in
        ["", "{", "[]", "7", "{}", r#"{"input": []}"#, r#"{"input": {"hyperparameters": 3}}"#, "{\"input\": 1e999}"]
    {
        assert!(parse(text, &Overrides::default(), "x").is_err(), "{text}");
    }
    assert!(
        parse(&"[".repeat(1_000_000), &Overrides::default(), "x").unwrap_err()[0]
            .to_string()
            .contains("recursion limit")
    );
}

#[test]
fn file_urls_are_decoded_and_checked() {
    let parse = Dataset::parse;
    assert_eq!(parse("file://localhost/a%2Fb"), Ok(Dataset::File("/a/b".into())));
    assert_eq!(parse("data/x.jsonl"), Ok(Dataset::File("data/x.jsonl".into())));
    for bad in ["file://host/x", "file://x", "file:///a%zz", "file:///a%f", "file:///a%00", "file:///%ff", "ftp://h/k"]
    {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn links_are_kept_and_not_shown() {
    let dataset = Dataset::parse("https://host/data.jsonl?token=secret").unwrap();
    assert!(matches!(dataset, Dataset::Remote(_)) && !format!("{dataset:?}").contains("secret"), "{dataset:?}");
    assert!(matches!(Dataset::parse("s3://bucket/data.jsonl"), Ok(Dataset::Remote(_))));
    assert_eq!(dataset.check("dataset_url"), None);
    // A link that lost its scheme is taken for a path.
    let problem = Dataset::parse("host/data.jsonl?token=secret").unwrap().check("dataset_url").unwrap().to_string();
    assert!(problem.contains("host/data.jsonl?…") && !problem.contains("secret"), "{problem}");
}

/// The file is what `brightrun parameters` prints.
#[test]
fn the_documentation_lists_the_parameters_as_they_are() {
    let documentation = include_str!("../../../docs/parameters.md");
    assert!(
        documentation.ends_with(&parameter_table()),
        "run: brightrun parameters, and paste it into docs/parameters.md"
    );
}
