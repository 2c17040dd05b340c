//! From a file to examples, with a finding for everything that is not as it should be.
//!
//! [`Records`] cuts a file into lines (of a file that is one JSON value: items) in the file's order and holds only what was
//! asked for; [`Record::parse`] makes an [`Example`](super::example::Example) of one and can run in parallel. Formats are told
//! by keys ([`Format`]), and a file has one.

mod brightrun;
mod chats;
mod container;
mod conversation;
mod format;
mod full;
mod instructions;
mod items;
mod lines;
mod messages;
mod notes;
mod record;
mod scanner;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

pub use format::Format;
pub use lines::MAX_LINE_BYTES;
pub use record::{Parsed, Record};

use super::finding::{Finding, FindingKind};
use crate::{Error, Result};
use container::{Container, Entry};
use full::pair_count;
use record::{Item, Origin, Recognised};

/// Bytes that are asked of the file at once.
const READ_BYTES: usize = 256 << 10;
/// What a record holds beside its bytes, so that a batch of tiny lines is bounded as well.
const RECORD_BYTES: usize = 256;
/// So much is read ahead in search of a line that tells the format; after that it is looked for as batches are read.
const READ_AHEAD_BYTES: usize = 32 << 20;
/// How a line begins that describes the file.
const METADATA_KEY: &[u8] = b"\"_meta\"";

/// A dataset file, read from its beginning to its end.
pub struct Records {
    path: PathBuf,
    container: Container,
    recognised: Option<Recognised>,
    findings: Vec<Finding>,
    ahead: VecDeque<Record>,
    lines: u64,
    pairs: u64,
    /// The file's own counts of its pairs: their sum and the first one's line.
    claimed: Option<(u64, u64)>,
    over: bool,
}

// === impl Records ===

impl Records {
    /// Opens a file. Fails only where the file cannot be read; what it holds becomes findings.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("cannot read", path))?;
        Self::from_reader(BufReader::with_capacity(READ_BYTES, file), path)
    }

    /// Reads from anything; `path` is only named in errors.
    pub fn from_reader(reader: impl BufRead + Send + 'static, path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let (container, findings) = Container::open(Box::new(reader)).map_err(Error::io("cannot read", &path))?;
        let full = matches!(container, Container::Full(_));
        let mut records = Self {
            path,
            recognised: full.then_some(Recognised { format: Format::BrightrunFull, line: 1 }),
            // A file that is no text needs no finding about what it does not hold.
            over: matches!(container, Container::Nothing),
            container,
            findings,
            ahead: VecDeque::new(),
            lines: 0,
            pairs: 0,
            claimed: None,
        };
        let mut held = 0;
        while records.recognised.is_none() && held < READ_AHEAD_BYTES {
            let Some(record) = records.read()? else { break };
            held += record.bytes().len() + RECORD_BYTES;
            records.ahead.push_back(record);
        }
        Ok(records)
    }

    /// The format of the first line that has one; `None` where none was found yet.
    pub fn format(&self) -> Option<Format> {
        self.recognised.map(|recognised| recognised.format)
    }

    /// The next records, of about so many bytes; `None` at the end of the file.
    pub fn next_batch(&mut self, bytes: usize) -> Result<Option<Vec<Record>>> {
        let mut batch = Vec::new();
        let mut held = 0;
        while held < bytes.max(1) {
            let next = match self.ahead.pop_front() {
                Some(record) => Some(record),
                None => self.read()?,
            };
            let Some(record) = next else { break };
            held += record.bytes().len() + RECORD_BYTES;
            batch.push(record);
        }
        Ok((!batch.is_empty()).then_some(batch))
    }

    /// What was noticed about the file since the last call; complete once `next_batch` gave `None`.
    pub fn findings(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.findings)
    }

    /// Lines so far that are not blank, in a file that is one JSON value its items; those that cannot be read among them.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Bytes of the file read so far.
    pub fn bytes(&self) -> u64 {
        self.container.bytes()
    }

    /// The next record.
    fn read(&mut self) -> Result<Option<Record>> {
        if self.over {
            return Ok(None);
        }
        loop {
            match self.container.next().map_err(Error::io("cannot read", &self.path))? {
                Some(Entry::Item(item)) => {
                    self.lines += 1;
                    if let Some(record) = self.accept(item) {
                        self.pairs += 1;
                        return Ok(Some(record));
                    }
                }
                Some(Entry::Unreadable(finding)) => {
                    self.lines += 1;
                    self.pairs += 1;
                    self.findings.push(finding);
                }
                Some(Entry::Remark(finding)) => self.findings.push(finding),
                Some(Entry::PairCount(line, count)) => self.claim(line, count),
                None => {
                    self.finish();
                    return Ok(None);
                }
            }
        }
    }

    /// A record of an item; `None` of a line that only describes the file.
    fn accept(&mut self, item: Item) -> Option<Record> {
        let describes = !matches!(item.origin, Origin::Pair(..)) && begins_with_metadata(&item.bytes);
        // Only until the format is known does the sequential part look into a line.
        if (describes || self.recognised.is_none())
            && let Ok(object) = item.object()
        {
            let format = Format::of(&object);
            if describes && format.is_none() {
                if let Some(count) = object.get("_meta").and_then(pair_count) {
                    self.claim(item.line, count);
                }
                return None;
            }
            if self.recognised.is_none() {
                self.recognised = format.map(|format| Recognised { format, line: item.line });
            }
        }
        Some(Record::new(item, self.recognised))
    }

    fn claim(&mut self, line: u64, count: u64) {
        let (sum, _) = self.claimed.get_or_insert((0, line));
        *sum = sum.saturating_add(count);
    }

    fn finish(&mut self) {
        self.over = true;
        if self.pairs == 0 {
            let text = match self.lines {
                0 => "the file is empty; it should hold one JSON object a line",
                _ => "the file describes itself but holds no line to train on",
            };
            self.findings.push(Finding::new(FindingKind::NothingToTrainOn, 1, text));
        }
        if let Some((claimed, line)) = self.claimed
            && claimed != self.pairs
        {
            let text = format!("the file says that it has {claimed} pairs; it has {}", self.pairs);
            self.findings.push(Finding::new(FindingKind::PairCountDiffers, line, text));
        }
    }
}

/// Whether an object's first key is `_meta`.
fn begins_with_metadata(bytes: &[u8]) -> bool {
    let Some(after) = bytes.trim_ascii_start().strip_prefix(b"{") else { return false };
    after.trim_ascii_start().starts_with(METADATA_KEY)
}
