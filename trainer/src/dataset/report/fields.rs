//! What every field of the report means: the tables of `docs/datasets.md`.

use super::super::finding::{FindingKind, Severity};

/// Path and meaning, in the order of the file. A test holds this list against a real report.
const FIELDS: &[(&str, &str)] = &[
    ("report_version", "Version of this form."),
    ("ready", "Whether the job can run."),
    ("verdict", "The same in words, with what to do."),
    ("statistics.total_training_pairs", "Examples to learn from. A whole conversation in one line is one example."),
    ("statistics.total_validation_pairs", "Examples to measure with."),
    ("statistics.total_conversations", "Conversations of both sides."),
    ("statistics.total_tokens", "Tokens of both sides, after cutting."),
    ("statistics.avg_turns_per_conversation", "As in `training`."),
    ("statistics.avg_tokens_per_turn", "As in `training`."),
    (
        "statistics.validation_split",
        "The share of the conversations that was to be kept for validation; 0 where a validation file is given.",
    ),
    ("settings.max_seq_length", "Longest example in tokens."),
    ("settings.train_on_prompt", "The whole text is learnt."),
    ("settings.train_on_all_turns", "All assistant turns are learnt, in every format."),
    ("settings.packing", "Examples share micro-batches without padding."),
    ("settings.micro_batch_tokens", "Most tokens of a micro-batch."),
    ("settings.batch_size", "Examples of an optimiser step."),
    ("settings.num_epochs", "Passes over the training side."),
    ("settings.max_steps", "Limit of optimiser steps, or null."),
    ("settings.validation_split", "As the job has it."),
    ("settings.seed", "Seed of order and split."),
    ("rough_tokens", "No base model was at hand: a small tokenizer counted, and numbers of tokens are rough."),
    ("template.source", "Where the chat template comes from."),
    ("template.notes", "What is worth knowing about it."),
    ("training.name", "Name of the file, without folders."),
    ("training.bytes", "Its size."),
    ("training.sha256", "Its SHA-256."),
    ("training.format", "The recognised format."),
    ("training.lines", "Lines that are not blank; in a file that is one JSON value: its items."),
    ("training.examples", "Examples that can be trained on."),
    ("training.skipped", "Findings that left something out."),
    ("training.conversations", "Distinct conversations among the examples."),
    (
        "training.avg_turns_per_conversation",
        "Turns of a conversation's longest example; system prompts are not counted.",
    ),
    (
        "training.avg_tokens_per_turn",
        "Tokens of the conversations' longest examples, before cutting, by their turns; so system prompts and the template's \
         own tokens are shared out among the turns.",
    ),
    ("training.learnt_turns", "Assistant turns that are learnt."),
    ("training.tokens", "Tokens of all examples, after cutting."),
    ("training.learnt_tokens", "Tokens among them that are learnt."),
    ("training.learnt_share", "`learnt_tokens` by `tokens`."),
    ("training.masked_share", "The rest: read, and not learnt."),
    ("training.lengths.longest", "Longest example, before cutting."),
    ("training.lengths.median", "Half of the examples are no longer."),
    ("training.lengths.p95", "95 of 100 examples are no longer."),
    ("training.lengths.buckets[].from", "Shortest length of a bucket of the histogram."),
    ("training.lengths.buckets[].to", "Longest length of the bucket."),
    ("training.lengths.buckets[].examples", "Examples in it."),
    ("training.truncations.examples", "Examples that lost their oldest turns."),
    ("training.truncations.turns", "Turns that they lost."),
    ("training.truncations.tokens", "Tokens that they lost."),
    ("training.finding_counts[].kind", "A kind of finding, see below."),
    ("training.finding_counts[].severity", "`fatal`, `skipped` or `kept`."),
    ("training.finding_counts[].count", "How many there are of this kind."),
    ("training.finding_counts[].meaning", "What it means and what is done about it."),
    ("training.findings[].kind", "The kind of a finding; the first 1000 of each kind are listed."),
    ("training.findings[].line", "Its line, counted from 1."),
    ("training.findings[].message", "What was found."),
    ("validation", "The validation file in the form of `training`, or null."),
    ("split.by", "`conversation`, `file` (a validation file is given) or `none`."),
    ("split.training.examples", "Examples to learn from."),
    ("split.training.conversations", "Their conversations."),
    ("split.training.tokens", "Their tokens, after cutting."),
    ("split.training.learnt_tokens", "Those of them that are learnt."),
    ("split.validation", "The same of the side to measure with."),
    ("packing.capacity", "Most tokens of a micro-batch."),
    ("packing.micro_batches_per_epoch", "Micro-batches of the first epoch; later epochs have another order."),
    ("packing.fill_share", "Share of their capacity that tokens fill."),
    ("packing.padding_share", "Share of what is computed that is padding."),
    ("steps.per_epoch", "Optimiser steps of an epoch."),
    ("steps.total", "Optimiser steps of the whole run."),
];

/// The tables of fields and findings, in Markdown.
pub fn documentation() -> String {
    let mut text = String::from("| field | meaning |\n|---|---|\n");
    for (path, meaning) in FIELDS {
        text.push_str(&format!("| `{path}` | {meaning} |\n"));
    }
    text.push_str("\n| finding | what happens | meaning |\n|---|---|---|\n");
    for kind in FindingKind::ALL {
        let severity = match kind.severity() {
            Severity::Fatal => "the job is refused",
            Severity::Skipped => "left out",
            Severity::Kept => "used",
        };
        text.push_str(&format!("| `{}` | {severity} | {} |\n", kind.name(), kind.meaning()));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{
        super::tests::{file, report_of},
        *,
    };

    /// The paths of every value that is no object; of lists, those of the first item.
    fn paths(value: &Value, path: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                fields.iter().for_each(|(name, value)| paths(value, &join(name), found));
            }
            Value::Array(items) if items.first().is_some_and(Value::is_object) => {
                paths(&items[0], &format!("{path}[]"), found);
            }
            _ => found.push(path.to_owned()),
        }
    }

    #[test]
    fn the_list_is_that_of_a_real_report() {
        let training = file(&[(1, 100, 90), (2, 70, 70)]);
        let report = serde_json::to_value(report_of(&training, None)).unwrap();
        let mut found = Vec::new();
        paths(&report, "", &mut found);
        // The second side is written as the first.
        found.retain(|path| !path.starts_with("split.validation."));
        let place = found.iter().position(|path| path == "packing.capacity").unwrap();
        found.insert(place, "split.validation".into());
        let listed: Vec<&str> = FIELDS.iter().map(|(path, _)| *path).collect();
        assert_eq!(listed, found);
    }

    #[test]
    fn the_documentation_has_the_tables() {
        let page = include_str!("../../../../docs/datasets.md");
        let tables = documentation();
        assert!(page.ends_with(&tables), "docs/datasets.md must end with these tables:\n{tables}");
    }
}
