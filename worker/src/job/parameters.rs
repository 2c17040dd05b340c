//! Every hyperparameter in one place: name, aliases, what it accepts, what it means. Parsing and documentation come from
//! this table; defaults come from [`Parameters`].

use brightrun_trainer::run::Parameters;
use serde_json::{Map, Value, json};

use super::fields::{Field, Findings, Object, shown};

/// What a parameter accepts.
enum Accepts {
    Number(f64, f64),
    Integer(u64, u64),
    Flag,
    OneOf(&'static [&'static str]),
    Targets,
}

use Accepts::{Flag, Integer, Number, OneOf, Targets};

struct Item {
    /// The name, then its aliases.
    names: &'static [&'static str],
    accepts: Accepts,
    /// What the default is, where it is not a value.
    default: Option<&'static str>,
    meaning: &'static str,
}

const fn item(names: &'static [&'static str], accepts: Accepts, meaning: &'static str) -> Item {
    Item { names, accepts, default: None, meaning }
}

const TARGET_SETS: [&str; 5] = ["default", "classic", "all", "servable", "attention"];
const MAX_TARGETS: usize = 1000;

const ITEMS: &[Item] = &[
    item(&["learning_rate"], Number(1e-8, 1.0), "Peak learning rate."),
    item(
        &["schedule"],
        OneOf(&["cosine", "linear", "constant"]),
        "How the learning rate falls after the warm-up: to zero, or not at all.",
    ),
    Item {
        names: &["warmup_steps"],
        accepts: Integer(0, 10_000_000),
        default: Some("by `warmup_ratio`"),
        meaning: "Optimiser steps in which the learning rate rises from zero.",
    },
    item(&["warmup_ratio"], Number(0.0, 1.0), "The same as a share of all steps; give one of the two."),
    item(&["batch_size"], Integer(1, 4096), "Examples per optimiser step."),
    item(&["num_epochs", "epochs"], Integer(1, 1000), "Passes over the training data."),
    Item {
        names: &["max_steps"],
        accepts: Integer(1, 100_000_000),
        default: Some("no limit"),
        meaning: "Ends the run after so many optimiser steps.",
    },
    item(&["optimizer"], OneOf(&["adamw", "adamw8bit"]), "AdamW with 32-bit or with 8-bit blockwise states."),
    item(&["weight_decay"], Number(0.0, 1.0), "Decoupled weight decay."),
    item(&["max_grad_norm"], Number(0.0, 1e6), "Gradients are scaled down to this global norm; 0: never."),
    item(&["lora_rank", "rank", "r"], Integer(1, 1024), "Rank of the adapter."),
    item(&["lora_alpha", "alpha"], Number(1e-3, 65_536.0), "The adapter's scale is alpha / rank."),
    item(&["lora_dropout", "dropout"], Number(0.0, 0.95), "Dropout on the adapter's input."),
    item(&["use_rslora"], Flag, "The scale is alpha / √rank."),
    item(
        &["targets"],
        Targets,
        "Which linears get an adapter. `default`: q k v o, `in_proj_qkvz`, `out_proj`, shared expert; `classic`: q k v o and \
         gate, up, down of every expert; `all`: default and routed experts; `servable`: default without `in_proj_*`; \
         `attention`: q k v o; or a list of module names, which are suffixes as in PEFT.",
    ),
    Item {
        names: &["expert_rank"],
        accepts: Integer(1, 1024),
        default: Some("`lora_rank` / experts per token, at least 1"),
        meaning: "Rank in routed experts.",
    },
    item(
        &["unhit_experts"],
        OneOf(&["skip", "zero"]),
        "An expert without a token in a step keeps its optimiser state (`skip`) or sees a zero gradient (`zero`).",
    ),
    item(&["router_aux_loss"], Flag, "Adds the router's load-balancing loss, with the model's own coefficient."),
    item(&["base_precision"], OneOf(&["nf4", "full"]), "The frozen base in NF4 with double quantisation, or in f32."),
    item(
        &["adapter_dialect"],
        OneOf(&["per_expert", "fused"]),
        "Names in the adapter file: one pair of matrices per expert (transformers 4, vLLM), or fused (transformers 5).",
    ),
    item(&["adapter_dtype"], OneOf(&["bf16", "f32"]), "Numbers in the adapter file."),
    item(
        &["max_seq_length"],
        Integer(16, 262_144),
        "Longest example in tokens; longer ones lose their oldest turns, never the last answer.",
    ),
    item(
        &["packing"],
        Flag,
        "Examples share micro-batches without padding. Off: examples of similar length are padded to the same length.",
    ),
    item(&["train_on_prompt"], Flag, "The loss covers the whole text instead of the assistant's turns."),
    item(
        &["train_on_all_turns"],
        Flag,
        "The loss covers all assistant turns, also where a line is one answer with its history (brightrun), of which only the \
         answer is learnt otherwise.",
    ),
    item(
        &["validation_split"],
        Number(0.0, 0.5),
        "Share of the conversations that is kept for validation, at most 200 of them; 0: none. No effect with `validation_url`.",
    ),
    item(&["seed"], Integer(0, u64::MAX), "Seeds adapter, dropout, order and split."),
];

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
    serde_json::from_value(Value::Object(values))
        .map_err(|error| findings.problem("hyperparameters", error.to_string()))
        .ok()
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

impl Accepts {
    /// The value in the form [`Parameters`] reads, or what was expected instead.
    fn check(&self, value: &Value) -> Result<Value, String> {
        let accepted = match self {
            Number(least, most) => value.as_f64().filter(|number| (*least..=*most).contains(number)).map(|n| json!(n)),
            Integer(least, most) => whole_number(value).filter(|n| (*least..=*most).contains(n)).map(|n| json!(n)),
            Flag => value.as_bool().map(Value::Bool),
            OneOf(names) => value.as_str().filter(|name| names.contains(name)).map(|name| json!(name)),
            Targets => targets(value),
        };
        accepted.ok_or_else(|| self.describe())
    }

    fn describe(&self) -> String {
        match self {
            Number(least, most) => format!("a number from {least} to {most}"),
            Integer(least, u64::MAX) => format!("a whole number from {least}"),
            Integer(least, most) => format!("a whole number from {least} to {most}"),
            Flag => "true or false".to_owned(),
            OneOf(names) => format!("one of {}", names.join(", ")),
            Targets => format!("one of {}, or a list of module names", TARGET_SETS.join(", ")),
        }
    }
}

/// 8.0 is a whole number too; not every JSON writer keeps the difference.
fn whole_number(value: &Value) -> Option<u64> {
    // Above 2^53 a float no longer says which whole number was meant.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let float = value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..=EXACT).contains(number));
    value.as_u64().or(float.map(|number| number as u64))
}

fn targets(value: &Value) -> Option<Value> {
    let module =
        |name: &Value| name.as_str().is_some_and(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic()));
    let accepted = match value {
        Value::String(name) => TARGET_SETS.contains(&name.as_str()),
        Value::Array(names) => (1..=MAX_TARGETS).contains(&names.len()) && names.iter().all(module),
        _ => false,
    };
    accepted.then(|| value.clone())
}

/// The table of all parameters, in Markdown.
pub(crate) fn table() -> String {
    let defaults = serde_json::to_value(Parameters::default()).unwrap_or_default();
    let mut text = String::from("| parameter | accepts | default | meaning |\n|---|---|---|---|\n");
    for item in ITEMS {
        let names: Vec<String> = item.names.iter().map(|name| format!("`{name}`")).collect();
        let default = match (item.default, item.names[0]) {
            (Some(words), _) => words.to_owned(),
            (None, "warmup_ratio") => code(&defaults["warmup"]["ratio"]),
            (None, name) => code(&defaults[name]),
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

fn code(value: &Value) -> String {
    format!("`{}`", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}
