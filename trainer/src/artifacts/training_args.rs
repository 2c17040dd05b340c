//! `training_args.json`: the settings of a run under the names that users of transformers, TRL and PEFT know, and all of
//! them once more under ours.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// The name of the file in a job's output folder.
pub const ARGS_FILE: &str = "training_args.json";

/// Our name, theirs: what means the same in both.
const NAMES: &[(&str, &str)] = &[
    ("learning_rate", "learning_rate"),
    ("num_epochs", "num_train_epochs"),
    ("weight_decay", "weight_decay"),
    ("max_grad_norm", "max_grad_norm"),
    ("seed", "seed"),
    ("max_seq_length", "max_length"),
    ("packing", "packing"),
    ("lora_rank", "r"),
    ("lora_alpha", "lora_alpha"),
    ("lora_dropout", "lora_dropout"),
    ("use_rslora", "use_rslora"),
];

/// The settings; `parameters` is written as JSON has it.
pub fn training_args(parameters: &impl Serialize) -> Result<Value> {
    let ours = match serde_json::to_value(parameters) {
        Ok(Value::Object(ours)) => ours,
        Ok(_) | Err(_) => return Err(Error::Invalid("the parameters cannot be written as a JSON object".into())),
    };
    let mut theirs = Map::new();
    for (our_name, their_name) in NAMES {
        if let Some(value) = ours.get(*our_name) {
            theirs.insert((*their_name).into(), value.clone());
        }
    }
    // Theirs are per device and micro-batch; ours has one device and counts micro-batches in tokens.
    theirs.insert("per_device_train_batch_size".into(), ours.get("batch_size").cloned().unwrap_or_default());
    theirs.insert("gradient_accumulation_steps".into(), json!(1));
    theirs.insert(
        "max_steps".into(),
        ours.get("max_steps").filter(|steps| !steps.is_null()).cloned().unwrap_or(json!(-1)),
    );
    let warm_up = |part: &str| ours.get("warmup").and_then(|warm_up| warm_up.get(part)).cloned().unwrap_or(json!(0));
    theirs.insert("warmup_steps".into(), warm_up("steps"));
    theirs.insert("warmup_ratio".into(), warm_up("ratio"));
    theirs.insert("lr_scheduler_type".into(), scheduler(&ours));
    theirs.insert("optim".into(), ours.get("optimizer").map(optimizer).unwrap_or_default());
    if let Some(whole) = ours.get("train_on_prompt").and_then(Value::as_bool) {
        theirs.insert("assistant_only_loss".into(), json!(!whole));
    }
    theirs.insert("logging_steps".into(), json!(1));
    theirs.insert("parameters".into(), Value::Object(ours));
    Ok(Value::Object(theirs))
}

/// Their `constant` knows no warm-up.
fn scheduler(ours: &Map<String, Value>) -> Value {
    let constant = ours.get("schedule").is_some_and(|schedule| schedule == "constant");
    let parts = ours.get("warmup").and_then(Value::as_object);
    let warms_up = parts.is_some_and(|parts| parts.values().any(|part| part.as_f64().is_some_and(|part| part > 0.0)));
    if constant && warms_up { json!("constant_with_warmup") } else { ours.get("schedule").cloned().unwrap_or_default() }
}

fn optimizer(name: &Value) -> Value {
    match name.as_str() {
        Some("adamw") => json!("adamw_torch"),
        Some("adamw8bit") => json!("adamw_bnb_8bit"),
        _ => name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        optim::OptimizerKind,
        run::Parameters,
        schedule::{Decay, WarmUp},
    };

    #[test]
    fn settings_have_the_names_that_users_know() {
        let parameters = Parameters {
            warmup: WarmUp::Steps(10),
            optimizer: OptimizerKind::AdamW8bit,
            batch_size: 8,
            ..Parameters::default()
        };
        let args = training_args(&parameters).unwrap();
        for (name, value) in [
            ("learning_rate", json!(2e-4)),
            ("lr_scheduler_type", json!("cosine")),
            ("warmup_steps", json!(10)),
            ("warmup_ratio", json!(0)),
            ("per_device_train_batch_size", json!(8)),
            ("gradient_accumulation_steps", json!(1)),
            ("num_train_epochs", json!(3)),
            ("max_steps", json!(-1)),
            ("optim", json!("adamw_bnb_8bit")),
            ("max_grad_norm", json!(1.0)),
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
    fn every_name_of_ours_is_one() {
        let parameters = serde_json::to_value(Parameters::default()).unwrap();
        assert!(NAMES.iter().all(|(ours, _)| parameters.get(ours).is_some()), "{parameters}");
    }

    #[test]
    fn the_other_choices_have_their_names_too() {
        let parameters = Parameters { warmup: WarmUp::Ratio(0.25), max_steps: Some(7), ..Parameters::default() };
        let args = training_args(&parameters).unwrap();
        assert_eq!((&args["warmup_ratio"], &args["warmup_steps"]), (&json!(0.25), &json!(0)));
        assert_eq!((&args["max_steps"], &args["optim"]), (&json!(7), &json!("adamw_torch")));
        for (warmup, name) in [(WarmUp::Ratio(0.0), "constant"), (WarmUp::Steps(1), "constant_with_warmup")] {
            let parameters = Parameters { warmup, schedule: Decay::Constant, ..Parameters::default() };
            assert_eq!(training_args(&parameters).unwrap()["lr_scheduler_type"], name);
        }
    }
}
