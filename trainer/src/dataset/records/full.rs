//! BrightRun's full JSON: one object, read one conversation at a time. Its other keys may stand before or after the
//! conversations.

use std::{
    collections::VecDeque,
    io::{self, BufRead},
};

use serde_json::Value;

use super::{
    container::{Entry, Source},
    items::{after_the_end, broken, take},
    lines::MAX_LINE_BYTES,
    record::Origin,
    scanner::{Scanner, Step, Taken},
};
use crate::dataset::finding::{Finding, FindingKind};

/// Longest element of `conversations`; each of its pairs is held to [`MAX_LINE_BYTES`].
const MAX_CONVERSATION_BYTES: usize = 64 << 20;
/// Longest metadata that is looked at.
const MAX_METADATA_BYTES: usize = 1 << 20;
/// What a file calls the number of its pairs.
const PAIR_COUNT_KEYS: [&str; 2] = ["total_pairs", "total_training_pairs"];

/// Reads the pairs of one file.
pub(super) struct Full {
    scanner: Scanner<Source>,
    place: Place,
    conversations: u64,
    queue: VecDeque<Entry>,
}

enum Place {
    Before,
    Object { first: bool },
    Conversations { first: bool },
    After,
    Over,
}

// === impl Full ===

impl Full {
    /// Reads an object that is the next thing in `source`.
    pub(super) fn new(source: Source) -> Self {
        Self { scanner: Scanner::new(source, 1), place: Place::Before, conversations: 0, queue: VecDeque::new() }
    }

    /// Bytes read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.scanner.bytes()
    }

    /// The next pair, or what was noticed before it.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        loop {
            if let Some(entry) = self.queue.pop_front() {
                return Ok(Some(entry));
            }
            match self.place {
                Place::Over => return Ok(None),
                Place::Before => {
                    self.scanner.peek()?;
                    self.scanner.bump();
                    self.place = Place::Object { first: true };
                }
                Place::Object { first } => self.read_key(first)?,
                Place::Conversations { first } => self.read_conversation(first)?,
                Place::After => {
                    self.place = Place::Over;
                    return after_the_end(&mut self.scanner, "object");
                }
            }
        }
    }

    fn read_key(&mut self, mut first: bool) -> io::Result<()> {
        let step = self.scanner.next_key(&mut first)?;
        let line = self.scanner.line();
        self.place = Place::Object { first: false };
        match step {
            Step::Next(key) if key == "conversations" => {
                if self.scanner.peek()? == Some(b'[') {
                    self.scanner.bump();
                    self.place = Place::Conversations { first: true };
                } else {
                    let text = "conversations: expected a list";
                    self.unreadable(Finding::new(FindingKind::WrongShape, line, text));
                    self.scanner.skip()?;
                }
            }
            Step::Next(key) if key == "training_file_metadata" => {
                if let Taken::Whole(bytes) = self.scanner.value(MAX_METADATA_BYTES)?
                    && let Ok(metadata) = serde_json::from_slice::<Value>(&bytes)
                    && let Some(count) = pair_count(&metadata)
                {
                    self.queue.push_back(Entry::PairCount(line, count));
                }
            }
            Step::Next(_) => _ = self.scanner.skip()?,
            Step::End => self.place = Place::After,
            step => self.stop(step)?,
        }
        Ok(())
    }

    fn read_conversation(&mut self, mut first: bool) -> io::Result<()> {
        self.place = Place::Conversations { first: false };
        match self.scanner.next_element(&mut first)? {
            Step::Next(()) => {
                let taken = take(&mut self.scanner, MAX_CONVERSATION_BYTES, Origin::Conversation(self.conversations))?;
                if !taken.goes_on {
                    self.place = Place::Over;
                }
                match taken.entry {
                    Entry::Item(item) => self.queue.extend(pairs(&item.bytes, item.line, self.conversations)?),
                    entry => self.queue.push_back(entry),
                }
                self.conversations += 1;
            }
            Step::End => self.place = Place::Object { first: false },
            step => self.stop(step)?,
        }
        Ok(())
    }

    fn unreadable(&mut self, finding: Finding) {
        self.queue.push_back(Entry::Unreadable(finding));
    }

    fn stop<T>(&mut self, step: Step<T>) -> io::Result<()> {
        self.place = Place::Over;
        let entry = broken(&mut self.scanner, step)?;
        self.queue.push_back(entry);
        Ok(())
    }
}

/// The number of pairs that metadata claims.
pub(super) fn pair_count(metadata: &Value) -> Option<u64> {
    PAIR_COUNT_KEYS.iter().find_map(|key| metadata.get(key)?.as_u64())
}

/// The pairs of one conversation. Its id may stand after them, so it is held whole.
fn pairs(conversation: &[u8], line: u64, index: u64) -> io::Result<Vec<Entry>> {
    let mut scanner = Scanner::new(conversation, line);
    let mut entries = Vec::new();
    let mut id = None;
    let wrong = |line, text: String| Entry::Unreadable(Finding::new(FindingKind::WrongShape, line, text));
    if scanner.peek()? != Some(b'{') {
        return Ok(vec![wrong(line, format!("conversations[{index}]: expected an object"))]);
    }
    scanner.bump();
    let mut first = true;
    let mut has_pairs = false;
    loop {
        let step = scanner.next_key(&mut first)?;
        let line = scanner.line();
        match step {
            Step::Next(key) if key == "training_pairs" => {
                has_pairs = true;
                if scanner.peek()? == Some(b'[') {
                    scanner.bump();
                    if !take_pairs(&mut scanner, index, &mut entries)? {
                        break;
                    }
                } else {
                    entries.push(wrong(line, format!("conversations[{index}].training_pairs: expected a list")));
                    scanner.skip()?;
                }
            }
            Step::Next(key) if key == "conversation_metadata" => {
                let metadata = small_value(&mut scanner)?;
                id = text(metadata.get("conversation_id")).or(id);
            }
            Step::Next(key) if key == "conversation_id" => {
                let value = small_value(&mut scanner)?;
                id = id.or(text(Some(&value)));
            }
            Step::Next(_) => _ = scanner.skip()?,
            Step::End => break,
            step => {
                entries.push(broken(&mut scanner, step)?);
                break;
            }
        }
    }
    if !has_pairs {
        entries.push(wrong(line, format!("conversations[{index}].training_pairs: missing")));
    }
    for entry in &mut entries {
        match entry {
            Entry::Item(item) => {
                if let Origin::Pair(conversation, ..) = &mut item.origin {
                    conversation.clone_from(&id);
                }
            }
            // The file goes on: it is this conversation's brackets that do not match.
            Entry::Unreadable(finding) if finding.kind == FindingKind::TruncatedLastLine => {
                let text = format!("conversations[{index}]: brackets or quotation marks do not match");
                *finding = Finding::new(FindingKind::InvalidJson, finding.line, text);
            }
            _ => {}
        }
    }
    Ok(entries)
}

/// Takes the elements of a list whose bracket was passed; `false` where it is broken.
fn take_pairs(scanner: &mut Scanner<&[u8]>, index: u64, entries: &mut Vec<Entry>) -> io::Result<bool> {
    let mut first = true;
    loop {
        match scanner.next_element(&mut first)? {
            Step::Next(()) => {
                let origin = Origin::Pair(None, index, entries.len() as u64);
                let taken = take(scanner, MAX_LINE_BYTES, origin)?;
                entries.push(taken.entry);
                if !taken.goes_on {
                    return Ok(false);
                }
            }
            Step::End => return Ok(true),
            step => {
                entries.push(broken(scanner, step)?);
                return Ok(false);
            }
        }
    }
}

/// The value that comes next; `Null` where it is too long or broken.
fn small_value<R: BufRead>(scanner: &mut Scanner<R>) -> io::Result<Value> {
    Ok(match scanner.value(MAX_METADATA_BYTES)? {
        Taken::Whole(bytes) => serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        _ => Value::Null,
    })
}

/// An id that says something.
fn text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) if !text.trim().is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}
