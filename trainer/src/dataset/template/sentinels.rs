//! Finding a content in a text by rendering it once more with a character before and one after it that stand nowhere else.
//!
//! Nothing is guessed: without these characters the text must be the one that was there before.

use std::ops::Range;

use super::{python::text::is_space, shape::THINK};

/// Characters that no text contains: they are reserved for use inside of programs.
const NONCHARACTERS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// Two characters of which `occurs` says that they do not.
pub(super) fn unused(occurs: impl Fn(char) -> bool) -> Option<(char, char)> {
    let mut free = NONCHARACTERS.filter(|character| !occurs(*character));
    Some((free.next()?, free.next()?))
}

/// The part of a content that is surrounded: without the white space at its ends, which templates like to trim, and without
/// the tag that opens its reasoning, before which they like to cut.
pub(super) fn core(content: &str) -> Range<usize> {
    let end = content.trim_end_matches(is_space).len();
    let trimmed = content[..end].trim_start_matches(is_space);
    let inner = trimmed.strip_prefix(THINK).map_or(trimmed, |reasoning| reasoning.trim_start_matches(is_space));
    if end == 0 { content.len()..content.len() } else { end - inner.len()..end }
}

/// A content with sentinels around its core.
pub(super) fn surround(content: &str, (before, after): (char, char)) -> String {
    let Range { start, end } = core(content);
    format!("{}{before}{}{after}{}", &content[..start], &content[start..end], &content[end..])
}

/// Where a content stands in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Where its core begins; `None` if the template left its beginning out.
    pub(super) start: Option<usize>,
    /// Where its core ends; `None` if the template left its end out.
    pub(super) end: Option<usize>,
}

/// Where the sentinels of `marked` stand in `text`; `None` if it is not the same text, or has them twice.
pub(super) fn place(text: &str, marked: &str, (before, after): (char, char)) -> Option<Place> {
    let find = |sentinel: char| {
        let mut found = marked.match_indices(sentinel).map(|(at, _)| at);
        let first = found.next();
        found.next().is_none().then_some(first)
    };
    let (start, end) = (find(before)?, find(after)?);
    if start.zip(end).is_some_and(|(start, end)| end < start) || marked.replace([before, after], "") != text {
        return None;
    }
    let shift = start.map_or(0, |_| before.len_utf8());
    Some(Place { start, end: end.map(|end| end - shift) })
}

/// How far two texts that follow a content agree without cutting a token of the template, a tag or a word in two.
pub(super) fn agreement(here: &str, there: &str, tokens: &[String]) -> usize {
    let same = here.char_indices().zip(there.chars()).take_while(|((_, left), right)| left == right);
    let mut end = same.map(|((at, character), _)| at + character.len_utf8()).last().unwrap_or(0);
    if end == there.len() {
        return end;
    }
    loop {
        let cut = [here, there].iter().filter_map(|text| cut_open(text, end, tokens)).min();
        match cut {
            Some(cut) => end = cut,
            None => return end,
        }
    }
}

/// The beginning of what a cut at `end` would divide.
fn cut_open(text: &str, end: usize, tokens: &[String]) -> Option<usize> {
    let (head, tail) = text.split_at(end);
    let divided = |token: &String| {
        (1..token.len()).rev().filter(|length| token.is_char_boundary(*length)).find_map(|length| {
            let (left, right) = token.split_at(length);
            (head.ends_with(left) && tail.starts_with(right)).then(|| end - length)
        })
    };
    let token = tokens.iter().filter_map(divided).min();
    let tag = [('<', '>'), ('[', ']')].into_iter().filter_map(|(open, close)| {
        let start = head.rfind(open)?;
        let divided = !head[start..].contains(close) && !head[start..].contains(char::is_whitespace);
        divided.then_some(start)
    });
    let word = head.len() - head.trim_end_matches(char::is_alphanumeric).len();
    let word = (word > 0 && tail.starts_with(char::is_alphanumeric)).then(|| end - word);
    token.into_iter().chain(tag).chain(word).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: (char, char) = ('⟨', '⟩');

    #[test]
    fn sentinels_stand_inside_of_white_space() {
        assert_eq!(surround(" \na b ", PAIR), " \n⟨a b⟩ ");
        assert_eq!(surround("", PAIR), "⟨⟩");
        assert_eq!(surround(" \n", PAIR), " \n⟨⟩");
        assert_eq!(surround("\n<think>\na</think> b\n", PAIR), "\n<think>\n⟨a</think> b⟩\n");
        assert_eq!(surround("<think>\n", PAIR), "<think>⟨⟩\n");
        assert_eq!(unused(|character| character < '\u{fdee}'), Some(('\u{fdee}', '\u{fdef}')));
        assert_eq!(unused(|character| character < '\u{fdef}'), None);
    }

    #[test]
    fn a_place_is_found_only_in_the_same_text() {
        let found = |start, end| Some(Place { start, end });
        assert_eq!(place("xaby", "x⟨ab⟩y", PAIR), found(Some(1), Some(3)));
        assert_eq!(place("xby", "xb⟩y", PAIR), found(None, Some(2)));
        assert_eq!(place("xy", "xy", PAIR), found(None, None));
        assert_eq!(place("xaby", "x⟨ab⟩z", PAIR), None);
        assert_eq!(place("xaa", "x⟨a⟨a⟩", PAIR), None);
        assert_eq!(place("xa", "x⟩a⟨", PAIR), None);
    }

    #[test]
    fn texts_agree_up_to_a_whole_token() {
        let tokens = ["⟦sep⟧".to_owned(), "</s>".into()];
        assert_eq!(agreement("<|end|>\n<|user|>\n", "<|end|>\n<|endoftext|>", &[]), 8);
        assert_eq!(agreement("<|end|>\n", "<|end|>\n<|endoftext|>", &[]), 8);
        assert_eq!(agreement("\n⟦sen⟧x", "\n⟦sep⟧", &tokens), 1);
        assert_eq!(agreement(" </s>[INST]", " </s>", &tokens), 5);
        assert_eq!(agreement("\nUSER: x", "\nUSELESS", &[]), 1);
        assert_eq!(agreement("a < b", "a < c", &[]), 4);
        assert_eq!(agreement("x", "y", &[]), 0);
    }
}
