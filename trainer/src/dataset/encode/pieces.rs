//! The pre-tokeniser of Qwen's tokenizers as a scanner.
//!
//! [`PATTERN`] is what `tokenizer.json` gives as a regular expression. It is matched here by hand, because a backtracking
//! engine spends more time on it than everything else takes together. Each branch of [`Pieces::end`] is one alternative
//! of the pattern, in its order; the tests compare the tokens of every character with the tokenizer's own.

use regex_syntax::hir::{Class, HirKind};

use crate::{Error, Result};

/// The regular expression that [`Pieces`] matches.
pub(super) const PATTERN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// What the pattern tells characters apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Neither of the others: punctuation, marks, symbols, control characters.
    Other,
    /// `\p{L}`.
    Letter,
    /// `\p{N}`.
    Number,
    /// `\s` without the line breaks below.
    Space,
    /// `\r` and `\n`.
    LineBreak,
}

/// Cuts text into the pieces that are tokenised one by one.
#[derive(Debug)]
pub(super) struct Pieces {
    /// The kind of every code point.
    kinds: Vec<Kind>,
}

// === impl Pieces ===

impl Pieces {
    /// The table of characters, from the same Unicode data as the tokenizer's regular expressions.
    pub(super) fn new() -> Result<Self> {
        let mut kinds = vec![Kind::Other; char::MAX as usize + 1];
        for (class, kind) in [(r"\p{L}", Kind::Letter), (r"\p{N}", Kind::Number), (r"\s", Kind::Space)] {
            let hir = regex_syntax::parse(class)
                .map_err(|error| Error::Invalid(format!("the character class {class} is unknown: {error}")))?;
            if let HirKind::Class(Class::Unicode(ranges)) = hir.kind() {
                for range in ranges.ranges() {
                    kinds[range.start() as usize..=range.end() as usize].fill(kind);
                }
            }
        }
        kinds['\r' as usize] = Kind::LineBreak;
        kinds['\n' as usize] = Kind::LineBreak;
        Ok(Self { kinds })
    }

    /// Where the piece that begins at byte `start` ends; `start` is inside the text.
    pub(super) fn end(&self, text: &str, start: usize) -> usize {
        let Some((first, second_at)) = self.at(text, start) else { return text.len() };
        let byte = text.as_bytes()[start];
        // (?i:'s|'t|'re|'ve|'m|'ll|'d)
        if byte == b'\''
            && let Some(length) = contraction(&text[second_at..])
        {
            return second_at + length;
        }
        let second = self.at(text, second_at).map(|(kind, _)| kind);
        match (first, second) {
            // [^\r\n\p{L}\p{N}]?\p{L}+
            (Kind::Letter, _) | (Kind::Other | Kind::Space, Some(Kind::Letter)) => {
                self.run(text, second_at, Kind::Letter)
            }
            // \p{N}
            (Kind::Number, _) => second_at,
            //  ?[^\s\p{L}\p{N}]+[\r\n]*
            (Kind::Other, _) => self.run(text, self.run(text, second_at, Kind::Other), Kind::LineBreak),
            (Kind::Space, Some(Kind::Other)) if byte == b' ' => {
                self.run(text, self.run(text, second_at, Kind::Other), Kind::LineBreak)
            }
            (Kind::Space | Kind::LineBreak, _) => self.white_space(text, start),
        }
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+`: up to the last line break of the run; else the run without its last character, which
    /// belongs to what follows; else the run.
    fn white_space(&self, text: &str, start: usize) -> usize {
        let (mut end, mut last, mut after_break) = (start, start, None);
        while let Some((kind @ (Kind::Space | Kind::LineBreak), next)) = self.at(text, end) {
            last = end;
            end = next;
            if kind == Kind::LineBreak {
                after_break = Some(next);
            }
        }
        match after_break {
            Some(after_break) => after_break,
            None if end == text.len() || last == start => end,
            None => last,
        }
    }

    /// The end of a run of one kind.
    fn run(&self, text: &str, mut at: usize, kind: Kind) -> usize {
        while let Some((found, next)) = self.at(text, at)
            && found == kind
        {
            at = next;
        }
        at
    }

    /// The kind of the character at a byte and where the next one begins; `None` at the end.
    #[inline]
    fn at(&self, text: &str, at: usize) -> Option<(Kind, usize)> {
        let byte = *text.as_bytes().get(at)?;
        if byte.is_ascii() {
            return Some((self.kinds[byte as usize], at + 1));
        }
        let character = text[at..].chars().next()?;
        Some((self.kinds[character as usize], at + character.len_utf8()))
    }
}

/// The length of a contraction's letters, without regard to case (U+017F is a small s to Unicode).
fn contraction(after: &str) -> Option<usize> {
    let mut characters = after.chars();
    let first = characters.next()?;
    let mut second = |letter: char| characters.next().is_some_and(|c| c.eq_ignore_ascii_case(&letter));
    match first.to_ascii_lowercase() {
        's' | '\u{17f}' | 't' | 'm' | 'd' => Some(first.len_utf8()),
        'r' | 'v' => second('e').then_some(2),
        'l' => second('l').then_some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use tokenizers::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
        pre_tokenizers::split::{Split, SplitPattern},
    };

    use super::*;

    static PIECES: LazyLock<Pieces> = LazyLock::new(|| Pieces::new().unwrap());
    static SPLIT: LazyLock<Split> = LazyLock::new(|| {
        Split::new(SplitPattern::Regex(PATTERN.into()), SplitDelimiterBehavior::Isolated, false).unwrap()
    });

    /// What the tokenizer's own pre-tokeniser makes of a text.
    fn expected(text: &str) -> Vec<String> {
        let mut splits = PreTokenizedString::from(text);
        SPLIT.pre_tokenize(&mut splits).unwrap();
        let splits = splits.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(piece, ..)| piece.to_owned()).collect()
    }

    fn pieces(text: &str) -> Vec<&str> {
        let pieces = &*PIECES;
        let mut list = Vec::new();
        let mut start = 0;
        while start < text.len() {
            let end = pieces.end(text, start);
            assert!(end > start);
            list.push(&text[start..end]);
            start = end;
        }
        list
    }

    #[test]
    fn every_alternative_of_the_pattern_is_taken_in_its_order() {
        assert_eq!(pieces("I'm, we'LL 'tis"), ["I", "'m", ",", " we", "'LL", " '", "tis"]);
        assert_eq!(pieces("a1 23"), ["a", "1", " ", "2", "3"]);
        assert_eq!(pieces("x ...\r\n\ny"), ["x", " ...\r\n\n", "y"]);
        assert_eq!(pieces("a  \n \n  b"), ["a", "  \n \n", " ", " b"]);
        assert_eq!(pieces("a   "), ["a", "   "]);
        assert_eq!(pieces("a\u{a0}!\tb\u{a0}c"), ["a", "\u{a0}", "!", "\tb", "\u{a0}c"]);
    }

    #[test]
    fn every_character_falls_where_the_expression_puts_it() {
        let all: Vec<char> = (0..=0xe_0200).filter_map(char::from_u32).collect();
        for block in all.chunks(256) {
            let text: String = block.iter().flat_map(|c| ['a', *c, 'b', ' ', *c, '\'', *c, '\n']).collect();
            assert_eq!(pieces(&text), expected(&text));
        }
    }

    proptest! {
        #[test]
        fn any_text_falls_into_the_pieces_of_the_expression(
            parts in prop::collection::vec(prop_oneof![
                "[ \t\r\n\u{a0}\u{3000}\u{85}]{0,5}",
                "'(?i:s|t|re|ve|m|ll|d|\u{17f})?",
                "[a-zA-Z0-9'. \n]{0,8}",
                "\\PC{0,8}",
                "[\u{0}-\u{10ffff}]{0,4}",
            ], 0..12),
        ) {
            let text = parts.concat();
            prop_assert_eq!(pieces(&text), expected(&text));
        }
    }

    #[test]
    fn long_runs_take_time_in_proportion() {
        // A quadratic scanner would need hours for this.
        for unit in [" ", "\n", "a", "!", " \n", "\t"] {
            assert!(pieces(&unit.repeat(3_000_000)).len() < 10);
        }
    }
}
