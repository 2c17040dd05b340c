//! Operations of Python's `str` where Rust's differ.

/// `str.isspace` of one character: Unicode's white space and the four separators of ASCII.
pub(in crate::dataset::template) fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

/// Which end of a string is stripped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
    Both,
}

/// `strip`, `lstrip`, `rstrip`: of white space, or of any of these characters.
pub(super) fn strip<'a>(text: &'a str, characters: Option<&str>, side: Side) -> &'a str {
    let strips = |character: char| match characters {
        Some(characters) => characters.contains(character),
        None => is_space(character),
    };
    match side {
        Side::Left => text.trim_start_matches(strips),
        Side::Right => text.trim_end_matches(strips),
        Side::Both => text.trim_matches(strips),
    }
}

/// `split` and `rsplit`; `most` splits at most, from the left or from the right.
pub(super) fn split(text: &str, separator: Option<&str>, most: Option<usize>, from_right: bool) -> Vec<String> {
    let Some(separator) = separator else { return split_white_space(text, most, from_right) };
    let pieces = most.map_or(usize::MAX, |most| most.saturating_add(1));
    let mut parts: Vec<String> = match from_right {
        false => text.splitn(pieces, separator).map(str::to_owned).collect(),
        true => text.rsplitn(pieces, separator).map(str::to_owned).collect(),
    };
    if from_right {
        parts.reverse();
    }
    parts
}

fn split_white_space(text: &str, most: Option<usize>, from_right: bool) -> Vec<String> {
    // The next piece begins at the near side; white space at the far side stays with a rest that is not split any more.
    let near = if from_right { Side::Right } else { Side::Left };
    let mut parts = Vec::new();
    let mut rest = strip(text, None, near);
    while !rest.is_empty() {
        let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(cut) = cut.filter(|_| most.is_none_or(|most| parts.len() < most)) else {
            parts.push(rest.to_owned());
            break;
        };
        let (head, tail) = rest.split_at(cut);
        let (piece, remaining) = if from_right { (tail, head) } else { (head, tail) };
        parts.push(strip(piece, None, Side::Both).to_owned());
        rest = strip(remaining, None, near);
    }
    if from_right {
        parts.reverse();
    }
    parts
}

/// `splitlines`: at every line end that Unicode knows.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<String> {
    let ends = |c: char| {
        matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(found) = rest.find(ends) {
        let length =
            if rest[found..].starts_with("\r\n") { 2 } else { rest[found..].chars().next().map_or(1, char::len_utf8) };
        lines.push(rest[..if keep_ends { found + length } else { found }].to_owned());
        rest = &rest[found + length..];
    }
    if !rest.is_empty() {
        lines.push(rest.to_owned());
    }
    lines
}

/// `capitalize`: the first character upper case, the rest lower case.
pub(super) fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first.to_uppercase().collect::<String>() + &characters.as_str().to_lowercase(),
        None => String::new(),
    }
}

/// `str.title`: every run of letters capitalised.
pub(super) fn title(text: &str) -> String {
    titled(text, |character| character.is_uppercase() || character.is_lowercase())
}

/// Jinja2's filter `title`: every word capitalised; a word ends at white space, a hyphen or an opening bracket.
pub(super) fn title_words(text: &str) -> String {
    titled(text, |character| !is_space(character) && !matches!(character, '-' | '(' | '{' | '[' | '<'))
}

/// Upper case after a character that is not inside a word, lower case after one that is.
fn titled(text: &str, is_inside: impl Fn(char) -> bool) -> String {
    let mut inside = false;
    let mut titled = String::with_capacity(text.len());
    for character in text.chars() {
        match inside {
            false => titled.extend(character.to_uppercase()),
            true => titled.extend(character.to_lowercase()),
        }
        inside = is_inside(character);
    }
    titled
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The right-hand sides are CPython's.
    #[test]
    fn splits_are_those_of_python() {
        assert_eq!(split(" a  b \u{1c}c ", None, None, false), ["a", "b", "c"]);
        assert_eq!(split("  a b  ", None, Some(1), false), ["a", "b  "]);
        assert_eq!(split("  a b  ", None, Some(0), false), ["a b  "]);
        assert_eq!(split(" a b ", None, Some(1), true), [" a", "b"]);
        assert_eq!(split("", None, None, false), [""; 0]);
        assert_eq!(split("", Some(","), None, false), [""]);
        assert_eq!(split("a,b,c", Some(","), Some(1), false), ["a", "b,c"]);
        assert_eq!(split("a,b,c", Some(","), Some(1), true), ["a,b", "c"]);
        assert_eq!(lines("a\r\nb\n\nc\u{2028}d\r", false), ["a", "b", "", "c", "d"]);
        assert_eq!(lines("a\r\nb", true), ["a\r\n", "b"]);
        assert_eq!(strip("\u{1f} a \u{a0}", None, Side::Both), "a");
        assert_eq!(strip("xxaxx", Some("x"), Side::Right), "xxa");
    }

    #[test]
    fn titles_are_those_of_python_and_jinja() {
        assert_eq!(title("it's a-b c3po"), "It'S A-B C3Po");
        assert_eq!(title_words("it's a-b c3po (foo"), "It's A-B C3po (Foo");
        assert_eq!(capitalize("éCOLE École"), "École école");
    }
}
