//! Hyperparameters of a request. [`items`] lists them; the rest is made from that list.

mod accepts;
mod flags;
mod items;
mod schema;
mod table;

use brightrun_trainer::run::Parameters;
use serde_json::{Map, Value, json};

use super::fields::{Field, Findings, Object, shown};
pub(crate) use flags::ParameterFlags;
use items::ITEMS;
pub(crate) use schema::schema;
pub(crate) use table::table;

/// Learning rate, batch size, epochs, rank, alpha, dropout.
const PRESETS: &[(&str, [f64; 6])] = &[
    ("fast", [1e-4, 8.0, 1.0, 8.0, 16.0, 0.05]),
    ("balanced", [5e-5, 4.0, 3.0, 16.0, 32.0, 0.1]),
    ("quality", [3e-5, 2.0, 5.0, 32.0, 64.0, 0.1]),
    ("conservative", [1e-4, 4.0, 3.0, 8.0, 16.0, 0.05]),
    ("aggressive", [3e-4, 16.0, 10.0, 32.0, 64.0, 0.1]),
];
const PRESET_NAMES: [&str; 6] =
    ["learning_rate", "batch_size", "num_epochs", "lora_rank", "lora_alpha", "lora_dropout"];

/// Takes every parameter out of the request; a preset gives what the request leaves open.
pub(super) fn read(object: &mut Object<'_>, preset: Option<Field<'_>>, findings: &mut Findings) -> Option<Parameters> {
    let before = findings.problems.len();
    let mut values = preset_values(preset, findings);
    for item in ITEMS {
        let Some((path, value)) = object.take(item.names, findings) else { continue };
        match item.accepts.check(value) {
            Ok(value) => drop(values.insert(item.names[0].to_owned(), value)),
            Err(expected) => findings.problem(path, format!("must be {expected}, not {}", shown(value))),
        }
    }
    let warmup = match (values.remove("warmup_steps"), values.remove("warmup_ratio")) {
        (Some(steps), Some(ratio)) => {
            let message = format!("is {steps} and hyperparameters.warmup_ratio is {ratio}; keep one of them");
            findings.problem("hyperparameters.warmup_steps", message);
            None
        }
        (Some(steps), None) => Some(json!({ "steps": steps })),
        (None, ratio) => ratio.map(|ratio| json!({ "ratio": ratio })),
    };
    values.extend(warmup.map(|warmup| ("warmup".to_owned(), warmup)));
    if findings.problems.len() > before {
        return None;
    }
    let parameters: Parameters = serde_json::from_value(Value::Object(values))
        .map_err(|error| findings.problem("hyperparameters", error.to_string()))
        .ok()?;
    Some(parameters)
}

/// What does not go together. `validation`: there is a file to measure with.
pub(super) fn check(parameters: &Parameters, validation: bool, findings: &mut Findings) {
    if validation || parameters.validation_split > 0.0 {
        return;
    }
    let needs = [
        ("early_stopping_patience", parameters.early_stopping_patience.is_some()),
        ("load_best_at_end", parameters.load_best_at_end == Some(true)),
    ];
    for (name, _) in needs.iter().filter(|(_, given)| *given) {
        let message = "needs something to measure with: validation_split above 0, or a validation_url";
        findings.problem(format!("hyperparameters.{name}"), message);
    }
}

fn preset_values(preset: Option<Field<'_>>, findings: &mut Findings) -> Map<String, Value> {
    let Some((path, value)) = preset else { return Map::new() };
    let Some((_, numbers)) = PRESETS.iter().find(|(name, _)| value.as_str() == Some(*name)) else {
        let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
        findings.problem(path, format!("must be one of {}, not {}", names.join(", "), shown(value)));
        return Map::new();
    };
    let whole = |number: f64| if number.fract() == 0.0 { json!(number as u64) } else { json!(number) };
    PRESET_NAMES.iter().zip(numbers).map(|(name, number)| ((*name).to_owned(), whole(*number))).collect()
}
