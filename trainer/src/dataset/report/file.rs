//! What is in one file of a job.

use std::collections::HashMap;

use serde::Serialize;

use super::{Lengths, REPORT_FILE, Source, average, share};
use crate::dataset::{
    facts::Document,
    finding::{Finding, FindingKind, Findings, Severity},
};

/// What is in one file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileReport {
    /// Its name, without folders.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// The recognised format.
    pub format: String,
    /// Lines that are not blank (in a file that is one JSON value: its items).
    pub lines: u64,
    /// Examples that can be trained on: the training pairs.
    pub examples: u64,
    /// Findings that left something out.
    pub skipped: u64,
    /// Distinct conversations.
    pub conversations: u64,
    /// Turns of a conversation, system prompts not counted.
    pub avg_turns_per_conversation: f64,
    /// Tokens of a turn, its share of system prompt and template included.
    pub avg_tokens_per_turn: f64,
    /// Assistant turns that are learnt.
    pub learnt_turns: u64,
    /// Tokens of all examples, after cutting.
    pub tokens: u64,
    /// Tokens that are learnt.
    pub learnt_tokens: u64,
    /// Share of the tokens that is learnt.
    pub learnt_share: f64,
    /// Share of the tokens that is read and not learnt.
    pub masked_share: f64,
    /// Lengths before cutting.
    pub lengths: Lengths,
    /// What was cut off.
    pub truncations: Truncations,
    /// Findings per kind, fatal ones first.
    pub finding_counts: Vec<FindingCount>,
    /// The first findings of each kind, fatal ones first.
    pub findings: Vec<Finding>,
}

/// What was cut off the beginnings of examples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Truncations {
    /// Examples that lost something.
    pub examples: u64,
    /// Turns that they lost.
    pub turns: u64,
    /// Tokens that they lost.
    pub tokens: u64,
}

/// How many findings of a kind there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FindingCount {
    /// The kind.
    pub kind: FindingKind,
    /// What it does to the job.
    pub severity: Severity,
    /// How many.
    pub count: u64,
    /// What it means and what is done about it.
    pub meaning: String,
}

// === impl FileReport ===

impl FileReport {
    pub(super) fn new(source: &Source<'_>, findings: &Findings) -> Self {
        let facts = source.facts;
        let documents = source.documents;
        let count = |(kind, count): (FindingKind, u64)| FindingCount {
            kind,
            severity: kind.severity(),
            count,
            meaning: kind.meaning().to_owned(),
        };
        let learnt_share = share(facts.target_tokens, facts.tokens);
        let cut = documents.iter().filter(|document| document.whole_tokens > document.tokens);
        Self {
            name: source.name.clone(),
            bytes: facts.bytes,
            sha256: facts.sha256.clone(),
            format: facts.format.clone(),
            lines: facts.lines,
            examples: facts.examples,
            skipped: findings.count_of(Severity::Skipped),
            conversations: facts.conversations,
            avg_turns_per_conversation: average(facts.turns, facts.conversations),
            avg_tokens_per_turn: average(tokens_of_longest(documents), facts.turns),
            learnt_turns: facts.learnt_turns,
            tokens: facts.tokens,
            learnt_tokens: facts.target_tokens,
            learnt_share,
            masked_share: share(facts.tokens.saturating_sub(facts.target_tokens), facts.tokens),
            lengths: Lengths::of(documents.iter().map(|document| document.whole_tokens)),
            truncations: Truncations {
                examples: cut.clone().count() as u64,
                turns: facts.cut_turns,
                tokens: cut.map(|document| u64::from(document.whole_tokens - document.tokens)).sum(),
            },
            finding_counts: findings.counts().map(count).collect(),
            findings: findings.iter().cloned().collect(),
        }
    }

    pub(super) fn counts_of(&self, severity: Severity) -> impl Iterator<Item = &FindingCount> {
        self.finding_counts.iter().filter(move |count| count.severity == severity)
    }

    /// The kept findings of a severity, by line.
    pub(super) fn of(&self, severity: Severity) -> Vec<&Finding> {
        let mut findings: Vec<&Finding> =
            self.findings.iter().filter(|finding| finding.severity() == severity).collect();
        findings.sort_by_key(|finding| finding.line);
        findings
    }

    /// ", first in line 7", where the kind belongs to lines.
    fn first_line(&self, kind: FindingKind) -> String {
        let line = self.findings.iter().find(|finding| finding.kind == kind).map_or(0, |finding| finding.line);
        if line == 0 { String::new() } else { format!(", first in line {line}") }
    }

    pub(super) fn warnings(&self, max_seq_length: usize) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.truncations.examples > 0 {
            warnings.push(format!(
                "{}: {} of {} examples exceed {max_seq_length} tokens; their oldest turns were cut ({} turns)",
                self.name, self.truncations.examples, self.examples, self.truncations.turns
            ));
        }
        let told = |count: &&FindingCount| {
            count.severity == Severity::Skipped || count.kind == FindingKind::ConversationInBothFiles
        };
        for count in self.finding_counts.iter().filter(told) {
            let (kind, first) = (count.kind, self.first_line(count.kind));
            let (times, name, meaning) = (count.count, kind.name(), kind.meaning());
            warnings.push(format!("{}: {times} × {name}{first}: {meaning}", self.name));
        }
        let quiet =
            self.counts_of(Severity::Kept).filter(|count| !told(count) && count.kind != FindingKind::HistoryCut);
        let quiet: Vec<String> = quiet.map(|count| format!("{} × {}", count.count, count.kind.name())).collect();
        if !quiet.is_empty() {
            warnings.push(format!("{}: used, and worth a look: {}; see {REPORT_FILE}", self.name, quiet.join(", ")));
        }
        warnings
    }
}

/// Tokens of every conversation's longest example, before cutting: where lines repeat the history, each turn counts once.
fn tokens_of_longest(documents: &[Document]) -> u64 {
    let mut longest: HashMap<u64, u32> = HashMap::new();
    for document in documents {
        let tokens = longest.entry(document.conversation).or_default();
        *tokens = document.whole_tokens.max(*tokens);
    }
    longest.values().map(|tokens| u64::from(*tokens)).sum()
}
