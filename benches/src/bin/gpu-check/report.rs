//! What was found, for people and as JSON.

use brightrun_kernels::gpu_check::Check;
use serde_json::{Map, Value, json};

use super::ceilings::Ceilings;

/// Everything that was found.
#[derive(Default)]
pub(super) struct Report {
    notes: Map<String, Value>,
    ceilings: Option<Ceilings>,
    checks: Vec<Value>,
    ops: Vec<Value>,
    wrong: Vec<String>,
}

// === impl Report ===

impl Report {
    /// A check, and whether it gave the same bits again.
    pub(super) fn check(&mut self, family: &str, check: &Check, repeats: bool) {
        let Check { case, what, error, tolerance, .. } = check;
        let holds = check.holds();
        self.checks.push(json!({
            "family": family, "case": case, "what": what, "error": error, "tolerance": tolerance, "holds": holds, "repeats": repeats,
        }));
        if !holds {
            self.wrong(format!("{case}: {what}: {error:.2e}, allowed {tolerance:.0e}"));
        }
        if !repeats {
            self.wrong(format!("{case}: {what}: other bits the second time"));
        }
    }

    /// The most memory that something may take.
    pub(super) fn memory(&mut self, case: &str, bytes: u64, most: u64) {
        let holds = bytes <= most;
        self.checks.push(json!({"family": "memory", "case": case, "bytes": bytes, "most": most, "holds": holds}));
        if !holds {
            let [found, allowed] = [bytes, most].map(|bytes| bytes as f64 / 1e9);
            self.wrong(format!("{case}: {found:.1} GB of memory, allowed {allowed:.0}"));
        }
    }

    /// A part that could not be run to its end.
    pub(super) fn failed(&mut self, part: &str, reason: &str) {
        self.wrong(format!("{part}: {reason}"));
    }

    fn wrong(&mut self, what: String) {
        println!("WRONG  {what}");
        self.wrong.push(what);
    }

    /// Anything else.
    pub(super) fn note(&mut self, name: &str, value: Value) {
        self.notes.insert(name.to_owned(), value);
    }

    /// The best that the card can do, once it was measured.
    pub(super) fn ceilings(&self) -> Option<Ceilings> {
        self.ceilings
    }

    pub(super) fn set_ceilings(&mut self, ceilings: Ceilings) {
        self.ceilings = Some(ceilings);
    }

    /// How fast an op is. Says whether it is the first one.
    pub(super) fn op(&mut self, op: Value) -> bool {
        self.ops.push(op);
        self.ops.len() == 1
    }

    pub(super) fn all_is_well(&self) -> bool {
        self.wrong.is_empty()
    }

    /// The end of what is printed: what is wrong once more, for it stands far above.
    pub(super) fn conclude(&self, seed: u64) {
        let number = self.checks.len();
        if self.all_is_well() {
            println!("{number} checks, all is well");
        } else {
            println!("{number} checks, {} wrong with --seed {seed}", self.wrong.len());
            self.wrong.iter().for_each(|what| println!("WRONG  {what}"));
        }
    }

    pub(super) fn json(&self) -> Value {
        let mut all = self.notes.clone();
        all.insert("checks".into(), self.checks.clone().into());
        all.insert("ops".into(), self.ops.clone().into());
        all.insert("wrong".into(), self.wrong.clone().into());
        all.into()
    }
}
