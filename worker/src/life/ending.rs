//! What a job's client hears in the end, in the platform's words.

use serde_json::{Map, Value, json};

use super::shown::Shown;
use crate::{storage::upload::Delivered, work::Answer};

/// What the platform reads of `result.json`; the rest stays in the file.
const TOLD: [&str; 10] = [
    "status",
    "job_id",
    "progress",
    "current_epoch",
    "current_step",
    "model_metadata",
    "metrics",
    "quality",
    "cost",
    "proven",
];
/// Larger files are refused by the store of the platform unless somebody has raised its limit.
const STORE_LIMIT_BYTES: u64 = 50_000_000;
/// Larger ones are more than the platform reads.
const READ_LIMIT_BYTES: u64 = 256_000_000;
/// So many warnings are told, and so many letters of each; the result must stay small.
const MOST_WARNINGS: usize = 40;
const LONGEST_TEXT: usize = 2_000;

/// The end of a job whose files are delivered, under the names that [`told_name`] gives. `result` is its `result.json`.
pub(super) fn succeeded(result: &Value, delivered: &Delivered) -> Answer {
    let mut output: Map<String, Value> =
        TOLD.iter().filter_map(|key| Some(((*key).to_owned(), result.get(key)?.clone()))).collect();
    let addresses = delivered.addresses();
    let has_adapter = addresses.contains_key("adapter_model.safetensors");
    output.insert("model_files".into(), json!(addresses));
    let sizes = delivered.files.iter().filter_map(|file| size_warning(&file.name, file.bytes));
    let metadata = output.entry("model_metadata").or_insert_with(|| json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        let known = metadata.get("warnings").and_then(Value::as_array).into_iter().flatten();
        let known = known.filter_map(Value::as_str).map(str::to_owned);
        let all: Vec<String> = sizes.chain(delivered.warnings.iter().cloned()).chain(known).collect();
        metadata.insert("warnings".into(), json!(few(all)));
    }
    // The platform would take an empty list for a success, and ask for ever.
    let missing =
        || "the adapter was trained and could not be delivered: there is no file to fetch; ask the operator".to_owned();
    let failed = result.get("error").and_then(Value::as_str).map(cut).or_else(|| (!has_adapter).then(missing));
    if failed.is_some() {
        output.insert("status".into(), json!("failed"));
    }
    Answer { output: Some(Value::Object(output)), error: failed, refresh: false }
}

/// The end of a job that failed: the error is what its owner reads, so it says what failed, why, and what to do.
pub(super) fn failed(job_id: &str, shown: &Shown, error: &str) -> Answer {
    let error = cut(error);
    let mut output = json!(shown);
    if let Some(output) = output.as_object_mut() {
        output.insert("status".into(), json!("failed"));
        output.insert("job_id".into(), json!(job_id));
        output.insert("error_message".into(), json!(error));
    }
    Answer { output: Some(output), error: Some(error), refresh: false }
}

/// The platform's users see files, not folders.
pub(super) fn told_name(name: &str) -> &str {
    name.strip_prefix("adapter/").unwrap_or(name)
}

fn size_warning(name: &str, bytes: u64) -> Option<String> {
    let megabytes = bytes / 1_000_000;
    if bytes > READ_LIMIT_BYTES {
        return Some(format!(
            "{name} has {megabytes} MB, and the platform reads files up to 256 MB; fetch it by its link"
        ));
    }
    (bytes > STORE_LIMIT_BYTES).then(|| {
        format!("{name} has {megabytes} MB; stores refuse files above 50 MB unless their limit was raised. A lower rank makes it smaller")
    })
}

fn few(mut warnings: Vec<String>) -> Vec<String> {
    let left = warnings.len().saturating_sub(MOST_WARNINGS);
    warnings.truncate(MOST_WARNINGS);
    let mut told: Vec<String> = warnings.iter().map(|warning| cut(warning)).collect();
    told.extend((left > 0).then(|| format!("and {left} more, in result.json")));
    told
}

fn cut(text: &str) -> String {
    if text.chars().count() <= LONGEST_TEXT {
        return text.to_owned();
    }
    text.chars().take(LONGEST_TEXT).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        redacted::Redacted,
        storage::upload::{DeliveredFile, Place},
    };

    fn result() -> Value {
        json!({
            "status": "success", "job_id": "j", "progress": 100.0, "current_epoch": 3, "current_step": 1500,
            "model_metadata": { "base_model": "b", "lora_rank": 16, "warnings": ["w"] },
            "metrics": { "training_loss": 0.45 }, "quality": { "overall_score": 4 }, "cost": null, "proven": true,
            "summary": { "much": "more" }, "proof": {},
        })
    }

    fn files(sizes: &[(&str, u64)]) -> Delivered {
        let place = Place::Link(Redacted::url("https://h/f?signature=s".parse().unwrap()));
        let file = |(name, bytes): &(&str, u64)| DeliveredFile {
            name: told_name(name).to_owned(),
            bytes: *bytes,
            sha256: [0; 32],
            place: place.clone(),
            sent: true,
        };
        Delivered { files: sizes.iter().map(file).collect(), ..Delivered::default() }
    }

    #[test]
    fn success_has_what_the_platform_reads_and_nothing_large() {
        let all =
            files(&[("adapter/adapter_model.safetensors", 5), ("adapter/adapter_config.json", 5), ("result.json", 5)]);
        let answer = succeeded(&result(), &all);
        let output = answer.output.unwrap();
        assert_eq!((answer.error, answer.refresh), (None, false));
        let names: Vec<&String> = output["model_files"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors", "result.json"]);
        assert_eq!((&output["current_epoch"], &output["quality"]["overall_score"]), (&json!(3), &json!(4)));
        assert_eq!(output["model_metadata"]["warnings"], json!(["w"]));
        assert!(output.get("summary").is_none() && output.get("proof").is_none());
    }

    #[test]
    fn without_an_adapter_to_fetch_it_is_a_failure() {
        for all in [files(&[]), files(&[("result.json", 5)])] {
            let answer = succeeded(&result(), &all);
            assert!(answer.error.unwrap().contains("could not be delivered"));
            assert_eq!(answer.output.unwrap()["status"], "failed");
        }
    }

    #[test]
    fn a_run_that_failed_is_never_told_as_a_success() {
        let mut failed = result();
        failed["status"] = json!("failed");
        failed["error"] = json!("the base has changed");
        let answer = succeeded(&failed, &files(&[("adapter/adapter_model.safetensors", 5)]));
        assert_eq!(answer.error.as_deref(), Some("the base has changed"));
    }

    #[test]
    fn large_files_carry_a_warning() {
        let warnings = |bytes| {
            let answer = succeeded(&result(), &files(&[("adapter/adapter_model.safetensors", bytes)]));
            answer.output.unwrap()["model_metadata"]["warnings"].as_array().unwrap().len()
        };
        assert_eq!((warnings(50_000_000), warnings(50_000_001), warnings(300_000_000)), (1, 2, 2));
    }

    #[test]
    fn the_result_stays_small() {
        let mut many = result();
        many["model_metadata"]["warnings"] = json!(vec!["x".repeat(10_000); 1000]);
        let answer = succeeded(&many, &files(&[("adapter/adapter_model.safetensors", 5)]));
        let warnings = answer.output.as_ref().unwrap()["model_metadata"]["warnings"].as_array().unwrap();
        assert_eq!(warnings.last().unwrap(), "and 960 more, in result.json");
        assert!(json!(answer).to_string().len() < 200_000);
    }

    #[test]
    fn a_failure_says_so_at_the_top() {
        let answer = json!(failed("j", &Shown::default(), "the dataset is empty; upload conversations"));
        assert_eq!(answer["error"], "the dataset is empty; upload conversations");
        assert_eq!((&answer["output"]["status"], &answer["output"]["job_id"]), (&json!("failed"), &json!("j")));
        assert_eq!(answer["output"]["current_epoch"], json!(0));
    }
}
