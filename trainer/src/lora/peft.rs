//! `adapter_config.json`: what PEFT must be told to build exactly the adapted modules, and what it says when read back.

use std::collections::HashSet;
use std::path::Path;

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value, json};

use super::cover::ends;
use super::targets::{ALL_LINEAR, HEAD};
use super::{MAX_ALPHA, MAX_RANK};
use crate::config::fields::Fields;
use crate::config::json::{read_object, shown};
use crate::{Error, Result};

/// Bytes of an `adapter_config.json`.
const MAX_FILE_BYTES: u64 = 10 * 1024 * 1024;
/// Entries of `rank_pattern` and of `alpha_pattern`; each is tried on every module.
const MAX_PATTERNS: usize = 1024;
/// Bytes of one compiled regular expression.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// One thing PEFT adapts: a module (`….q_proj`) or a parameter (`….experts.down_proj`, `….gate_proj.weight`).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) rank: usize,
    pub(super) alpha: f64,
}

/// What [`write()`] needs beside the targets themselves.
#[derive(Debug)]
pub(super) struct Written<'a> {
    pub(super) base_model: &'a str,
    pub(super) rank: usize,
    pub(super) alpha: f64,
    pub(super) dropout: f64,
    pub(super) use_rslora: bool,
    pub(super) target_modules: Vec<String>,
    pub(super) target_parameters: Vec<String>,
    pub(super) targets: &'a [Target],
}

/// The text of `adapter_config.json`, with the fields PEFT 0.18 has; 0.21 knows all of them too.
pub(super) fn write(written: &Written) -> String {
    let ranks: Vec<_> = written.targets.iter().map(|target| (target.name.as_str(), target.rank)).collect();
    let alphas: Vec<_> = written.targets.iter().map(|target| (target.name.as_str(), target.alpha)).collect();
    let pattern = |entries: Vec<(String, Value)>| entries.into_iter().collect::<Map<_, _>>();
    let ranks = super::cover::patterns(&ranks, written.rank).into_iter().map(|(key, rank)| (key, rank.into()));
    let alphas = super::cover::patterns(&alphas, written.alpha).into_iter().map(|(key, alpha)| (key, number(alpha)));
    let parameters = match written.target_parameters.is_empty() {
        true => Value::Null,
        // With parameters, PEFT implements no dropout and refuses a file that has some.
        false => json!(written.target_parameters),
    };
    let dropout = if parameters.is_null() { written.dropout } else { 0.0 };
    let config = json!({
        "alora_invocation_tokens": null,
        "alpha_pattern": pattern(alphas.collect()),
        "arrow_config": null,
        "auto_mapping": null,
        "base_model_name_or_path": written.base_model,
        "bias": "none",
        "corda_config": null,
        "ensure_weight_tying": false,
        "eva_config": null,
        "exclude_modules": null,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layer_replication": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "loftq_config": {},
        "lora_alpha": number(written.alpha),
        "lora_bias": false,
        "lora_dropout": dropout,
        "megatron_config": null,
        "megatron_core": "megatron.core",
        "modules_to_save": null,
        "peft_type": "LORA",
        // The version whose format this is.
        "peft_version": if written.target_parameters.is_empty() { "0.18.1" } else { "0.21.2" },
        "qalora_group_size": 16,
        "r": written.rank,
        "rank_pattern": pattern(ranks.collect()),
        "revision": null,
        "target_modules": written.target_modules,
        "target_parameters": parameters,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": null,
        "use_dora": false,
        "use_qalora": false,
        "use_rslora": written.use_rslora,
    });
    format!("{config:#}\n")
}

/// Whole numbers as PEFT's own files have them, without a fraction.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 { json!(value as i64) } else { json!(value) }
}

/// `adapter_config.json` as far as it decides which tensors there are and how they are scaled.
#[derive(Debug)]
pub(super) struct PeftConfig {
    pub(super) rank: usize,
    pub(super) alpha: f64,
    pub(super) dropout: f64,
    pub(super) use_rslora: bool,
    pub(super) target_modules: Names,
    /// Ends of parameter names; not empty in an adapter of fused experts.
    pub(super) target_parameters: HashSet<String>,
    rank_pattern: Vec<(Regex, usize)>,
    alpha_pattern: Vec<(Regex, f64)>,
}

/// The forms of `target_modules`.
#[derive(Debug)]
pub(super) enum Names {
    /// Ends of module paths.
    Ends(HashSet<String>),
    /// A regular expression for whole paths.
    Pattern(Box<Regex>),
    /// Every linear except the head.
    AllLinear,
}

// === impl Names ===

impl Names {
    /// Whether a linear at this path is adapted.
    pub(super) fn contain(&self, path: &str) -> bool {
        match self {
            Self::Ends(names) => ends(path).any(|end| names.contains(end)),
            Self::Pattern(pattern) => pattern.is_match(path),
            Self::AllLinear => path != HEAD,
        }
    }
}

// === impl PeftConfig ===

impl PeftConfig {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let object = read_object(path, MAX_FILE_BYTES)?;
        let mut fields = Fields::new(&object, "");
        let config = Self::from_fields(&mut fields);
        match fields.into_problems() {
            problems if problems.is_empty() => Ok(config),
            problems => Err(Error::problems(path, &problems)),
        }
    }

    /// Rank and alpha of a target, by the first pattern that matches the end of its name.
    pub(super) fn target(&self, name: &str) -> Target {
        fn first<Value: Copy>(patterns: &[(Regex, Value)], name: &str, base: Value) -> Value {
            patterns.iter().find(|(pattern, _)| pattern.is_match(name)).map_or(base, |(_, value)| *value)
        }
        Target {
            name: name.to_owned(),
            rank: first(&self.rank_pattern, name, self.rank),
            alpha: first(&self.alpha_pattern, name, self.alpha),
        }
    }

    fn from_fields(fields: &mut Fields) -> Self {
        refuse_other_methods(fields);
        let in_range = |alpha: f64| alpha > 0.0 && alpha <= MAX_ALPHA;
        Self {
            rank: fields.size("r", None, 1..=2 * MAX_RANK),
            alpha: fields.number("lora_alpha", 8.0, in_range, "a number above 0"),
            dropout: fields.number("lora_dropout", 0.0, |p| (0.0..1.0).contains(&p), "a number from 0 and below 1"),
            use_rslora: fields.flag("use_rslora", false),
            target_modules: target_modules(fields),
            target_parameters: texts(fields, "target_parameters"),
            rank_pattern: pattern(fields, "rank_pattern", |value| {
                value.as_u64().filter(|rank| (1..=2 * MAX_RANK as u64).contains(rank)).map(|rank| rank as usize)
            }),
            alpha_pattern: pattern(fields, "alpha_pattern", |value| value.as_f64().filter(|alpha| in_range(*alpha))),
        }
    }
}

/// Everything of PEFT that changes the function an adapter computes and is not plain LoRA.
fn refuse_other_methods(fields: &mut Fields) {
    for (name, expected) in [("peft_type", "LORA"), ("bias", "none")] {
        if fields.text(name).is_some_and(|found| found != expected) {
            fields.refuse(name, format_args!("\"{expected}\""));
        }
    }
    if fields.get("peft_type").is_none() {
        fields.refuse("peft_type", "\"LORA\"");
    }
    for name in [
        "use_dora",
        "use_qalora",
        "use_bdlora",
        "lora_bias",
        "fan_in_fan_out",
        "modules_to_save",
        "exclude_modules",
        "layers_to_transform",
        "layer_replication",
        "trainable_token_indices",
        "alora_invocation_tokens",
        "arrow_config",
        "kasa_config",
        "velora_config",
        "monteclora_config",
    ] {
        let off = |value: &Value| match value {
            Value::Bool(flag) => !flag,
            Value::Array(list) => list.is_empty(),
            Value::Object(object) => object.is_empty(),
            _ => false,
        };
        if fields.get(name).is_some_and(|value| !off(value)) {
            fields.refuse(name, "nothing: only plain LoRA is supported");
        }
    }
    // The other ways to begin change the base weights as well.
    let keeps_base =
        |value: &Value| value.is_boolean() || ["gaussian", "orthogonal", "eva"].map(Some).contains(&value.as_str());
    if fields.get("init_lora_weights").is_some_and(|value| !keeps_base(value)) {
        fields.refuse("init_lora_weights", "an initialisation that leaves the base weights as they are");
    }
}

fn texts(fields: &mut Fields, name: &str) -> HashSet<String> {
    fields.texts(name).unwrap_or_default().into_iter().collect()
}

fn target_modules(fields: &mut Fields) -> Names {
    match fields.get("target_modules") {
        None => Names::Ends(HashSet::new()),
        Some(Value::String(text)) if text.eq_ignore_ascii_case(ALL_LINEAR) => Names::AllLinear,
        Some(Value::String(text)) => match compile(&format!("^(?:{text})$")) {
            Ok(pattern) => Names::Pattern(Box::new(pattern)),
            Err(error) => {
                fields.refuse("target_modules", format_args!("a list or a regular expression ({error})"));
                Names::AllLinear
            }
        },
        Some(_) => Names::Ends(texts(fields, "target_modules")),
    }
}

fn pattern<Number>(
    fields: &mut Fields,
    name: &str,
    convert: impl Fn(&Value) -> Option<Number>,
) -> Vec<(Regex, Number)> {
    let Some(object) = fields.object(name) else { return Vec::new() };
    if object.len() > MAX_PATTERNS {
        fields.note(format!("{name}: found {} entries, expected at most {MAX_PATTERNS}", object.len()));
        return Vec::new();
    }
    let mut patterns = Vec::with_capacity(object.len());
    for (key, value) in object {
        // How PEFT matches such keys.
        match (compile(&format!(r"^(?:.*\.)?(?:{key})$")), convert(value)) {
            (Ok(regex), Some(number)) => patterns.push((regex, number)),
            (Err(error), _) => fields.note(format!("{name}.{key}: expected a regular expression: {error}")),
            (_, None) => fields.note(format!("{name}.{key}: found {}, expected a number in range", shown(value))),
        }
    }
    patterns
}

fn compile(pattern: &str) -> std::result::Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).size_limit(MAX_REGEX_BYTES).build()
}
