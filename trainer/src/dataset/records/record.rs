//! One line, from its bytes to an example. Pure, so that it can be done in parallel.

use std::fmt;

use serde_json::{Map, Value};

use super::{
    brightrun, chats,
    format::{Format, known_shapes},
    instructions,
    notes::{Notes, kind_of, quoted},
};
use crate::dataset::{
    example::Example,
    finding::{Finding, FindingKind},
};

/// So many keys of a line of no format are named.
const KEYS_NAMED: usize = 12;

/// A line as its container gives it.
pub(super) struct Item {
    /// Where it begins, counted from 1.
    pub(super) line: u64,
    /// Its bytes without line feed.
    pub(super) bytes: Vec<u8>,
    /// Bytes of its line that stand before them.
    pub(super) before: usize,
    /// Whether the file ends after it without a line feed, so that it may have been cut off.
    pub(super) cut_off: bool,
    /// Where its container has it.
    pub(super) origin: Origin,
}

/// What an item is besides the line it begins on, which says little where a whole file is one line.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    /// A line of JSON Lines.
    Line,
    /// An item of a list, counted from 1.
    Item(u64),
    /// An element of `conversations`, counted from 0.
    Conversation(u64),
    /// A pair of the full JSON: id of its conversation, index of that, index of the pair in it.
    Pair(Option<String>, u64, u64),
}

/// The format of a file and the line that decided it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recognised {
    pub(super) format: Format,
    pub(super) line: u64,
}

/// A line that is not parsed yet.
pub struct Record {
    item: Item,
    /// The file's format; without one the line's own is taken.
    recognised: Option<Recognised>,
}

/// What came of a line.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The example, unless a finding says why there is none.
    pub example: Option<Example>,
    /// What was noticed.
    pub findings: Vec<Finding>,
}

// === impl Record ===

impl Record {
    /// A line on its own, whose format is the one it has.
    pub fn of_line(line: u64, bytes: impl Into<Vec<u8>>) -> Self {
        let item = Item { line, bytes: bytes.into(), before: 0, cut_off: false, origin: Origin::Line };
        Self { item, recognised: None }
    }

    pub(super) fn new(item: Item, recognised: Option<Recognised>) -> Self {
        Self { item, recognised }
    }

    /// Where it begins in the file, counted from 1.
    pub fn line(&self) -> u64 {
        self.item.line
    }

    /// Its bytes, as they stand in the file.
    pub fn bytes(&self) -> &[u8] {
        &self.item.bytes
    }

    /// The example that the line holds, or why it holds none.
    pub fn parse(&self) -> Parsed {
        let read = self.item.object().and_then(|object| self.check_format(&object).map(|format| (format, object)));
        let mut parsed = match read {
            Ok((format, object)) => self.read(format, object),
            Err(finding) => Parsed { example: None, findings: vec![finding] },
        };
        // A line that holds one thing needs no name for it.
        if !matches!(self.item.origin, Origin::Line) {
            for finding in &mut parsed.findings {
                finding.message = format!("{}: {}", self.item.origin, finding.message);
            }
        }
        parsed
    }

    /// The format to read the line as.
    fn check_format(&self, object: &Map<String, Value>) -> Result<Format, Finding> {
        let own = Format::of(object);
        let Some(file) = self.recognised else { return own.ok_or_else(|| self.unknown_format(object)) };
        // Pairs of the full JSON are found by where they stand.
        if matches!(self.item.origin, Origin::Pair(..)) {
            return Ok(Format::BrightrunFull);
        }
        match own {
            Some(own) if own == file.format => Ok(own),
            Some(own) => {
                let text = format!(
                    "this line is `{own}` ({}), but line {} is `{}` ({}); a file has one format: put them in files of their own",
                    own.shape(),
                    file.line,
                    file.format,
                    file.format.shape()
                );
                Err(self.finding(FindingKind::MixedFormats, text))
            }
            None if file.format.nearly_fits(object) => Ok(file.format),
            None => Err(self.unknown_format(object)),
        }
    }

    fn unknown_format(&self, object: &Map<String, Value>) -> Finding {
        let mut keys = object.keys().take(KEYS_NAMED).map(|key| quoted(key)).collect::<Vec<_>>().join(", ");
        if object.is_empty() {
            keys.push_str("none");
        } else if object.len() > KEYS_NAMED {
            keys.push_str(&format!(" and {} more", object.len() - KEYS_NAMED));
        }
        let text = match self.recognised {
            Some(file) => format!(
                "the line's keys are {keys}; line {} is `{}`, told by {}",
                file.line,
                file.format,
                file.format.shape()
            ),
            None => format!("the line's keys are {keys}; known formats are {}", known_shapes()),
        };
        self.finding(FindingKind::UnknownFormat, text)
    }

    fn read(&self, format: Format, object: Map<String, Value>) -> Parsed {
        let mut notes = Notes::new(self.item.line, &self.item.origin);
        let draft = match format {
            Format::Brightrun => brightrun::read(object, &mut notes),
            Format::BrightrunFull => match &self.item.origin {
                Origin::Pair(..) => brightrun::read(object, &mut notes),
                _ => {
                    notes.wrong(
                        "conversations",
                        "a whole `brightrun_full` file is not a line; give it a file of its own",
                    );
                    None
                }
            },
            Format::Turns => chats::read_turns(object, &mut notes),
            Format::OpenAi => chats::read_openai(object, &mut notes),
            Format::ShareGpt => chats::read_sharegpt(object, &mut notes),
            Format::Alpaca => instructions::read_alpaca(object, &mut notes),
            Format::Pairs => instructions::read_pair(object, &mut notes),
            Format::Text => {
                let example = instructions::read_text(object, &mut notes);
                return Parsed { example, findings: notes.findings() };
            }
        };
        let example = draft.and_then(|draft| draft.finish(&mut notes));
        Parsed { example, findings: notes.findings() }
    }

    fn finding(&self, kind: FindingKind, text: impl Into<String>) -> Finding {
        Finding::new(kind, self.item.line, text)
    }
}

// === impl Origin ===

impl Origin {
    /// The id of a conversation that has none.
    pub(super) fn unnamed(&self, line: u64) -> String {
        match self {
            Self::Line => format!("line-{line}"),
            Self::Item(number) => format!("item-{number}"),
            Self::Conversation(index) | Self::Pair(_, index, _) => format!("conversation-{}", index + 1),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line => out.write_str("the line"),
            Self::Item(number) => write!(out, "item {number}"),
            Self::Conversation(index) => write!(out, "conversations[{index}]"),
            Self::Pair(_, conversation, pair) => write!(out, "conversations[{conversation}].training_pairs[{pair}]"),
        }
    }
}

// === impl Item ===

impl Item {
    /// The line's JSON object.
    pub(super) fn object(&self) -> Result<Map<String, Value>, Finding> {
        let text = std::str::from_utf8(&self.bytes).map_err(|error| self.not_utf8(&error))?;
        match serde_json::from_str(text) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(other) => {
                let text = format!("a JSON object is expected, found {}", kind_of(&other));
                Err(Finding::new(FindingKind::InvalidJson, self.line, text))
            }
            Err(error) => Err(self.not_json(&error)),
        }
    }

    fn not_utf8(&self, error: &std::str::Utf8Error) -> Finding {
        if self.cut_off && error.error_len().is_none() {
            return self.truncated("in the middle of a character");
        }
        let at = error.valid_up_to();
        let text = format!(
            "byte {} (0x{:02x}) is not UTF-8; save the file as UTF-8",
            self.before + at + 1,
            self.bytes.get(at).copied().unwrap_or_default()
        );
        Finding::new(FindingKind::InvalidUtf8, self.line, text)
    }

    fn not_json(&self, error: &serde_json::Error) -> Finding {
        if self.cut_off && error.is_eof() {
            return self.truncated("in the middle of the object");
        }
        // serde_json counts lines from the item's first.
        let line = error.line().saturating_sub(1) as u64;
        let reason = error.to_string();
        let reason = reason.split(" at line ").next().unwrap_or(&reason);
        let mut text = match line {
            0 => format!("{reason} (column {})", self.before + error.column()),
            _ => format!("{reason} (line {}, column {})", self.line + line, error.column()),
        };
        if let Some(at) = memchr::memchr(0, &self.bytes) {
            text.push_str(&format!("; byte {} is NUL: the file is damaged or no text", self.before + at + 1));
        }
        Finding::new(FindingKind::InvalidJson, self.line, text)
    }

    fn truncated(&self, place: &str) -> Finding {
        let text = format!("the file ends {place}: it was cut off; write or upload it again");
        Finding::new(FindingKind::TruncatedLastLine, self.line, text)
    }
}
