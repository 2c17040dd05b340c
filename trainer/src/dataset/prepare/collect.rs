//! Results in the order of the file: duplicates go, sums grow, documents are written.

use std::collections::{HashMap, hash_map::Entry};

use super::pipeline::Batch;
use crate::{
    Result,
    dataset::{
        encode::Encoded,
        facts::{Document, FileFacts},
        finding::{Finding, FindingKind},
        store::StoreWriter,
    },
};

/// Takes the batches of a file one after the other.
pub(super) struct Collector {
    writer: StoreWriter,
    facts: FileFacts,
    /// The line of every example, by its fingerprint: 24 bytes each.
    seen: HashMap<[u64; 2], u64, ahash::RandomState>,
    /// The most turns of an example of each conversation.
    turns: HashMap<u64, u32, ahash::RandomState>,
}

// === impl Collector ===

impl Collector {
    pub(super) fn new(writer: StoreWriter) -> Self {
        Self { writer, facts: FileFacts::default(), seen: HashMap::default(), turns: HashMap::default() }
    }

    /// Takes a batch.
    pub(super) fn take(&mut self, batch: Batch) -> Result<()> {
        let mut findings = batch.findings;
        let mut start = 0;
        for (encoded, own) in batch.examples {
            let end = start + encoded.documents.iter().map(|document| document.tokens as usize).sum::<usize>();
            match self.seen.entry(encoded.fingerprint) {
                Entry::Occupied(earlier) => findings.push(duplicate(encoded.line, *earlier.get())),
                Entry::Vacant(place) => {
                    place.insert(encoded.line);
                    // What was done to an example that is not used is of no interest.
                    findings.extend(own);
                    self.write(&encoded, &batch.tokens[start..end])?;
                }
            }
            start = end;
        }
        // The reader's findings came first; the sort keeps what stands on one line in its order.
        findings.sort_by_key(|finding| finding.line);
        findings.into_iter().for_each(|finding| self.facts.findings.push(finding));
        Ok(())
    }

    fn write(&mut self, encoded: &Encoded, tokens: &[u32]) -> Result<()> {
        let mut rest = tokens;
        for document in &encoded.documents {
            let (own, after) = rest.split_at(document.tokens as usize);
            rest = after;
            let place = Document {
                line: encoded.line,
                conversation: encoded.conversation,
                offset: self.facts.tokens,
                tokens: document.tokens,
                targets: document.targets,
                whole_tokens: document.whole_tokens,
                cut_turns: encoded.cut_turns,
            };
            self.writer.push(place, own)?;
            self.facts.tokens += u64::from(document.tokens);
            self.facts.target_tokens += u64::from(document.targets);
        }
        self.facts.examples += 1;
        self.facts.learnt_turns += u64::from(encoded.learnt_turns);
        self.facts.cut_turns += u64::from(encoded.cut_turns);
        let turns = self.turns.entry(encoded.conversation).or_default();
        *turns = encoded.turns.max(*turns);
        Ok(())
    }

    /// The store as far as it was written, and the sums.
    pub(super) fn into_parts(self) -> (StoreWriter, FileFacts) {
        let Self { writer, mut facts, turns, .. } = self;
        facts.conversations = turns.len() as u64;
        facts.turns = turns.values().map(|turns| u64::from(*turns)).sum();
        (writer, facts)
    }
}

fn duplicate(line: u64, earlier: u64) -> Finding {
    let message = format!("the same tokens with the same targets stand on line {earlier}; the example is used once");
    Finding::new(FindingKind::Duplicate, line, message)
}
