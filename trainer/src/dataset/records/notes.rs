//! What is noticed while a line becomes an example.

use std::fmt::{self, Display};

use serde_json::{Map, Value};

use super::record::Origin;
use crate::dataset::finding::{Finding, FindingKind};

/// So many problems of one line are spelled out; the rest are counted.
const SPELLED_OUT: usize = 8;
/// Longest piece of a file that a finding quotes, in characters.
const QUOTED: usize = 60;

/// Where something stands in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Key of the line.
    pub(super) field: &'static str,
    /// Index in its list.
    pub(super) index: Option<usize>,
}

/// Notes on one line.
pub(super) struct Notes<'a> {
    line: u64,
    origin: &'a Origin,
    wrong: Vec<String>,
    unknown_roles: Vec<String>,
    skipped: Option<Finding>,
    kept: Vec<Finding>,
}

// === impl Place ===

impl Place {
    /// A key that is no list.
    pub(super) fn field(field: &'static str) -> Self {
        Self { field, index: None }
    }
}

impl Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            None => out.write_str(self.field),
            Some(index) => write!(out, "{}[{index}]", self.field),
        }
    }
}

// === impl Notes ===

impl<'a> Notes<'a> {
    /// Nothing noticed yet.
    pub(super) fn new(line: u64, origin: &'a Origin) -> Self {
        Self { line, origin, wrong: Vec::new(), unknown_roles: Vec::new(), skipped: None, kept: Vec::new() }
    }

    /// The line that is read.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// Where its container has it.
    pub(super) fn origin(&self) -> &'a Origin {
        self.origin
    }

    /// A field that is missing or of the wrong type.
    pub(super) fn wrong(&mut self, place: impl Display, what: impl Display) {
        self.wrong.push(format!("{place}: {what}"));
    }

    /// A field that has another type than `expected`.
    pub(super) fn wrong_type(&mut self, place: impl Display, expected: &str, found: &Value) {
        self.wrong(place, format_args!("expected {expected}, found {}", kind_of(found)));
    }

    /// A role that nobody knows.
    pub(super) fn unknown_role(&mut self, place: impl Display, role: &str) {
        self.unknown_roles.push(format!("{place}: {}", quoted(role)));
    }

    /// Leaves the example out; the first reason stands.
    pub(super) fn skip(&mut self, kind: FindingKind, text: impl Into<String>) {
        let line = self.line;
        self.skipped.get_or_insert_with(|| Finding::new(kind, line, text));
    }

    /// Something that the example is used in spite of.
    pub(super) fn keep(&mut self, kind: FindingKind, text: impl Into<String>) {
        self.kept.push(Finding::new(kind, self.line, text));
    }

    /// Whether the line can become no example.
    pub(super) fn is_refused(&self) -> bool {
        !self.wrong.is_empty() || !self.unknown_roles.is_empty() || self.skipped.is_some()
    }

    /// The findings: of a refused line only why it is.
    pub(super) fn findings(self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if !self.wrong.is_empty() {
            findings.push(Finding::new(FindingKind::WrongShape, self.line, joined(&self.wrong)));
        }
        if !self.unknown_roles.is_empty() {
            let text = format!("{}; system, user, assistant and tool are known", joined(&self.unknown_roles));
            findings.push(Finding::new(FindingKind::UnknownRole, self.line, text));
        }
        if findings.is_empty() {
            findings.extend(self.skipped);
        }
        if findings.is_empty() { self.kept } else { findings }
    }

    /// Takes a text that may be absent or null.
    pub(super) fn optional_text(&mut self, line: &mut Map<String, Value>, field: &'static str) -> Option<String> {
        match line.remove(field) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text),
            Some(other) => {
                self.wrong_type(field, "a string", &other);
                None
            }
        }
    }

    /// Takes the id of a conversation: a text or a number. A blank one is as good as none.
    pub(super) fn conversation_id(&mut self, line: &mut Map<String, Value>) -> Option<String> {
        match line.remove("conversation_id") {
            Some(Value::Number(number)) => Some(number.to_string()),
            Some(Value::String(text)) => (!text.trim().is_empty()).then_some(text),
            None | Some(Value::Null) => None,
            Some(other) => {
                self.wrong_type("conversation_id", "a string", &other);
                None
            }
        }
    }
}

/// What a value is, with its article.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A piece of the file, shortened and with its control characters escaped.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}

/// Several problems as one text.
pub(super) fn joined(problems: &[String]) -> String {
    let mut text = problems.iter().take(SPELLED_OUT).map(String::as_str).collect::<Vec<_>>().join("; ");
    if problems.len() > SPELLED_OUT {
        text.push_str(&format!("; and {} more", problems.len() - SPELLED_OUT));
    }
    text
}
