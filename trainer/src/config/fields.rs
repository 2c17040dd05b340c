//! Typed access to the fields of a JSON object that gathers every problem instead of stopping at the first.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::json::shown;

/// One object of a configuration file, read field by field.
///
/// A reader always returns a value; where the file has a bad one, it notes the problem and returns a stand-in, which
/// nobody sees because [`Fields::into_problems`] then makes the whole file an error.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// What stands before a field's name in a problem, as in `rope_parameters.`.
    prefix: String,
    problems: Vec<String>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(object: &'a Map<String, Value>, prefix: impl Into<String>) -> Self {
        Self { object, prefix: prefix.into(), problems: Vec::new() }
    }

    /// The field's value; absent and `null` are the same, as in the Python classes that write these files.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Notes that a field is not what it must be.
    pub(crate) fn refuse(&mut self, name: &str, expected: impl std::fmt::Display) {
        let found = self.get(name).map_or_else(|| "nothing".to_owned(), shown);
        self.note(format!("{}{name}: found {found}, expected {expected}", self.prefix));
    }

    /// Notes a problem that is not about one field's value alone.
    pub(crate) fn note(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// The field was refused, so what was returned for it means nothing and nothing should be held against it.
    pub(crate) fn is_refused(&self, name: &str) -> bool {
        let start = format!("{}{name}: ", self.prefix);
        self.problems.iter().any(|problem| problem.starts_with(&start))
    }

    /// A whole number; `default` stands for an absent field, and without one the field must be there.
    pub(crate) fn size(&mut self, name: &str, default: Option<usize>, allowed: RangeInclusive<usize>) -> usize {
        let found = match self.get(name) {
            None => default,
            Some(value) => value.as_u64().and_then(|number| usize::try_from(number).ok()),
        };
        match found.filter(|number| allowed.contains(number)) {
            Some(number) => number,
            None => {
                self.refuse(name, format_args!("an integer in {}..={}", allowed.start(), allowed.end()));
                *allowed.start()
            }
        }
    }

    /// A finite number that `holds` accepts; `expected` describes those.
    pub(crate) fn number(&mut self, name: &str, default: f64, holds: fn(f64) -> bool, expected: &str) -> f64 {
        match self.get(name) {
            None => default,
            Some(value) => match value.as_f64().filter(|number| number.is_finite() && holds(*number)) {
                Some(number) => number,
                None => {
                    self.refuse(name, expected);
                    default
                }
            },
        }
    }

    /// A truth value.
    pub(crate) fn flag(&mut self, name: &str, default: bool) -> bool {
        match self.get(name) {
            None => default,
            Some(Value::Bool(flag)) => *flag,
            Some(_) => {
                self.refuse(name, "true or false");
                default
            }
        }
    }

    /// A text.
    pub(crate) fn text(&mut self, name: &str) -> Option<&'a str> {
        let value = self.get(name)?;
        if value.as_str().is_none() {
            self.refuse(name, "a text");
        }
        value.as_str()
    }

    /// An object.
    pub(crate) fn object(&mut self, name: &str) -> Option<&'a Map<String, Value>> {
        let value = self.get(name)?;
        if value.as_object().is_none() {
            self.refuse(name, "an object");
        }
        value.as_object()
    }

    /// A list.
    pub(crate) fn list(&mut self, name: &str) -> Option<&'a [Value]> {
        let value = self.get(name)?;
        if value.as_array().is_none() {
            self.refuse(name, "a list");
        }
        value.as_array().map(Vec::as_slice)
    }

    /// A list of texts.
    pub(crate) fn texts(&mut self, name: &str) -> Option<Vec<String>> {
        let texts = self.list(name)?.iter().map(|value| value.as_str().map(str::to_owned)).collect();
        if Option::<Vec<String>>::is_none(&texts) {
            self.refuse(name, "a list of texts");
        }
        texts
    }

    /// Everything that was wrong, in the order it was met.
    pub(crate) fn into_problems(self) -> Vec<String> {
        self.problems
    }
}
