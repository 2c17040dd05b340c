//! Text of foreign origin (names of jobs, models and files, warnings) in Markdown, YAML, Python and the shell: it is shown,
//! and never means anything.

use std::fmt::Write;

/// Longest foreign text in the card.
const MAX_LETTERS: usize = 400;

/// In a line of Markdown. One line, nothing of it is markup, HTML or a link.
pub(super) fn markdown(text: &str) -> String {
    let mut out = String::new();
    let text = shortened(text);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let link = letter == ':' && letters.peek() == Some(&'/');
        // `www.` alone is a link in the dialect of code hosts.
        let host = letter == '.' && out.to_ascii_lowercase().ends_with("www");
        if link || host || "\\`*_[]<>|~#&$@!".contains(letter) {
            out.push('\\');
        }
        out.push(letter);
    }
    out
}

/// A text in double quotes, as YAML and Python read it alike: letters outside ASCII and those that mean something become
/// `\xHH`, `\uHHHH` or `\UHHHHHHHH`. Backticks too, so that no fence of the card ends in it.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in shortened(text).chars() {
        // Writing to a text cannot fail.
        let _ = match letter {
            ' '..='~' if !"\"\\`".contains(letter) => write!(out, "{letter}"),
            '\0'..='\u{ff}' => write!(out, "\\x{:02x}", letter as u32),
            '\u{100}'..='\u{ffff}' => write!(out, "\\u{:04x}", letter as u32),
            _ => write!(out, "\\U{:08x}", letter as u32),
        };
    }
    out.push('"');
    out
}

/// An argument of a shell's command, in single quotes where it needs them.
pub(super) fn shell(text: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=:".contains(letter);
    let text: String = shortened(text).replace('`', "'");
    if !text.is_empty() && text.chars().all(plain) && !text.starts_with('-') {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// One line without invisible letters, cut where it is long.
fn shortened(text: &str) -> String {
    let invisible = |letter: &char| {
        // Marks that change the direction of what follows, and those of no width.
        matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let text: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
    let text: String = words.join(" ").chars().filter(|letter| !invisible(letter)).collect();
    match text.char_indices().nth(MAX_LETTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_becomes_text() {
        assert_eq!(markdown("a **b** `c` <script>"), "a \\*\\*b\\*\\* \\`c\\` \\<script\\>");
        assert_eq!(markdown("[x](javascript:1) | y\n# z\r\n---"), "\\[x\\](javascript:1) \\| y \\# z ---");
        assert_eq!(markdown("![i](http://a.b) www.c.d e@f.g"), "\\!\\[i\\](http\\://a.b) www\\.c.d e\\@f.g");
        assert_eq!(markdown("a\u{202e}b\u{0}c"), "ab c");
        assert_eq!(markdown(&"é".repeat(1000)).chars().count(), MAX_LETTERS + 1);
    }

    #[test]
    fn quotes_hold() {
        assert_eq!(quoted("a\"\\\n---\nb: c"), r#""a\x22\x5c --- b: c""#);
        assert_eq!(quoted("é–😀\u{7f}"), "\"\\xe9\\u2013\\U0001f600\"");
        assert_eq!(quoted("x\"); import os #```"), "\"x\\x22); import os #\\x60\\x60\\x60\"");
        assert_eq!(shell("Qwen/Qwen3-30B"), "Qwen/Qwen3-30B");
        assert_eq!(shell("a'; rm -rf $HOME `b`"), "'a'\\''; rm -rf $HOME '\\''b'\\'''");
        assert_eq!(shell("--evil"), "'--evil'");
    }
}
