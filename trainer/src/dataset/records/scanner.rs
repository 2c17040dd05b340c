//! Where values begin and end in JSON that is too long to be parsed whole. It sees strings, brackets and line breaks; whether
//! a value is right is left to the parser that gets its bytes.

use std::io::{self, BufRead};

use memchr::{memchr_iter, memchr2};

/// Keys longer than this are not looked at; none of ours is.
const MAX_KEY_BYTES: usize = 4096;

/// Reads on, one value at a time.
#[derive(Clone)]
pub(super) struct Scanner<R> {
    source: R,
    line: u64,
    bytes: u64,
}

/// One step through a list or an object.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<T> {
    /// There is another element; its value comes next.
    Next(T),
    /// The closing bracket was passed.
    End,
    /// Something else stands there than what is named.
    Broken(&'static str),
    /// The file ends here.
    EndOfFile,
}

/// What became of a value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Its bytes; none where no value stands.
    Whole(Vec<u8>),
    /// It is longer than allowed and was passed over.
    TooLong,
    /// The file ends inside it.
    EndOfFile,
}

// === impl Scanner ===

impl<R: BufRead> Scanner<R> {
    /// Reads from `source`, whose first byte stands on `line`.
    pub(super) fn new(source: R, line: u64) -> Self {
        Self { source, line, bytes: 0 }
    }

    /// The line of the next byte.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// Bytes read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next byte that is not white space, which is passed.
    pub(super) fn peek(&mut self) -> io::Result<Option<u8>> {
        loop {
            let chunk = self.source.fill_buf()?;
            if chunk.is_empty() {
                return Ok(None);
            }
            let spaces = chunk.iter().position(|byte| !is_space(*byte));
            let byte = spaces.map(|at| chunk[at]);
            let passed = spaces.unwrap_or(chunk.len());
            let breaks = line_breaks(&chunk[..passed]);
            self.pass(passed, breaks);
            if byte.is_some() {
                return Ok(byte);
            }
        }
    }

    /// Passes the byte that was peeked at.
    pub(super) fn bump(&mut self) {
        self.pass(1, 0);
    }

    fn pass(&mut self, count: usize, breaks: u64) {
        self.source.consume(count);
        self.bytes += count as u64;
        self.line += breaks;
    }

    /// The value that begins at the next byte; white space before it is passed.
    pub(super) fn value(&mut self, limit: usize) -> io::Result<Taken> {
        self.peek()?;
        let mut walk = Walk::default();
        let mut taken = Vec::new();
        let mut too_long = false;
        loop {
            let chunk = self.source.fill_buf()?;
            if chunk.is_empty() {
                return Ok(match (walk.is_scalar(), too_long) {
                    (true, false) => Taken::Whole(taken),
                    _ => Taken::EndOfFile,
                });
            }
            let (used, ended) = walk.over(chunk);
            if !too_long && taken.len() + used <= limit {
                taken.extend_from_slice(&chunk[..used]);
            } else {
                too_long = true;
                taken = Vec::new();
            }
            let breaks = line_breaks(&chunk[..used]);
            self.pass(used, breaks);
            if ended {
                return Ok(if too_long { Taken::TooLong } else { Taken::Whole(taken) });
            }
        }
    }

    /// Passes a value.
    pub(super) fn skip(&mut self) -> io::Result<Taken> {
        self.value(0)
    }

    /// The next element of a list whose opening bracket was passed; `first` is true before the first call and kept by this.
    pub(super) fn next_element(&mut self, first: &mut bool) -> io::Result<Step<()>> {
        Ok(match self.peek()? {
            None => Step::EndOfFile,
            Some(b']') => {
                self.bump();
                Step::End
            }
            Some(_) if std::mem::take(first) => Step::Next(()),
            Some(b',') => {
                self.bump();
                match self.peek()? {
                    None => Step::EndOfFile,
                    Some(b']') => Step::Broken("an element after the comma"),
                    Some(_) => Step::Next(()),
                }
            }
            Some(_) => Step::Broken("`,` or `]`"),
        })
    }

    /// The next key of an object whose opening brace was passed, and the colon after it.
    pub(super) fn next_key(&mut self, first: &mut bool) -> io::Result<Step<String>> {
        match self.peek()? {
            None => return Ok(Step::EndOfFile),
            Some(b'}') => {
                self.bump();
                return Ok(Step::End);
            }
            Some(_) if std::mem::take(first) => {}
            Some(b',') => self.bump(),
            Some(_) => return Ok(Step::Broken("`,` or `}`")),
        }
        match self.peek()? {
            None => return Ok(Step::EndOfFile),
            Some(b'"') => {}
            Some(_) => return Ok(Step::Broken("a key in quotation marks")),
        }
        let key = match self.value(MAX_KEY_BYTES)? {
            Taken::Whole(bytes) => match serde_json::from_slice(&bytes) {
                Ok(key) => key,
                Err(_) => return Ok(Step::Broken("a key in quotation marks")),
            },
            Taken::TooLong => String::new(),
            Taken::EndOfFile => return Ok(Step::EndOfFile),
        };
        match self.peek()? {
            None => Ok(Step::EndOfFile),
            Some(b':') => {
                self.bump();
                Ok(if self.peek()?.is_some() { Step::Next(key) } else { Step::EndOfFile })
            }
            Some(_) => Ok(Step::Broken("`:`")),
        }
    }
}

fn line_breaks(bytes: &[u8]) -> u64 {
    memchr_iter(b'\n', bytes).count() as u64
}

/// White space of JSON.
pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// The state inside one value, carried from chunk to chunk.
#[derive(Default)]
struct Walk {
    depth: u64,
    in_string: bool,
    escaped: bool,
    in_scalar: bool,
}

// === impl Walk ===

impl Walk {
    /// A number, `true`, `false` or `null` outside brackets, which nothing but what follows it ends.
    fn is_scalar(&self) -> bool {
        self.in_scalar
    }

    /// How many bytes of the chunk are the value's, and whether it ends there.
    fn over(&mut self, chunk: &[u8]) -> (usize, bool) {
        let mut at = 0;
        while at < chunk.len() {
            if self.escaped {
                self.escaped = false;
                at += 1;
            } else if self.in_string {
                match memchr2(b'"', b'\\', &chunk[at..]) {
                    None => return (chunk.len(), false),
                    Some(plain) => {
                        at += plain + 1;
                        self.escaped = chunk[at - 1] == b'\\';
                        self.in_string = self.escaped;
                        if !self.in_string && self.depth == 0 {
                            return (at, true);
                        }
                    }
                }
            } else if let Some(end) = self.outside_string(chunk[at], at) {
                return (end, true);
            } else {
                at += 1;
            }
        }
        (chunk.len(), false)
    }

    /// Where the value ends, if this byte ends it.
    fn outside_string(&mut self, byte: u8, at: usize) -> Option<usize> {
        match byte {
            // After a scalar these belong to what follows, which is then found to be no comma.
            b'"' | b'{' | b'[' if self.in_scalar => return Some(at),
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            // The bracket of what is round the value.
            b'}' | b']' if self.depth == 0 => return Some(at),
            b'}' | b']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    return Some(at + 1);
                }
            }
            b',' | b':' if self.depth == 0 => return Some(at),
            byte if self.depth == 0 && is_space(byte) => return Some(at),
            _ => self.in_scalar = self.depth == 0,
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    /// A reader that gives `size` bytes at a time.
    fn scanner(text: &str, size: usize) -> Scanner<BufReader<&[u8]>> {
        Scanner::new(BufReader::with_capacity(size, text.as_bytes()), 1)
    }

    fn whole(text: &str) -> Taken {
        Taken::Whole(text.as_bytes().to_vec())
    }

    #[test]
    fn values_end_where_they_end_whatever_the_chunks() {
        for size in [1, 2, 3, 7, 1000] {
            for value in [r#"{"a]":["}\"",{"b":1}],"c\\":"\\"}"#, r#""x\"y""#, "-1.5e3", "true", "[[],[]]"] {
                for after in ["", " ", ",1", "]", "}", "\n2"] {
                    let text = format!(" {value}{after}");
                    assert_eq!(scanner(&text, size).value(1000).unwrap(), whole(value), "{text:?} by {size}");
                }
            }
        }
    }

    #[test]
    fn lists_and_objects_are_walked_and_lines_are_counted() {
        let mut scanner = scanner("{\"a\":\n[1,\n\n\"x\\n\"], \"b\\u0063\" : null}", 2);
        assert_eq!(scanner.peek().unwrap(), Some(b'{'));
        scanner.bump();
        let mut first = true;
        assert_eq!(scanner.next_key(&mut first).unwrap(), Step::Next("a".into()));
        assert_eq!(scanner.line(), 2);
        assert_eq!(scanner.peek().unwrap(), Some(b'['));
        scanner.bump();
        let mut first_element = true;
        assert_eq!(scanner.next_element(&mut first_element).unwrap(), Step::Next(()));
        assert_eq!(scanner.value(10).unwrap(), whole("1"));
        assert_eq!(scanner.next_element(&mut first_element).unwrap(), Step::Next(()));
        assert_eq!((scanner.line(), scanner.value(10).unwrap()), (4, whole(r#""x\n""#)));
        assert_eq!(scanner.next_element(&mut first_element).unwrap(), Step::End);
        assert_eq!(scanner.next_key(&mut first).unwrap(), Step::Next("bc".into()));
        assert_eq!(scanner.skip().unwrap(), Taken::TooLong);
        assert_eq!(scanner.next_key(&mut first).unwrap(), Step::End);
        assert_eq!(scanner.bytes(), 36);
    }

    #[test]
    fn what_is_broken_is_named_and_what_is_cut_off_is_told_from_it() {
        let element = |text: &str| {
            let mut scanner = scanner(text, 4);
            let mut first = true;
            scanner.next_element(&mut first).unwrap();
            scanner.value(100).unwrap();
            scanner.next_element(&mut first).unwrap()
        };
        assert_eq!(element("{}{}]"), Step::Broken("`,` or `]`"));
        assert_eq!(element("{},]"), Step::Broken("an element after the comma"));
        assert_eq!(element("{},"), Step::EndOfFile);
        assert_eq!(element("{}"), Step::EndOfFile);
        let key = |text: &str| scanner(text, 4).next_key(&mut true).unwrap();
        assert_eq!(key("a:1}"), Step::Broken("a key in quotation marks"));
        assert_eq!(key("\"a\" 1}"), Step::Broken("`:`"));
        assert_eq!(key("\"a"), Step::EndOfFile);
        assert_eq!(key("\"a\":"), Step::EndOfFile);
        assert_eq!(scanner("[{\"a\":1}", 4).value(100).unwrap(), Taken::EndOfFile);
    }

    #[test]
    fn a_value_over_the_limit_is_passed_over() {
        let mut scanner = scanner("[\"0123456789\"] 1", 4);
        assert_eq!(scanner.value(13).unwrap(), Taken::TooLong);
        assert_eq!(scanner.value(13).unwrap(), whole("1"));
    }
}
