//! The table of all hyperparameters, for the documentation.

use std::sync::LazyLock;

use brightrun_trainer::run::Parameters;
use serde_json::Value;

use super::{
    PRESET_NAMES, PRESETS,
    items::{ITEMS, Item},
};

/// The table of all parameters, in Markdown.
pub(crate) fn table() -> String {
    let mut text = String::from("| parameter | accepts | default | meaning |\n|---|---|---|---|\n");
    for item in ITEMS {
        let names: Vec<String> = item.names.iter().map(|name| format!("`{name}`")).collect();
        let default = match item.default {
            Some(words) => words.to_owned(),
            None => format!("`{}`", default_of(item)),
        };
        let row = [names.join(", "), item.accepts.describe(), default, item.meaning.to_owned()];
        text.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    text.push_str("\n| `preset` |");
    PRESET_NAMES.iter().for_each(|name| text.push_str(&format!(" `{name}` |")));
    text.push_str(&format!("\n{}\n", "|---".repeat(PRESET_NAMES.len() + 1) + "|"));
    for (name, numbers) in PRESETS {
        let cells: Vec<String> = numbers.iter().map(f64::to_string).collect();
        text.push_str(&format!("| `{name}` | {} |\n", cells.join(" | ")));
    }
    text
}

/// The default in words.
pub(super) fn default_of(item: &Item) -> String {
    let value = || default_value(item);
    item.default.map_or_else(|| value().as_str().map_or_else(|| value().to_string(), str::to_owned), str::to_owned)
}

/// The default as a value; `null` where there is none.
pub(super) fn default_value(item: &Item) -> Value {
    static DEFAULTS: LazyLock<Value> =
        LazyLock::new(|| serde_json::to_value(Parameters::default()).unwrap_or_default());
    match item.names[0] {
        "warmup_ratio" => DEFAULTS["warmup"]["ratio"].clone(),
        name => DEFAULTS[name].clone(),
    }
}
