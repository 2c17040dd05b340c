//! Files that are one list of items, or objects one after the other that each fill several lines.

use std::io::{self, BufRead};

use super::{
    container::{Entry, Source},
    lines::{MAX_LINE_BYTES, too_long},
    record::{Item, Origin},
    scanner::{Scanner, Step, Taken},
};
use crate::dataset::finding::{Finding, FindingKind};

/// Reads the items of one list.
pub(super) struct List {
    scanner: Scanner<Source>,
    place: Place,
    items: u64,
}

enum Place {
    Before,
    Inside { first: bool },
    After,
    Over,
}

/// Reads objects with nothing but white space between them.
pub(super) struct Values {
    scanner: Scanner<Source>,
    over: bool,
    items: u64,
}

// === impl List ===

impl List {
    /// Reads a list that is the next thing in `source`.
    pub(super) fn new(source: Source) -> Self {
        Self { scanner: Scanner::new(source, 1), place: Place::Before, items: 0 }
    }

    /// Bytes read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.scanner.bytes()
    }

    /// The next item, or what is wrong with the list.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        loop {
            match &mut self.place {
                Place::Over => return Ok(None),
                Place::Before => {
                    self.scanner.peek()?;
                    self.scanner.bump();
                    self.place = Place::Inside { first: true };
                }
                Place::Inside { first } => match self.scanner.next_element(first)? {
                    Step::Next(()) => {
                        self.items += 1;
                        let taken = take(&mut self.scanner, MAX_LINE_BYTES, Origin::Item(self.items))?;
                        self.place = if taken.goes_on { Place::Inside { first: false } } else { Place::Over };
                        return Ok(Some(taken.entry));
                    }
                    Step::End => self.place = Place::After,
                    step => {
                        self.place = Place::Over;
                        return Ok(Some(broken(&mut self.scanner, step)?));
                    }
                },
                Place::After => {
                    self.place = Place::Over;
                    return after_the_end(&mut self.scanner, "list");
                }
            }
        }
    }
}

// === impl Values ===

impl Values {
    /// Reads all objects of `source`.
    pub(super) fn new(source: Source) -> Self {
        Self { scanner: Scanner::new(source, 1), over: false, items: 0 }
    }

    /// Bytes read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.scanner.bytes()
    }

    /// The next object.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        if self.over || self.scanner.peek()?.is_none() {
            return Ok(None);
        }
        self.items += 1;
        let taken = take(&mut self.scanner, MAX_LINE_BYTES, Origin::Item(self.items))?;
        self.over = !taken.goes_on;
        Ok(Some(taken.entry))
    }
}

/// An item, and whether it makes sense to read on after it.
pub(super) struct TakenItem {
    pub(super) entry: Entry,
    pub(super) goes_on: bool,
}

/// The value that comes next as an item.
pub(super) fn take<R: BufRead>(scanner: &mut Scanner<R>, limit: usize, origin: Origin) -> io::Result<TakenItem> {
    scanner.peek()?;
    let line = scanner.line();
    Ok(match scanner.value(limit)? {
        Taken::Whole(bytes) if bytes.is_empty() => {
            TakenItem { entry: broken(scanner, Step::<()>::Broken("an object"))?, goes_on: false }
        }
        Taken::Whole(bytes) => {
            let item = Item { line, bytes, before: 0, cut_off: false, origin };
            TakenItem { entry: Entry::Item(item), goes_on: true }
        }
        Taken::TooLong => TakenItem { entry: Entry::Unreadable(too_long(line, origin, limit)), goes_on: true },
        Taken::EndOfFile => {
            let text = format!(
                "the file ends inside {origin}, which begins here: it was cut off, or a bracket or quotation mark is missing"
            );
            let finding = Finding::new(FindingKind::TruncatedLastLine, line, text);
            TakenItem { entry: Entry::Unreadable(finding), goes_on: false }
        }
    })
}

/// The finding about a step that is neither another element nor the end.
pub(super) fn broken<R: BufRead, T>(scanner: &mut Scanner<R>, step: Step<T>) -> io::Result<Entry> {
    let found = scanner.peek()?;
    let finding = match (step, found) {
        (Step::Broken(expected), Some(byte)) => {
            let text =
                format!("{expected} is expected, found {:?}; the rest of the file was not read", char::from(byte));
            Finding::new(FindingKind::InvalidJson, scanner.line(), text)
        }
        _ => {
            let text = "the file ends before its last bracket: it was cut off";
            Finding::new(FindingKind::TruncatedLastLine, scanner.line(), text)
        }
    };
    Ok(Entry::Unreadable(finding))
}

/// The finding about something after the last bracket, if there is anything.
pub(super) fn after_the_end<R: BufRead>(scanner: &mut Scanner<R>, what: &str) -> io::Result<Option<Entry>> {
    let Some(byte) = scanner.peek()? else { return Ok(None) };
    let text = format!("{:?} follows the end of the {what}; nothing may", char::from(byte));
    Ok(Some(Entry::Unreadable(Finding::new(FindingKind::InvalidJson, scanner.line(), text))))
}
