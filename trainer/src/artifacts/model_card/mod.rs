//! `README.md`: the model card, for whoever finds the adapter and was not there when it was made.

mod escape;
mod loading;

use std::path::Path;

use serde_json::Value;

use super::{
    RunRecord, loss_curve,
    quality::{Convergence, Quality},
};
use crate::{
    Result,
    dataset::report::{DatasetReport, REPORT_FILE, SplitKind},
};
use escape::{markdown, quoted};

/// The name of the file in a job's output folder.
pub const CARD_FILE: &str = "README.md";

/// The settings in the card: the name of the parameter, in words. When and how often is saved is none of them.
const SETTINGS: &[(&str, &str)] = &[
    ("learning_rate", "peak learning rate"),
    ("schedule", "schedule"),
    ("warmup", "warm-up"),
    ("batch_size", "examples of a batch"),
    ("gradient_accumulation_steps", "batches per step"),
    ("micro_batch_tokens", "tokens of a micro-batch"),
    ("recompute", "layers computed again for the backward pass"),
    ("num_epochs", "epochs"),
    ("max_steps", "limit of steps"),
    ("optimizer", "optimiser"),
    ("adam_beta1", "decay of its first moment"),
    ("adam_beta2", "decay of its second moment"),
    ("adam_epsilon", "its epsilon"),
    ("weight_decay", "weight decay"),
    ("max_grad_norm", "gradients clipped to norm"),
    ("loraplus_lr_ratio", "learning rate of B over that of A (LoRA+)"),
    ("neftune_noise_alpha", "alpha of the noise on embeddings (NEFTune), 0 for none"),
    ("router_aux_loss", "load-balancing loss of the routers"),
    ("unhit_experts", "experts without a token in a step"),
    ("init_adapter", "begun from the adapter"),
    ("lora_rank", "LoRA rank"),
    ("lora_alpha", "LoRA alpha"),
    ("lora_dropout", "LoRA dropout"),
    ("use_rslora", "rsLoRA"),
    ("targets", "adapted linears"),
    ("expert_rank", "rank in routed experts"),
    ("base_precision", "base while training"),
    ("adapter_dialect", "dialect of the adapter"),
    ("adapter_dtype", "numbers in the adapter"),
    ("max_seq_length", "longest example, tokens"),
    ("packing", "packing"),
    ("train_on_prompt", "prompts are learnt too"),
    ("train_on_all_turns", "all assistant turns are learnt"),
    ("validation_split", "share kept for validation"),
    ("eval_steps", "steps between evaluations"),
    ("eval_epochs", "epochs between evaluations, where no steps are given"),
    ("early_stopping_patience", "evaluations without a better one that end it"),
    ("early_stopping_threshold", "better is lower by more than"),
    ("load_best_at_end", "the best adapter instead of the last"),
    ("max_loss_growth", "growth of the loss that ends it, 0 for none"),
    ("seed", "seed"),
];

/// The whole card.
pub fn model_card(record: &RunRecord) -> Result<String> {
    let parts = [
        front_matter(record),
        introduction(record),
        format!("## Results\n\n{}", results(record)),
        format!("## Data\n\n{}", data(record.dataset)),
        format!("## Settings\n\n{}", settings(record)?),
        format!("## How to load it\n\n{}", loading::instructions(record)),
        format!("## What to know\n\n{}", warnings(record)),
        format!("## How it was made\n\n{}", provenance(record)),
    ];
    Ok(parts.join("\n\n") + "\n")
}

/// What the Hub reads.
fn front_matter(record: &RunRecord) -> String {
    let mut lines = vec!["---".to_owned()];
    lines.extend(record.base.license.as_ref().map(|license| format!("license: {}", quoted(license))));
    // A folder of this machine is no model of the Hub.
    if is_hub_name(&record.base.name) {
        lines.push(format!("base_model: {}", quoted(&record.base.name)));
        lines.push("base_model_relation: adapter".into());
    }
    lines.push("library_name: peft\npipeline_tag: text-generation".into());
    lines.push("tags:\n- lora\n- qlora\n- moe\n- brightrun\n---".into());
    lines.join("\n")
}

/// `name` or `owner/name` of letters that the Hub allows.
fn is_hub_name(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    let letters = |part: &&str| {
        let allowed = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        !part.is_empty() && part.chars().all(allowed) && !part.starts_with(['-', '.']) && !part.ends_with(['-', '.'])
    };
    parts.len() <= 2 && parts.iter().all(letters) && name.len() <= 96
}

fn introduction(record: &RunRecord) -> String {
    let RunRecord { base, base_parameters, trainable_parameters, .. } = record;
    let asked = match &base.asked {
        Some(asked) if *asked != base.name => {
            format!(
                " The job asked for {}; the machine that trained it was set up with this base instead.",
                markdown(asked)
            )
        }
        _ => String::new(),
    };
    format!(
        "# {}\n\nA LoRA adapter for {}: {} trained parameters beside {} frozen ones of a mixture-of-experts model. It does \
         nothing without its base, and belongs to no other.{asked}",
        markdown(record.job_id),
        markdown(&base.name),
        millions(*trainable_parameters),
        millions(*base_parameters),
    )
}

fn results(record: &RunRecord) -> String {
    let summary = record.history.summary();
    let quality = Quality::of_history(record.history);
    let mut rows: Vec<(&str, String)> = Vec::new();
    let mut loss = |name: &'static str, value: Option<f64>| {
        rows.extend(value.map(|value| (name, loss_curve::short(value))));
    };
    loss("training loss of the first step", summary.first_loss);
    loss("training loss at the end, smoothed", summary.final_loss);
    loss("first validation loss", summary.first_validation_loss);
    loss("best validation loss", summary.best_validation_loss);
    loss("last validation loss", summary.last_validation_loss);
    loss("perplexity (exp of the last validation loss)", summary.perplexity);
    rows.push(("steps", format!("{} of {}", summary.steps, record.dataset.steps.total)));
    rows.push(("tokens seen", summary.tokens.to_string()));
    rows.push(("tokens learnt", summary.target_tokens.to_string()));
    rows.extend(summary.mean_tokens_per_second.map(|speed| ("tokens a second", format!("{speed:.1}"))));
    rows.push(("seconds of training", format!("{:.1}", summary.training_seconds)));
    rows.extend(
        summary
            .peak_memory_bytes
            .map(|bytes| ("most memory in use, GiB", format!("{:.2}", bytes as f64 / 2f64.powi(30)))),
    );
    let experts = summary.experts.and_then(|experts| experts.never_used_share);
    rows.extend(experts.map(|share| ("routed experts that never got a token", format!("{:.1} %", 100.0 * share))));
    format!(
        "{}\n\n![Loss over the steps]({})\n\n{}",
        verdict(&quality),
        loss_curve::PNG_FILE,
        table(("result", "value"), &rows)
    )
}

fn verdict(quality: &Quality) -> String {
    let fall = match quality.loss_reduction_percent {
        Some(percent) if percent < 0.0 => format!(": the smoothed training loss rose by {:.1} %", -percent),
        Some(percent) => format!(": the smoothed training loss fell by {percent:.1} %"),
        None => String::new(),
    };
    let gap = match (quality.convergence_quality, quality.validation_gap) {
        (Convergence::Overfit, Some(gap)) => format!(
            ", but the validation loss is {} above it: the adapter knows its examples by heart. Fewer epochs, a lower rank or more \
             data may help",
            loss_curve::short(gap)
        ),
        _ => String::new(),
    };
    format!(
        "{} {}{fall}{gap}. Stars measure how far the loss fell, not how good the answers are.",
        quality.stars(),
        quality.convergence_quality.name()
    )
}

fn data(report: &DatasetReport) -> String {
    let mut text = String::new();
    for file in std::iter::once(&report.training).chain(&report.validation) {
        text.push_str(&format!(
            "* {}: {} examples of {} conversations, format {}, {} tokens of which {:.1} % are learnt, SHA-256 `{}`.\n",
            markdown(&file.name),
            file.examples,
            file.conversations,
            markdown(&file.format),
            file.tokens,
            100.0 * file.learnt_share,
            file.sha256.chars().filter(char::is_ascii_hexdigit).collect::<String>(),
        ));
        if file.truncations.examples > 0 {
            text.push_str(&format!("  Too long, and without their oldest turns: {}.\n", file.truncations.examples));
        }
        if file.skipped > 0 {
            text.push_str(&format!("  Left out: {}; `{REPORT_FILE}` says what and why.\n", file.skipped));
        }
    }
    let split = &report.split;
    let (training, validation) = (split.training.examples, split.validation.examples);
    text.push_str(&match split.by {
        SplitKind::None => format!("* All {training} examples were learnt; nothing was kept to measure with."),
        SplitKind::File => format!("* {training} examples were learnt, {validation} of the second file measured with."),
        SplitKind::Conversation => format!(
            "* {training} examples were learnt. {validation} were kept to measure with; no conversation is on both sides."
        ),
    });
    text
}

fn settings(record: &RunRecord) -> Result<String> {
    let parameters = serde_json::to_value(record.parameters)
        .map_err(|error| crate::Error::Invalid(format!("the parameters cannot be written: {error}")))?;
    let row = |(name, label): &(&'static str, &'static str)| {
        let shown = match parameters.get(name)? {
            Value::Null => return None,
            // The folders above it are a matter of the machine.
            Value::String(path) if *name == "init_adapter" => {
                markdown(&Path::new(path).file_name().unwrap_or_default().to_string_lossy())
            }
            Value::String(text) => markdown(text),
            Value::Bool(flag) => if *flag { "yes" } else { "no" }.to_owned(),
            Value::Number(number) => number.to_string(),
            Value::Array(items) => {
                markdown(&items.iter().map(|item| item.as_str().unwrap_or_default()).collect::<Vec<_>>().join(", "))
            }
            Value::Object(parts) => {
                let part = |(name, value): (&String, &Value)| format!("{name} {value}");
                markdown(&parts.iter().map(part).collect::<Vec<_>>().join(", "))
            }
        };
        Some((*label, shown))
    };
    Ok(table(("setting", "value"), &SETTINGS.iter().filter_map(row).collect::<Vec<_>>()))
}

fn warnings(record: &RunRecord) -> String {
    let mut lines: Vec<String> = Vec::new();
    lines.extend(record.error.map(|error| format!("* **The run did not end well**: {}", markdown(error))));
    let last = record.history.summary().steps;
    if record.adapter_step != last {
        lines.push(format!("* The adapter is that after step {}, not after the last one.", record.adapter_step));
    }
    lines.extend(record.warnings.iter().map(|warning| format!("* {}", markdown(warning))));
    lines.extend(record.proof.failures().iter().map(|failure| format!("* **Not proven**: {}", markdown(failure))));
    if lines.is_empty() { "Nothing was found that you should mind.".into() } else { lines.join("\n") }
}

fn provenance(record: &RunRecord) -> String {
    let program = record.program;
    let mut text = format!("Made by {} {}", markdown(&program.name), markdown(&program.version));
    text.push_str(" with QLoRA: the base stayed frozen, and matrices of low rank beside its linears learnt. ");
    text.push_str(if record.proof.proven() {
        "Checked at the end: the base is bit for bit what it was, the adapter changes the model, every op agrees with its \
         reference, and the saved file gives the loss that is reported here."
    } else {
        "Not everything that is checked at the end held; see above."
    });
    text.push_str(" Every number here follows from `metrics.jsonl`; `result.json` has them all.");
    let hexadecimal = |hash: &str| hash.chars().filter(char::is_ascii_hexdigit).collect::<String>();
    if let Some(hash) = &record.base.sha256 {
        text.push_str(&format!("\n\nSHA-256 of the base model's weights: `{}`.", hexadecimal(hash)));
    }
    if let Some(revision) = &record.base.revision {
        text.push_str(&format!("\n\nRevision of the base model: {}.", markdown(revision)));
    }
    text
}

fn table(head: (&str, &str), rows: &[(&str, String)]) -> String {
    let mut text = format!("| {} | {} |\n|---|---|", head.0, head.1);
    rows.iter().for_each(|(name, value)| text.push_str(&format!("\n| {name} | {value} |")));
    text
}

/// A number of parameters as people say it.
fn millions(count: u64) -> String {
    match count {
        0..1_000_000 => count.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1} million", count as f64 / 1e6),
        _ => format!("{:.1} billion", count as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests;
