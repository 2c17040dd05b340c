//! Each trap by its name, and properties of all formats.

mod containers;
mod formats;
mod properties;
mod traps;

use std::io::{BufReader, Cursor};

use super::{Format, Records};
use crate::dataset::{
    example::{Body, Example, Message},
    finding::{Finding, FindingKind, Severity},
};

/// A whole file, read.
#[derive(Debug)]
struct Read {
    format: Option<Format>,
    examples: Vec<Example>,
    findings: Vec<Finding>,
    lines: u64,
}

// === impl Read ===

impl Read {
    /// The findings of a kind: lines and texts.
    fn of(&self, kind: FindingKind) -> Vec<(u64, &str)> {
        let of_kind = self.findings.iter().filter(|finding| finding.kind == kind);
        of_kind.map(|finding| (finding.line, finding.message.as_str())).collect()
    }

    /// Kinds and lines of all findings, sorted.
    fn kinds(&self) -> Vec<(FindingKind, u64)> {
        let mut kinds = self.findings.iter().map(|finding| (finding.kind, finding.line)).collect::<Vec<_>>();
        kinds.sort_unstable();
        kinds
    }

    /// The one finding, which must be of this kind.
    fn only(&self, kind: FindingKind) -> (u64, &str) {
        assert_eq!(self.findings.len(), 1, "{:#?}", self.findings);
        assert_eq!(self.findings[0].kind, kind, "{:#?}", self.findings);
        (self.findings[0].line, &self.findings[0].message)
    }

    /// Roles and contents of an example.
    fn turns(&self, index: usize) -> Vec<(&str, &str)> {
        messages(&self.examples[index])
            .iter()
            .map(|message| (message.role.name(), message.content.as_deref().unwrap_or("(none)")))
            .collect()
    }
}

fn messages(example: &Example) -> &[Message] {
    match &example.body {
        Body::Messages(messages) => messages,
        Body::Text(text) => panic!("{text:?} is no conversation"),
    }
}

/// Reads a file with batches and chunks small enough that everything crosses their borders.
fn read(bytes: impl AsRef<[u8]>) -> Read {
    let bytes = bytes.as_ref().to_vec();
    let mut records = Records::from_reader(BufReader::with_capacity(7, Cursor::new(bytes)), "data").unwrap();
    let (mut examples, mut findings) = (Vec::new(), Vec::new());
    while let Some(batch) = records.next_batch(1000).unwrap() {
        for record in batch {
            let parsed = record.parse();
            let refused = parsed.findings.iter().any(|finding| finding.severity() < Severity::Kept);
            assert_eq!(parsed.example.is_none(), refused, "{:?}", parsed.findings);
            examples.extend(parsed.example);
            findings.extend(parsed.findings);
        }
    }
    findings.extend(records.findings());
    Read { format: records.format(), examples, findings, lines: records.lines() }
}
