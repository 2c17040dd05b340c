//! What there is to say about a dataset before anything is trained on it: `dataset_report.json`, and the same for people.

mod fields;
mod file;
mod lengths;
mod plan;
mod summary;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, path::Path};

use serde::Serialize;

use super::{
    batches,
    example::Conversation,
    facts::{Document, FileFacts},
    finding::{Finding, FindingKind, Findings, Severity},
    packing::Packing,
    split::Split,
};
use crate::{Error, Result, artifacts::atomic};

pub use fields::documentation;
pub use file::{FileReport, FindingCount, Truncations};
pub use lengths::{Bucket, Lengths};
pub use plan::{PackingReport, SideReport, SplitKind, SplitReport, StepsReport};
use summary::counted;

/// The name of the report in a job's output folder.
pub const REPORT_FILE: &str = "dataset_report.json";
/// The version of the report's form; a field that changes its meaning makes it grow.
const REPORT_VERSION: u32 = 1;
/// So many fatal findings stand in the text of a refusal; the report has the others.
const FINDINGS_IN_REFUSAL: usize = 10;

/// The whole report. Fields are written in this order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatasetReport {
    /// The version of this form.
    pub report_version: u32,
    /// Whether the job can run.
    pub ready: bool,
    /// Why, or why not and what to do.
    pub verdict: String,
    /// The platform's own numbers, under its own names.
    pub statistics: Statistics,
    /// The parameters of the job that decide what becomes of the dataset.
    pub settings: Settings,
    /// No base model was at hand, so a small tokenizer counted: numbers of tokens are rough.
    pub rough_tokens: bool,
    /// The chat template.
    pub template: TemplateReport,
    /// The file to learn from.
    pub training: FileReport,
    /// The file to measure with, where the job names one.
    pub validation: Option<FileReport>,
    /// Who is on which side.
    pub split: SplitReport,
    /// How examples are put into micro-batches.
    pub packing: PackingReport,
    /// Optimiser steps.
    pub steps: StepsReport,
}

/// The numbers that the platform keeps of a dataset.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Statistics {
    /// Examples to learn from.
    pub total_training_pairs: u64,
    /// Examples to measure with.
    pub total_validation_pairs: u64,
    /// Conversations of both sides.
    pub total_conversations: u64,
    /// Tokens of both sides, after cutting.
    pub total_tokens: u64,
    /// Turns of a conversation, system prompts not counted.
    pub avg_turns_per_conversation: f64,
    /// Tokens of a turn, its share of system prompt and template included.
    pub avg_tokens_per_turn: f64,
    /// The share of the conversations that was to be kept for validation; 0 where a file of its own is given.
    pub validation_split: f64,
}

/// The parameters that decide what becomes of a dataset.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// Longest example in tokens.
    pub max_seq_length: usize,
    /// The whole text is learnt.
    pub train_on_prompt: bool,
    /// All assistant turns are learnt, also where a line is one answer with its history.
    pub train_on_all_turns: bool,
    /// Examples share micro-batches without padding.
    pub packing: bool,
    /// Most tokens of a micro-batch.
    pub micro_batch_tokens: u32,
    /// Examples of an optimiser step.
    pub batch_size: usize,
    /// Passes over the training side.
    pub num_epochs: u32,
    /// Limit of optimiser steps.
    pub max_steps: Option<u64>,
    /// Share of the conversations kept for validation.
    pub validation_split: f64,
    /// Seed of order and split.
    pub seed: u64,
}

/// The chat template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TemplateReport {
    /// Where it comes from.
    pub source: String,
    /// What is worth knowing about it.
    pub notes: Vec<String>,
}

/// A file that was read.
#[derive(Debug, Clone)]
pub struct Source<'a> {
    /// The file's name, without folders.
    pub name: String,
    /// What was found in it.
    pub facts: &'a FileFacts,
    /// Its examples.
    pub documents: &'a [Document],
}

// === impl Settings ===

impl Settings {
    /// How examples are put into micro-batches.
    pub fn packing(&self) -> Packing {
        Packing { capacity: self.micro_batch_tokens, packed: self.packing }
    }

    /// Optimiser steps for so many training examples.
    pub fn steps(&self, examples: usize) -> StepsReport {
        let per_epoch = batches::steps_per_epoch(examples, self.batch_size) as u64;
        let all = per_epoch * u64::from(self.num_epochs);
        StepsReport { per_epoch, total: self.max_steps.map_or(all, |limit| limit.min(all)) }
    }
}

// === impl DatasetReport ===

impl DatasetReport {
    /// Measures a training file and, where the job names one, a validation file. `split` has the documents of each side:
    /// with a validation file, its `validation` counts that file's documents.
    pub fn new(
        training: &Source<'_>,
        validation: Option<&Source<'_>>,
        split: &Split,
        settings: Settings,
    ) -> Result<Self> {
        let measured = validation.unwrap_or(training);
        let both = validation.map(|validation| findings_across(training.documents, validation)).transpose()?;
        let split_report = SplitReport {
            by: match validation {
                Some(_) => SplitKind::File,
                None if split.validation.is_empty() => SplitKind::None,
                None => SplitKind::Conversation,
            },
            training: SideReport::new(training.documents, &split.training),
            validation: SideReport::new(measured.documents, &split.validation),
        };
        let training_report = FileReport::new(training, &training.facts.findings);
        let validation_report =
            validation.zip(both).map(|(validation, findings)| FileReport::new(validation, &findings));
        let mut report = Self {
            report_version: REPORT_VERSION,
            ready: true,
            verdict: String::new(),
            rough_tokens: false,
            statistics: statistics(&training_report, &split_report, validation, &settings),
            template: TemplateReport {
                source: training.facts.template.clone(),
                notes: training.facts.template_notes.clone(),
            },
            packing: PackingReport::new(training.documents, &split.training, &settings)?,
            steps: settings.steps(split.training.len()),
            settings,
            training: training_report,
            validation: validation_report,
            split: split_report,
        };
        report.ready = report.fatal_findings() == 0;
        report.verdict = report.verdict_text();
        Ok(report)
    }

    /// Writes the report: whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::file(path, format!("the report cannot be written as JSON: {error}")))?;
        atomic::write(path, format!("{text}\n").as_bytes())
    }

    /// Why nothing can be trained, with the first fatal findings and the place of the others; `None` where it can.
    pub fn refusal(&self, report: &Path) -> Option<Error> {
        if self.ready {
            return None;
        }
        let mut text = String::from("the dataset is refused before anything is trained");
        for file in self.files() {
            let fatal = file.of(Severity::Fatal);
            let count: u64 = file.counts_of(Severity::Fatal).map(|count| count.count).sum();
            if count == 0 {
                continue;
            }
            text.push_str(&format!("; {}, {}", file.name, counted(count, "fatal finding")));
            for finding in fatal.iter().take(FINDINGS_IN_REFUSAL) {
                text.push_str(&format!("\n  {}{} ({})", place(finding), finding.message, finding.kind.name()));
            }
            let more = count.saturating_sub(FINDINGS_IN_REFUSAL as u64);
            if more > 0 {
                text.push_str(&format!("\n  … and {more} more"));
            }
        }
        text.push_str(&format!("\nCorrect the file and run the job again; all findings are in {}", report.display()));
        Some(Error::Invalid(text))
    }

    /// What the run's owner should know, in short.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> =
            self.template.notes.iter().map(|note| format!("chat template: {note}")).collect();
        for file in self.files() {
            warnings.extend(file.warnings(self.settings.max_seq_length));
        }
        if self.settings.validation_split > 0.0 && self.split.by == SplitKind::None {
            warnings.push(
                "the dataset is a single conversation, so nothing is kept for validation; name a validation file \
                 (validation_url) to measure with"
                    .into(),
            );
        }
        warnings
    }

    fn files(&self) -> impl Iterator<Item = &FileReport> {
        std::iter::once(&self.training).chain(&self.validation)
    }

    fn fatal_findings(&self) -> u64 {
        self.files().flat_map(|file| file.counts_of(Severity::Fatal)).map(|count| count.count).sum()
    }

    fn verdict_text(&self) -> String {
        if !self.ready {
            let count = counted(self.fatal_findings(), "fatal finding");
            return format!("refused: {count}; correct the file and check it again");
        }
        let skipped: u64 = self.files().map(|file| file.skipped).sum();
        let left_out = if skipped == 0 { String::new() } else { format!("; {skipped} left out") };
        let sides = &self.split;
        format!(
            "ready: {} to learn from, {} to measure with, {}{left_out}",
            counted(sides.training.examples, "example"),
            sides.validation.examples,
            counted(self.steps.total, "optimiser step")
        )
    }
}

/// Where a finding is; line 0 is the whole file.
fn place(finding: &Finding) -> String {
    if finding.line == 0 { String::new() } else { format!("line {}: ", finding.line) }
}

fn statistics(
    training: &FileReport,
    split: &SplitReport,
    validation: Option<&Source<'_>>,
    settings: &Settings,
) -> Statistics {
    Statistics {
        total_training_pairs: split.training.examples,
        total_validation_pairs: split.validation.examples,
        total_conversations: split.training.conversations + split.validation.conversations,
        total_tokens: split.training.tokens + split.validation.tokens,
        avg_turns_per_conversation: training.avg_turns_per_conversation,
        avg_tokens_per_turn: training.avg_tokens_per_turn,
        validation_split: if validation.is_some() { 0.0 } else { settings.validation_split },
    }
}

/// The findings of the validation file, with its conversations that are also in the training file.
fn findings_across(training: &[Document], validation: &Source<'_>) -> Result<Findings> {
    let known: HashSet<u64> = training.iter().map(|document| document.conversation).collect();
    let mut findings = validation.facts.findings.clone();
    let mut seen = HashSet::new();
    for document in validation.documents.iter().filter(|document| Conversation::is_named(document.conversation)) {
        if known.contains(&document.conversation) && seen.insert(document.conversation) {
            let message = "the conversation is also in the training file, so its validation loss will look too good";
            findings.push(Finding::new(FindingKind::ConversationInBothFiles, document.line, message));
        }
    }
    Ok(findings)
}

/// A share with four digits behind the point; 0 of nothing.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (1e4 * part as f64 / whole as f64).round() / 1e4 }
}

/// A mean with two digits behind the point; 0 of nothing.
fn average(sum: u64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { (100.0 * sum as f64 / count as f64).round() / 100.0 }
}
