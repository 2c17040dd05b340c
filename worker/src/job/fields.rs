//! Fields of a JSON object under their names and aliases, and what is found wrong with them.

use std::{collections::HashSet, fmt};

use serde_json::{Map, Value};

/// From this likeness on (Jaro-Winkler), a name is taken for a misspelt one.
const LIKE: f64 = 0.88;

/// Something that makes a request impossible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    path: String,
    message: String,
}

impl Problem {
    pub(crate) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path, self.message)
    }
}

/// Everything noticed while a request is read.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

impl Findings {
    pub(super) fn problem(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem::new(path, message));
    }
}

/// A field's full name and value.
pub(super) type Field<'a> = (String, &'a Value);

/// A JSON object whose fields are taken one by one, so that what nobody took can be named.
pub(super) struct Object<'a> {
    path: &'static str,
    fields: &'a Map<String, Value>,
    taken: HashSet<&'static str>,
}

impl<'a> Object<'a> {
    pub(super) fn new(path: &'static str, value: &'a Value, findings: &mut Findings) -> Option<Self> {
        let Value::Object(fields) = value else {
            findings.problem(path, format!("must be an object, not {}", kind(value)));
            return None;
        };
        Some(Self { path, fields, taken: HashSet::new() })
    }

    /// The field under the first of these names that is there; `null` is as good as absent. Names that are there with
    /// different values are a problem.
    pub(super) fn take(&mut self, names: &[&'static str], findings: &mut Findings) -> Option<Field<'a>> {
        self.taken.extend(names);
        let present = names.iter().filter_map(|name| Some((self.full_name(name), self.fields.get(*name)?)));
        let mut present = present.filter(|(_, value)| !value.is_null());
        let first = present.next()?;
        present.for_each(|other| same(&first, &other, findings));
        Some(first)
    }

    /// As [`Object::take`], for a field that may also have been given elsewhere.
    pub(super) fn take_or(
        &mut self,
        names: &[&'static str],
        elsewhere: Option<Field<'a>>,
        findings: &mut Findings,
    ) -> Option<Field<'a>> {
        match (self.take(names, findings), elsewhere) {
            (Some(here), Some(there)) => {
                same(&here, &there, findings);
                Some(here)
            }
            (here, there) => here.or(there),
        }
    }

    /// Takes fields that have a meaning but no effect, and says which were there.
    pub(super) fn take_unused(&mut self, names: &[&'static str]) -> Vec<String> {
        self.taken.extend(names);
        let present = names.iter().filter(|name| self.fields.get(**name).is_some_and(|value| !value.is_null()));
        present.map(|name| self.full_name(name)).collect()
    }

    /// Warns of the fields that nobody took.
    pub(super) fn finish(self, findings: &mut Findings) {
        for name in self.fields.keys().filter(|name| !self.taken.contains(name.as_str())) {
            let shown: String = name.chars().take(64).collect();
            let meant = self.like(&shown).map(|name| format!("; did you mean {name}?")).unwrap_or_default();
            findings.warnings.push(format!("{} is not a known field and has no effect{meant}", self.full_name(&shown)));
        }
    }

    /// The known name that is most like this one, if any is.
    fn like(&self, name: &str) -> Option<&str> {
        let likeness = |known: &str| strsim::jaro_winkler(known, name);
        let better = |a: &&str, b: &&str| likeness(a).total_cmp(&likeness(b)).then_with(|| b.cmp(a));
        let best = self.taken.iter().copied().max_by(better);
        best.filter(|known| likeness(known) >= LIKE)
    }

    fn full_name(&self, name: &str) -> String {
        match self.path {
            "request" | "input" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }
}

fn same(first: &Field<'_>, second: &Field<'_>, findings: &mut Findings) {
    if !equal(first.1, second.1) {
        let message = format!(
            "is also given as {} with another value ({} and {}); keep one of them",
            second.0,
            shown(first.1),
            shown(second.1)
        );
        findings.problem(&first.0, message);
    }
}

/// 8 and 8.0 are the same number.
fn equal(first: &Value, second: &Value) -> bool {
    match (first.as_f64(), second.as_f64()) {
        (Some(first), Some(second)) => first == second,
        _ => first == second,
    }
}

/// A value in an error text, shortened. Of a link nothing is repeated, because it may be signed, and a list or an object may
/// hold one.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) if text.contains("://") || text.contains('?') => return "a link".to_owned(),
        Value::Array(_) | Value::Object(_) => return kind(value).to_owned(),
        _ => {}
    }
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a yes or no",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_of_a_link_is_repeated() {
        for secret in ["https://h/x?token=S3CR3T", "h/x?token=S3CR3T", "s3://b/S3CR3T"] {
            for value in [json!(secret), json!([secret]), json!({ "a": { "b": secret } })] {
                assert!(!shown(&value).contains("S3CR3T"), "{value}");
            }
        }
        assert_eq!((shown(&json!("yes")), shown(&json!(1.5))), ("\"yes\"".into(), "1.5".into()));
        assert_eq!(shown(&json!("x".repeat(100))).chars().count(), 61);
    }

    #[test]
    fn two_links_that_differ_are_told_without_them() {
        let value = json!({ "a": "https://h/x?token=S3CR3T", "b": "https://h/y?token=S3CR3T" });
        let mut findings = Findings::default();
        Object::new("input", &value, &mut findings).unwrap().take(&["a", "b"], &mut findings);
        let problem = findings.problems[0].to_string();
        assert!(
            problem.starts_with("a: is also given as b with another value") && !problem.contains("S3CR3T"),
            "{problem}"
        );
    }
}
