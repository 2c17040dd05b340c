//! What a hyperparameter accepts: the same for a request, the command line, the schema and the documentation.

use serde_json::{Value, json};

/// What a hyperparameter accepts.
pub(super) enum Accepts {
    /// A number between two, which are allowed.
    Number(f64, f64),
    /// A whole number between two, which are allowed.
    Integer(u64, u64),
    /// Yes or no.
    Flag,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A set of targets, or module names.
    Targets,
    /// A path.
    Folder,
}

use Accepts::{Flag, Folder, Integer, Number, OneOf, Targets};

/// Sets of targets that have a name.
pub(super) const TARGET_SETS: [&str; 5] = ["default", "classic", "all", "servable", "attention"];
/// Most module names in a list of targets.
pub(super) const MAX_TARGETS: usize = 1000;

// === impl Accepts ===

impl Accepts {
    /// The value in the form [`Parameters`] reads, or what was expected instead.
    pub(super) fn check(&self, value: &Value) -> Result<Value, String> {
        let accepted = match self {
            Number(least, most) => value.as_f64().filter(|number| (*least..=*most).contains(number)).map(|n| json!(n)),
            Integer(least, most) => whole_number(value).filter(|n| (*least..=*most).contains(n)).map(|n| json!(n)),
            Flag => value.as_bool().map(Value::Bool),
            OneOf(names) => value.as_str().filter(|name| names.contains(name)).map(|name| json!(name)),
            Targets => targets(value),
            Folder => folder(value),
        };
        accepted.ok_or_else(|| self.describe())
    }

    /// As [`Accepts::check`], for the text of the command line.
    pub(super) fn read(&self, text: &str) -> Result<Value, String> {
        let value = match self {
            OneOf(_) | Folder => json!(text),
            Targets if TARGET_SETS.contains(&text) => json!(text),
            Targets => text.split(',').map(str::trim).collect(),
            // A number or a switch is the same in JSON.
            Number(..) | Integer(..) | Flag => serde_json::from_str(text).unwrap_or_default(),
        };
        self.check(&value).map_err(|expected| format!("must be {expected}"))
    }

    /// What stands for it in a usage line.
    pub(super) fn value_name(&self) -> &'static str {
        match self {
            Number(..) => "NUMBER",
            Integer(..) => "N",
            Flag => "BOOL",
            OneOf(_) => "NAME",
            Targets => "SET|NAMES",
            Folder => "DIR",
        }
    }

    /// What it accepts, in words.
    pub(super) fn describe(&self) -> String {
        match self {
            Number(least, most) => format!("a number from {least} to {most}"),
            Integer(least, u64::MAX) => format!("a whole number from {least}"),
            Integer(least, most) => format!("a whole number from {least} to {most}"),
            Flag => "true or false".to_owned(),
            OneOf(names) => format!("one of {}", names.join(", ")),
            Targets => format!("one of {}, or a list of module names", TARGET_SETS.join(", ")),
            Folder => "the path of a folder".to_owned(),
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

fn folder(value: &Value) -> Option<Value> {
    value.as_str().filter(|path| !path.trim().is_empty() && !path.contains('\0')).map(|path| json!(path))
}
