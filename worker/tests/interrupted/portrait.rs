//! All that a run leaves, without what depends on the time: two of the same job are the same.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Map, Value};

use crate::place::files;

/// Fields that tell times, or hashes and lengths of files that tell times.
const TIMES: [&str; 15] = [
    "time",
    "seconds",
    "tokens_per_second",
    "mean_tokens_per_second",
    "median_tokens_per_second",
    "peak_memory_bytes",
    "eval_runtime",
    "train_runtime",
    "train_steps_per_second",
    "train_tokens_per_second",
    "training_time",
    "throughput",
    "training_seconds",
    "evaluation_seconds",
    "time_shares",
];
/// Files with times in them: their hashes differ.
const TIMED: [&str; 5] =
    ["metrics.jsonl", "events.out.tfevents.brightrun", "trainer_state.json", "README.md", "result.json"];
/// Parts of the card's lines that tell times.
const CARD_TIMES: [&str; 3] = ["tokens a second", "seconds of training", "most memory"];

/// Path and content of every file.
#[derive(PartialEq)]
pub(crate) struct Portrait {
    files: BTreeMap<String, Vec<u8>>,
    /// What the run's owner is told.
    pub(crate) warnings: Vec<String>,
}

// === impl Portrait ===

impl Portrait {
    pub(crate) fn of(out: &Path) -> Self {
        let mut warnings = Vec::new();
        let content = |(name, bytes): (String, Vec<u8>)| {
            let timeless = match name.as_str() {
                "metrics.jsonl" => lines(&bytes),
                "trainer_state.json" => json(&bytes).to_string().into_bytes(),
                "result.json" => {
                    let mut result = json(&bytes);
                    // Every run has a folder of its own.
                    let base = &mut result["model_metadata"]["base_model_path"];
                    assert_eq!(base.as_str().map(Path::new), Some(&*out.join("base")));
                    *base = Value::Null;
                    warnings = taken(&mut result, "warnings");
                    without_sums(&mut result);
                    result.to_string().into_bytes()
                }
                "README.md" => card(&bytes),
                "events.out.tfevents.brightrun" => events(&bytes),
                _ => bytes,
            };
            (name, timeless)
        };
        let files = files(out).into_iter().map(content).collect();
        Self { files, warnings }
    }

    pub(crate) fn adapter(&self) -> &[u8] {
        &self.files["adapter/adapter_model.safetensors"]
    }

    /// They differ in nothing but in what was warned of and in these files.
    #[track_caller]
    pub(crate) fn assert_same_files_but(&self, unbroken: &Self, others: &[&str], about: &str) {
        let names = |portrait: &Self| portrait.files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(self), names(unbroken), "{about}");
        for (name, bytes) in self.files.iter().filter(|(name, _)| !others.contains(&name.as_str())) {
            let expected = &unbroken.files[name];
            let at = bytes.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(bytes.len().min(expected.len()));
            let near = |bytes: &[u8]| {
                String::from_utf8_lossy(&bytes[at.saturating_sub(80)..bytes.len().min(at + 80)]).into_owned()
            };
            let both = (near(bytes), near(expected));
            assert!(bytes == expected, "{about}: {name} differs at byte {at}: {}\nunbroken: {}", both.0, both.1);
        }
    }

    #[track_caller]
    pub(crate) fn assert_same(&self, unbroken: &Self, about: &str) {
        self.assert_same_files_but(unbroken, &[], about);
        assert_eq!(self.warnings, unbroken.warnings, "{about}");
    }
}

/// The job's result.
pub(crate) fn result(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("result.json")).unwrap()).unwrap()
}

/// The step whose adapter was delivered.
pub(crate) fn adapter_step(out: &Path) -> u64 {
    result(out)["model_metadata"]["adapter_step"].as_u64().unwrap()
}

fn json(bytes: &[u8]) -> Value {
    let mut value = serde_json::from_slice(bytes).unwrap();
    remove_times(&mut value);
    value
}

fn remove_times(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            TIMES.iter().for_each(|name| drop(fields.remove(*name)));
            fields.values_mut().for_each(remove_times);
        }
        Value::Array(values) => values.iter_mut().for_each(remove_times),
        _ => {}
    }
}

/// Takes the texts of a list away, wherever it is.
fn taken(value: &mut Value, name: &str) -> Vec<String> {
    let Value::Object(fields) = value else { return Vec::new() };
    let own = fields.remove(name).and_then(|list| serde_json::from_value(list).ok()).unwrap_or_default();
    fields.values_mut().map(|value| taken(value, name)).fold(own, |all, more| [all, more].concat())
}

/// Lengths and hashes of files with times in them.
fn without_sums(value: &mut Value) {
    let is_timed = |file: &Map<String, Value>| {
        let name = file.get("name").or(file.get("path")).and_then(Value::as_str);
        name.is_some_and(|name| TIMED.contains(&name))
    };
    match value {
        Value::Object(fields) => {
            if is_timed(fields) {
                ["bytes", "sha256"].iter().for_each(|name| drop(fields.remove(*name)));
            }
            fields.values_mut().for_each(without_sums);
        }
        Value::Array(values) => values.iter_mut().for_each(without_sums),
        _ => {}
    }
}

fn lines(bytes: &[u8]) -> Vec<u8> {
    let lines = std::str::from_utf8(bytes).unwrap().lines().map(|line| json(line.as_bytes()).to_string());
    lines.collect::<Vec<_>>().join("\n").into_bytes()
}

fn card(bytes: &[u8]) -> Vec<u8> {
    let lines = std::str::from_utf8(bytes).unwrap().lines();
    lines.filter(|line| !CARD_TIMES.iter().any(|part| line.contains(part))).collect::<Vec<_>>().join("\n").into_bytes()
}

/// Records of TensorBoard: length, its check sum, an event, its check sum. An event begins with its time, nine bytes, and
/// five bytes with a number follow a tag.
fn events(bytes: &[u8]) -> Vec<u8> {
    const LENGTH: usize = 8;
    const SUM: usize = 4;
    const TIME: usize = 9;
    const SPEED: &[u8] = b"train/tokens_per_second";
    const NUMBER: usize = 5;
    let (mut timeless, mut rest) = (Vec::new(), bytes);
    while let Some((length, _)) = rest.split_first_chunk::<LENGTH>() {
        let length = u64::from_le_bytes(*length) as usize;
        let mut event = rest[LENGTH + SUM..][..length].to_vec();
        if let Some(at) = event.windows(SPEED.len()).position(|part| part == SPEED) {
            event[at + SPEED.len()..][..NUMBER].fill(0);
        }
        timeless.extend_from_slice(&event[TIME..]);
        rest = &rest[LENGTH + SUM + length + SUM..];
    }
    timeless
}
