//! `training_args.json`: the settings of a run under the names that users of transformers, TRL and PEFT know, and all of
//! them once more under ours.

use serde_json::{Map, Value, json};

use crate::{
    Error, Result,
    optim::OptimizerKind,
    run::Parameters,
    schedule::{Decay, WarmUp},
};

/// The name of the file in a job's output folder.
pub const ARGS_FILE: &str = "training_args.json";

/// Our name, theirs: what means the same in both.
const NAMES: &[(&str, &str)] = &[
    ("learning_rate", "learning_rate"),
    ("batch_size", "per_device_train_batch_size"),
    ("gradient_accumulation_steps", "gradient_accumulation_steps"),
    ("num_epochs", "num_train_epochs"),
    ("adam_beta1", "adam_beta1"),
    ("adam_beta2", "adam_beta2"),
    ("adam_epsilon", "adam_epsilon"),
    ("weight_decay", "weight_decay"),
    ("max_grad_norm", "max_grad_norm"),
    ("loraplus_lr_ratio", "loraplus_lr_ratio"),
    ("early_stopping_patience", "early_stopping_patience"),
    ("early_stopping_threshold", "early_stopping_threshold"),
    ("keep_checkpoints", "save_total_limit"),
    ("seed", "seed"),
    ("max_seq_length", "max_length"),
    ("packing", "packing"),
    ("lora_rank", "r"),
    ("lora_alpha", "lora_alpha"),
    ("lora_dropout", "lora_dropout"),
    ("use_rslora", "use_rslora"),
];

/// The settings of a run that has something to measure with, or (`evaluates` is false) nothing.
pub fn training_args(parameters: &Parameters, evaluates: bool) -> Result<Value> {
    let Ok(Value::Object(ours)) = serde_json::to_value(parameters) else {
        return Err(Error::Invalid("the parameters cannot be written as a JSON object".into()));
    };
    let mut theirs = Map::new();
    for (our_name, their_name) in NAMES {
        if let Some(value) = ours.get(*our_name) {
            theirs.insert((*their_name).into(), value.clone());
        }
    }
    theirs.extend(translated(parameters, evaluates).map(|(name, value)| (name.to_owned(), value)));
    // How often is saved by the clock has no name of theirs, and what the plan decides is not a setting.
    theirs.extend(parameters.save_steps.map(|_| ("save_strategy".into(), json!("steps"))));
    theirs.extend(parameters.save_steps.map(|steps| ("save_steps".into(), json!(steps))));
    theirs.extend(parameters.recompute.map(|recompute| ("gradient_checkpointing".into(), json!(recompute))));
    theirs.insert("parameters".into(), Value::Object(ours));
    Ok(Value::Object(theirs))
}

/// What they say in other words.
fn translated(parameters: &Parameters, evaluates: bool) -> [(&'static str, Value); 13] {
    let (warmup_steps, warmup_ratio) = match parameters.warmup {
        WarmUp::Steps(steps) => (steps, 0.0),
        WarmUp::Ratio(ratio) => (0, ratio),
    };
    let scheduler = match parameters.schedule {
        Decay::Cosine => "cosine",
        Decay::Linear => "linear",
        // Their `constant` knows no warm-up.
        Decay::Constant if warmup_steps > 0 || warmup_ratio > 0.0 => "constant_with_warmup",
        Decay::Constant => "constant",
    };
    let optimizer = match parameters.optimizer {
        OptimizerKind::AdamW => "adamw_torch",
        OptimizerKind::AdamW8bit => "adamw_bnb_8bit",
    };
    let (strategy, eval_steps) = match parameters.eval_steps {
        _ if !evaluates => ("no", None),
        Some(steps) => ("steps", Some(steps)),
        None => ("epoch", None),
    };
    let best = evaluates && parameters.delivers_best();
    let noise = parameters.neftune_noise_alpha;
    [
        ("max_steps", parameters.max_steps.map_or(json!(-1), |steps| json!(steps))),
        ("warmup_steps", json!(warmup_steps)),
        ("warmup_ratio", json!(warmup_ratio)),
        ("lr_scheduler_type", json!(scheduler)),
        ("optim", json!(optimizer)),
        ("neftune_noise_alpha", json!((noise > 0.0).then_some(noise))),
        ("assistant_only_loss", json!(!parameters.train_on_prompt)),
        ("eval_strategy", json!(strategy)),
        ("eval_steps", json!(eval_steps)),
        ("load_best_model_at_end", json!(best)),
        ("metric_for_best_model", json!(best.then_some("eval_loss"))),
        ("greater_is_better", json!(best.then_some(false))),
        ("logging_steps", json!(1)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters of ours that [`translated`] and [`training_args`] put into other words.
    const TRANSLATED: &[&str] = &[
        "schedule",
        "warmup",
        "max_steps",
        "optimizer",
        "neftune_noise_alpha",
        "train_on_prompt",
        "eval_steps",
        "load_best_at_end",
        "save_steps",
        "recompute",
    ];
    /// Those that they have no name for. What is adapted is in `adapter_config.json`.
    const ONLY_OURS: &[&str] = &[
        "micro_batch_tokens",
        "init_adapter",
        "targets",
        "expert_rank",
        "unhit_experts",
        "router_aux_loss",
        "base_precision",
        "adapter_dialect",
        "adapter_dtype",
        "train_on_all_turns",
        "validation_split",
        "eval_epochs",
        "max_loss_growth",
        "save_minutes",
    ];

    fn args(parameters: &Parameters) -> Value {
        training_args(parameters, true).unwrap()
    }

    #[test]
    fn every_parameter_is_named_translated_or_only_ours() {
        let Value::Object(ours) = serde_json::to_value(Parameters::default()).unwrap() else { panic!() };
        let named = NAMES.iter().map(|(ours, _)| ours);
        let mut known: Vec<&str> = named.chain(TRANSLATED).chain(ONLY_OURS).copied().collect();
        known.sort_unstable();
        let mut expected: Vec<&str> = ours.keys().map(String::as_str).collect();
        expected.sort_unstable();
        assert_eq!(known, expected);
    }

    #[test]
    fn settings_have_the_names_that_users_know() {
        let parameters = Parameters {
            warmup: WarmUp::Steps(10),
            optimizer: OptimizerKind::AdamW8bit,
            batch_size: 8,
            gradient_accumulation_steps: 4,
            adam_beta1: 0.8,
            adam_beta2: 0.95,
            adam_epsilon: 1e-6,
            loraplus_lr_ratio: 16.0,
            neftune_noise_alpha: 5.0,
            eval_steps: Some(20),
            early_stopping_patience: Some(3),
            early_stopping_threshold: 0.01,
            save_steps: Some(40),
            keep_checkpoints: 5,
            recompute: Some(true),
            ..Parameters::default()
        };
        let args = args(&parameters);
        for (name, value) in [
            ("learning_rate", json!(2e-4)),
            ("lr_scheduler_type", json!("cosine")),
            ("warmup_steps", json!(10)),
            ("warmup_ratio", json!(0.0)),
            ("per_device_train_batch_size", json!(8)),
            ("gradient_accumulation_steps", json!(4)),
            ("num_train_epochs", json!(3)),
            ("max_steps", json!(-1)),
            ("optim", json!("adamw_bnb_8bit")),
            ("adam_beta1", json!(0.8)),
            ("adam_beta2", json!(0.95)),
            ("adam_epsilon", json!(1e-6)),
            ("max_grad_norm", json!(1.0)),
            ("loraplus_lr_ratio", json!(16.0)),
            ("neftune_noise_alpha", json!(5.0)),
            ("eval_strategy", json!("steps")),
            ("eval_steps", json!(20)),
            ("early_stopping_patience", json!(3)),
            ("early_stopping_threshold", json!(0.01)),
            ("load_best_model_at_end", json!(true)),
            ("metric_for_best_model", json!("eval_loss")),
            ("greater_is_better", json!(false)),
            ("save_strategy", json!("steps")),
            ("save_steps", json!(40)),
            ("save_total_limit", json!(5)),
            ("gradient_checkpointing", json!(true)),
            ("seed", json!(42)),
            ("r", json!(16)),
            ("max_length", json!(2048)),
            ("assistant_only_loss", json!(true)),
        ] {
            assert_eq!(args[name], value, "{name}");
        }
        assert_eq!(serde_json::from_value::<Parameters>(args["parameters"].clone()).unwrap(), parameters);
    }

    #[test]
    fn what_was_not_chosen_is_not_claimed() {
        let plain = args(&Parameters::default());
        assert!(["save_strategy", "save_steps", "gradient_checkpointing"].iter().all(|name| plain.get(name).is_none()));
        assert_eq!((&plain["eval_strategy"], &plain["eval_steps"]), (&json!("epoch"), &Value::Null));
        assert_eq!((&plain["neftune_noise_alpha"], &plain["early_stopping_patience"]), (&Value::Null, &Value::Null));
        assert_eq!((&plain["load_best_model_at_end"], &plain["metric_for_best_model"]), (&json!(false), &Value::Null));
        // Without anything to measure with there is no best one.
        let parameters = Parameters { eval_steps: Some(5), load_best_at_end: Some(true), ..Parameters::default() };
        let blind = training_args(&parameters, false).unwrap();
        assert_eq!((&blind["eval_strategy"], &blind["eval_steps"]), (&json!("no"), &Value::Null));
        assert_eq!(blind["load_best_model_at_end"], json!(false));
    }

    #[test]
    fn the_other_choices_have_their_names_too() {
        let parameters = Parameters {
            warmup: WarmUp::Ratio(0.25),
            max_steps: Some(7),
            train_on_prompt: true,
            ..Parameters::default()
        };
        let found = args(&parameters);
        assert_eq!((&found["warmup_ratio"], &found["warmup_steps"]), (&json!(0.25), &json!(0)));
        assert_eq!((&found["max_steps"], &found["optim"]), (&json!(7), &json!("adamw_torch")));
        assert_eq!(found["assistant_only_loss"], json!(false));
        for (schedule, warmup, name) in [
            (Decay::Linear, WarmUp::Steps(1), "linear"),
            (Decay::Constant, WarmUp::Ratio(0.0), "constant"),
            (Decay::Constant, WarmUp::Steps(1), "constant_with_warmup"),
        ] {
            let parameters = Parameters { warmup, schedule, ..Parameters::default() };
            assert_eq!(args(&parameters)["lr_scheduler_type"], name);
        }
    }
}
