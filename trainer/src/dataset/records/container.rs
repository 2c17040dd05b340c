//! How the lines of a dataset are held together: one below the other, in a list, or in BrightRun's full JSON.

use std::io::{self, BufRead, Cursor, Read};

use serde::de::IgnoredAny;

use super::{
    format::FULL_KEYS,
    full::Full,
    items::{List, Values},
    lines::Lines,
    record::Item,
    scanner::{Scanner, Step, Taken, is_space},
};
use crate::dataset::finding::{Finding, FindingKind};

/// What is read from.
pub(super) type Source = Box<dyn BufRead + Send>;

/// So much of a file's beginning decides what its container is.
const SNIFFED_BYTES: u64 = 1 << 20;

/// UTF-8's byte order mark.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One thing found in a container.
pub(super) enum Entry {
    /// A line, or an item of a list.
    Item(Item),
    /// A line or item that cannot be read.
    Unreadable(Finding),
    /// Something worth saying that is no line.
    Remark(Finding),
    /// The file's own count of its pairs, and the line on which it stands.
    PairCount(u64, u64),
}

/// The container of a file's lines.
pub(super) enum Container {
    /// JSON Lines.
    Lines(Lines),
    /// One list.
    List(List),
    /// Objects one after the other, each over several lines.
    Values(Values),
    /// BrightRun's full JSON.
    Full(Full),
    /// Nothing that could be read.
    Nothing,
}

// === impl Container ===

impl Container {
    /// Looks at the beginning of a file; the findings are about the file as a whole.
    pub(super) fn open(mut source: Source) -> io::Result<(Self, Vec<Finding>)> {
        let mut prefix = Vec::new();
        (&mut source).take(SNIFFED_BYTES).read_to_end(&mut prefix)?;
        if let Some(finding) = not_text(&prefix) {
            return Ok((Self::Nothing, vec![finding]));
        }
        let has_mark = prefix.starts_with(BYTE_ORDER_MARK);
        let mark = if has_mark { BYTE_ORDER_MARK.len() } else { 0 };
        let mut findings = Vec::new();
        if has_mark {
            let text = "the file begins with a byte order mark; it is ignored";
            findings.push(Finding::new(FindingKind::ByteOrderMark, 1, text));
        }
        let kind = kind_of(&prefix[mark..]);
        let mut beginning = Cursor::new(prefix);
        beginning.consume(mark);
        let source: Source = Box::new(beginning.chain(source));
        let container = match kind {
            Kind::Lines => Self::Lines(Lines::new(source, has_mark)),
            Kind::List => Self::List(List::new(source)),
            Kind::Values => Self::Values(Values::new(source)),
            Kind::Full => Self::Full(Full::new(source)),
        };
        Ok((container, findings))
    }

    /// The next entry, in the order of the file.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        match self {
            Self::Lines(lines) => lines.next(),
            Self::List(list) => list.next(),
            Self::Values(values) => values.next(),
            Self::Full(full) => full.next(),
            Self::Nothing => Ok(None),
        }
    }

    /// Bytes read so far.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Lines(lines) => lines.bytes(),
            Self::List(list) => list.bytes(),
            Self::Values(values) => values.bytes(),
            Self::Full(full) => full.bytes(),
            Self::Nothing => 0,
        }
    }
}

/// Files that are something else altogether: (first bytes, what that is and what to do).
const OTHER_FILES: [(&[u8], &str); 8] = [
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"PK\x03\x04", "a ZIP archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard; unpack it first"),
    (b"BZh", "compressed with bzip2; unpack it first"),
    (b"PAR1", "a Parquet file; convert it to JSON Lines first"),
    (b"\xff\xfe", "UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16; save it as UTF-8"),
    (b"{\0", "UTF-16; save it as UTF-8"),
];

fn not_text(prefix: &[u8]) -> Option<Finding> {
    let (_, what) = OTHER_FILES.iter().find(|(magic, _)| prefix.starts_with(magic))?;
    let kind = if what.starts_with("UTF-16") { FindingKind::InvalidUtf8 } else { FindingKind::UnknownFormat };
    Some(Finding::new(kind, 1, format!("the file is {what}")))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Lines,
    List,
    Values,
    Full,
}

/// What a file that begins so is; where in doubt JSON Lines, which finds fault line by line.
fn kind_of(text: &[u8]) -> Kind {
    let Some(start) = text.iter().position(|byte| !is_space(*byte)) else { return Kind::Lines };
    let text = &text[start..];
    match text[0] {
        b'[' => Kind::List,
        b'{' if is_full(text) => Kind::Full,
        b'{' if goes_on_after_its_line(text) => Kind::Values,
        _ => Kind::Lines,
    }
}

/// Whether the first object's keys, as far as they are within the beginning, are those of the full JSON.
fn is_full(text: &[u8]) -> bool {
    let mut scanner = Scanner::new(text, 1);
    // A slice cannot fail to be read.
    full_keys(&mut scanner).unwrap_or(false)
}

fn full_keys(scanner: &mut Scanner<&[u8]>) -> io::Result<bool> {
    scanner.bump();
    let mut first = true;
    while let Step::Next(key) = scanner.next_key(&mut first)? {
        if FULL_KEYS.contains(&key.as_str()) {
            return Ok(true);
        }
        if key == "conversations" && holds_training_pairs(&mut scanner.clone())? {
            return Ok(true);
        }
        if scanner.skip()? == Taken::EndOfFile {
            break;
        }
    }
    Ok(false)
}

/// Whether the list that comes next begins with an object that has `training_pairs`.
fn holds_training_pairs(scanner: &mut Scanner<&[u8]>) -> io::Result<bool> {
    for bracket in *b"[{" {
        if scanner.peek()? != Some(bracket) {
            return Ok(false);
        }
        scanner.bump();
    }
    let mut first = true;
    while let Step::Next(key) = scanner.next_key(&mut first)? {
        if key == "training_pairs" {
            return Ok(true);
        }
        if scanner.skip()? == Taken::EndOfFile {
            break;
        }
    }
    Ok(false)
}

/// Whether the first object was written over several lines. A first line of JSON Lines that was cut off must not be taken for
/// one: there the next line begins a new object.
fn goes_on_after_its_line(text: &[u8]) -> bool {
    let Some(end) = memchr::memchr(b'\n', text) else { return false };
    let (line, rest) = text.split_at(end);
    let incomplete = serde_json::from_slice::<IgnoredAny>(line).is_err_and(|error| error.is_eof());
    if !incomplete || ends_in_string(line) {
        return false;
    }
    match rest.iter().find(|byte| !is_space(**byte)) {
        None => false,
        Some(b'{' | b'[') => line.iter().rfind(|byte| !is_space(**byte)).is_some_and(|last| b"[,:".contains(last)),
        Some(_) => true,
    }
}

fn ends_in_string(line: &[u8]) -> bool {
    let mut bytes = line.iter();
    let mut inside = false;
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => inside = !inside,
            b'\\' if inside => _ = bytes.next(),
            _ => {}
        }
    }
    inside
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_told_by_how_a_file_begins() {
        for (text, kind) in [
            ("", Kind::Lines),
            (" \n\n", Kind::Lines),
            ("{\"text\":\"a\"}\n{\"text\":\"b\"}", Kind::Lines),
            ("{\"text\":\"a\"", Kind::Lines),
            ("\n [1]", Kind::List),
            ("{\n  \"text\": \"a\"\n}\n", Kind::Values),
            ("{ \"turns\": [\n{\"role\"", Kind::Values),
            ("{\"conversations\":[{\"from\":\"human\"}]}", Kind::Lines),
            ("{\"conversations\":[{\"conversation_metadata\":{},\"training_pairs\":[", Kind::Full),
            ("{\"conversations\":[],\"consultant_profile\":{", Kind::Full),
            ("{\n\"x\":{},\n\"training_file_metadata\":{", Kind::Full),
            ("not json", Kind::Lines),
        ] {
            assert_eq!(kind_of(text.as_bytes()), kind, "{text:?}");
        }
    }

    #[test]
    fn a_first_line_that_was_cut_off_is_not_an_object_over_several_lines() {
        for text in ["{\"text\":\"a\n{\"text\":\"b\"}\n", "{\"text\":\"a\"\n{\"text\":\"b\"}\n", "{\"turns\":[\n"] {
            assert_eq!(kind_of(text.as_bytes()), Kind::Lines, "{text:?}");
        }
    }

    #[test]
    fn archives_and_utf_16_are_named() {
        let finding = not_text(b"\x1f\x8b\x08").unwrap();
        assert_eq!((finding.kind, finding.line), (FindingKind::UnknownFormat, 1));
        assert!(finding.message.contains("gzip; unpack it first"), "{}", finding.message);
        assert_eq!(not_text(b"{\0\"\0").unwrap().kind, FindingKind::InvalidUtf8);
        assert_eq!(not_text(b"{\"a\":1}"), None);
    }
}
