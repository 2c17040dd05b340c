//! What agreed and what differed in one case.

use std::fmt::Debug;

use serde_json::{Map, Value, json};

/// How much of a value a difference shows.
const SHOWN: usize = 160;

/// The result of one case.
pub struct Report {
    name: String,
    template: String,
    checks: Map<String, Value>,
    passed: bool,
}

impl Report {
    /// A case without results yet.
    pub fn new(name: &str, template: &str) -> Self {
        Self { name: name.to_owned(), template: template.to_owned(), checks: Map::new(), passed: true }
    }

    /// Notes whether a value is the expected one, and where the two part.
    pub fn compare<T: PartialEq + Debug>(&mut self, check: &str, found: &T, expected: &T) {
        if found == expected {
            self.checks.insert(check.to_owned(), json!(true));
            return;
        }
        let (found, expected) = (format!("{found:?}"), format!("{expected:?}"));
        let same = found.chars().zip(expected.chars()).take_while(|(left, right)| left == right).count();
        let shown = |text: &str| text.chars().skip(same.saturating_sub(SHOWN / 2)).take(SHOWN).collect::<String>();
        self.fail(check, json!({ "at": same, "found": shown(&found), "expected": shown(&expected) }));
    }

    /// Notes what went wrong.
    pub fn fail(&mut self, check: &str, reason: impl Into<Value>) {
        self.checks.insert(check.to_owned(), reason.into());
        self.passed = false;
    }

    /// Whether nothing differed.
    pub fn passed(&self) -> bool {
        self.passed
    }

    /// One line.
    pub fn json(&self) -> Value {
        json!({ "case": self.name, "template": self.template, "ok": self.passed, "checks": self.checks })
    }
}
