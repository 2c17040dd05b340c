//! JSON Lines: one object a line.

use std::{
    collections::VecDeque,
    fmt::Display,
    io::{self, BufRead, Read},
};

use super::{
    container::{BYTE_ORDER_MARK, Entry, Source},
    record::{Item, Origin},
    scanner::is_space,
};
use crate::dataset::finding::{Finding, FindingKind};

/// Longest line, and longest item of a list, that is read.
pub const MAX_LINE_BYTES: usize = 16 << 20;

/// Reads one line after the other.
pub(super) struct Lines {
    source: Source,
    /// Bytes of a byte order mark before the first line's.
    mark: usize,
    line: u64,
    bytes: u64,
    buffer: Vec<u8>,
    /// First and number of the blank lines just passed.
    blank: Option<(u64, u64)>,
    carriage_returns: bool,
    queue: VecDeque<Entry>,
}

// === impl Lines ===

impl Lines {
    /// Reads from `source`, which stands after the byte order mark if there is one.
    pub(super) fn new(source: Source, has_mark: bool) -> Self {
        let mark = if has_mark { BYTE_ORDER_MARK.len() } else { 0 };
        Self {
            source,
            mark,
            line: 0,
            bytes: mark as u64,
            buffer: Vec::new(),
            blank: None,
            carriage_returns: false,
            queue: VecDeque::new(),
        }
    }

    /// Bytes read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next line that is not blank, or what was noticed before it.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        loop {
            if let Some(entry) = self.queue.pop_front() {
                return Ok(Some(entry));
            }
            if !self.read_line()? {
                return Ok(None);
            }
        }
    }

    /// Reads a line and queues what it is; `false` after the last one.
    fn read_line(&mut self) -> io::Result<bool> {
        self.buffer.clear();
        // One byte more for the line feed.
        let read = (&mut self.source).take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut self.buffer)?;
        self.bytes += read as u64;
        if read == 0 {
            self.report_blank_lines();
            return Ok(!self.queue.is_empty());
        }
        self.line += 1;
        let ended = self.buffer.last() == Some(&b'\n');
        if !ended && read > MAX_LINE_BYTES {
            let skipped = self.source.skip_until(b'\n')? as u64;
            self.bytes += skipped;
            self.report_blank_lines();
            self.queue.push_back(Entry::Unreadable(too_long(self.line, "the line", MAX_LINE_BYTES)));
            return Ok(true);
        }
        if self.buffer.iter().all(|byte| is_space(*byte)) {
            self.blank.get_or_insert((self.line, 0)).1 += 1;
            return Ok(true);
        }
        self.report_blank_lines();
        let text = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
        let (text, returned) = text.strip_suffix(b"\r").map_or((text, false), |text| (text, true));
        let item = Item {
            line: self.line,
            bytes: text.to_vec(),
            before: if self.line == 1 { self.mark } else { 0 },
            cut_off: !ended,
            origin: Origin::Line,
        };
        if returned && !std::mem::replace(&mut self.carriage_returns, true) {
            let text = "this line and maybe others end with a carriage return before the line feed; it is ignored";
            self.queue.push_back(Entry::Remark(Finding::new(FindingKind::CarriageReturns, self.line, text)));
        }
        self.queue.push_back(Entry::Item(item));
        Ok(true)
    }

    /// Blank lines in a row are one finding: a file of nothing but line feeds must not become as many findings.
    fn report_blank_lines(&mut self) {
        if let Some((first, count)) = self.blank.take() {
            let text = match count {
                1 => "the line is blank; it is ignored".to_owned(),
                _ => format!("{count} blank lines; they are ignored"),
            };
            self.queue.push_back(Entry::Remark(Finding::new(FindingKind::BlankLine, first, text)));
        }
    }

    /// Bytes that the reader holds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.buffer.capacity()
    }
}

/// The finding about something that is longer than it may be.
pub(super) fn too_long(line: u64, what: impl Display, limit: usize) -> Finding {
    let text = format!("{what} is longer than {} MiB; leave it out or divide it", limit >> 20);
    Finding::new(FindingKind::HugeLine, line, text)
}
