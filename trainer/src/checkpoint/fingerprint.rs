//! What a checkpoint belongs to.

use std::{collections::BTreeMap, fmt::Display};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result};

/// Characters of a value that a difference shows.
const MAX_SHOWN: usize = 120;

/// Facts that make a run what it is, by name: parameters, hashes of dataset and base model, the adapter's plan. A
/// checkpoint is used only where all of them are the same. It lies on disk, so no secret belongs into it: a dataset is
/// its hash, not its link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(BTreeMap<String, String>);

// === impl Fingerprint ===

impl Fingerprint {
    /// Without facts.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a fact; one of the same name is replaced.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Display) -> Self {
        self.0.insert(name.into(), value.to_string());
        self
    }

    /// With a fact for each field of a struct or map, as JSON says it.
    pub fn with_fields(mut self, fields: &impl Serialize) -> Result<Self> {
        let unusable = |reason: String| Error::Invalid(format!("the settings of the run cannot be noted: {reason}"));
        match serde_json::to_value(fields) {
            Ok(Value::Object(fields)) => self.0.extend(fields.into_iter().map(|(name, value)| match value {
                Value::String(text) => (name, text),
                other => (name, other.to_string()),
            })),
            Ok(_) => return Err(unusable("they have no names".to_owned())),
            Err(error) => return Err(unusable(error.to_string())),
        }
        Ok(self)
    }

    /// Every fact that is another one now, by name.
    pub fn difference(&self, now: &Self) -> Vec<String> {
        let absent = || "not given".to_owned();
        let then = |name: &str| self.0.get(name).map_or_else(absent, |value| shown(value));
        let later = |name: &str| now.0.get(name).map_or_else(absent, |value| shown(value));
        let new = now.0.keys().filter(|name| !self.0.contains_key(*name));
        let mut names: Vec<&String> =
            self.0.iter().filter(|(name, value)| now.0.get(*name) != Some(value)).map(|(name, _)| name).collect();
        names.extend(new);
        names.sort();
        names.iter().map(|name| format!("{name}: {} then, {} now", then(name), later(name))).collect()
    }
}

fn shown(value: &str) -> String {
    match value.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_name_what_changed_came_and_went() {
        let then = Fingerprint::new().with("learning_rate", 0.0002).with("old", 1).with("same", "x");
        let now = Fingerprint::new().with("learning_rate", 0.0001).with("same", "x").with("new", "y".repeat(500));
        let differences = then.difference(&now);
        assert_eq!(differences[0], "learning_rate: 0.0002 then, 0.0001 now");
        assert_eq!(differences[1], format!("new: not given then, {}… now", "y".repeat(MAX_SHOWN)));
        assert_eq!(differences[2], "old: 1 then, not given now");
        assert_eq!(differences.len(), 3);
        assert!(then.difference(&then.clone()).is_empty());
    }

    #[test]
    fn fields_become_facts() {
        let found = Fingerprint::new().with_fields(&json!({ "rate": 2e-4, "name": "x", "targets": ["a"] })).unwrap();
        let expected = Fingerprint::new().with("rate", "0.0002").with("name", "x").with("targets", "[\"a\"]");
        assert_eq!(found, expected);
        assert!(Fingerprint::new().with_fields(&3).is_err());
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        assert_eq!(shown(&"é".repeat(MAX_SHOWN)), "é".repeat(MAX_SHOWN));
        assert_eq!(shown(&"é".repeat(MAX_SHOWN + 1)), format!("{}…", "é".repeat(MAX_SHOWN)));
    }
}
