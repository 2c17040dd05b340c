//! Secrets that can be carried about but not shown by accident.

use std::{fmt, path::Path};

use url::Url;

/// Shown instead of what is wholly secret.
const HIDDEN: &str = "[hidden]";
/// A run of so many letters and digits, with both in it, is taken for a token.
const TOKEN_RUN: usize = 16;
/// A run of letters alone is taken for a token when it is so long and has capitals in the middle.
const TOKEN_LETTERS: usize = 24;
/// Longest part of a path that is shown whole.
const MAX_SHOWN_SEGMENT: usize = 80;
/// What is left of a part of a path that is not shown whole.
const SHOWN_PREFIX: usize = 4;

/// A secret with a text that may be shown in its place. `Display` and `Debug` give that text; only [`Redacted::expose`]
/// gives the secret. There is no serialisation on purpose.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Redacted<T> {
    secret: T,
    shown: String,
}

// === impl Redacted ===

impl<T> Redacted<T> {
    /// A secret of which nothing is shown.
    pub fn hidden(secret: T) -> Self {
        Self { secret, shown: HIDDEN.to_owned() }
    }

    /// The secret itself. Whoever calls this answers for where it goes.
    pub fn expose(&self) -> &T {
        &self.secret
    }
}

impl Redacted<Url> {
    /// A URL of which scheme, host and path are shown, without parts of the path that look like tokens.
    pub fn url(secret: Url) -> Self {
        let mut shown = format!("{}://{}", secret.scheme(), secret.host_str().unwrap_or_default());
        if let Some(port) = secret.port() {
            shown.push_str(&format!(":{port}"));
        }
        shown.push_str(&shown_path(secret.path()));
        Self { secret, shown }
    }
}

impl<T> fmt::Display for Redacted<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.shown)
    }
}

impl<T> fmt::Debug for Redacted<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Redacted({})", self.shown)
    }
}

/// A path of a URL or a key of an object store, without parts that look like tokens.
pub(crate) fn shown_path(path: &str) -> String {
    path.split('/').map(shown_segment).collect::<Vec<_>>().join("/")
}

/// A local path. What follows a `?` may be the query of a link that lost its scheme.
pub(crate) fn shown_file(path: &Path) -> String {
    let text = path.display().to_string();
    match text.split_once('?') {
        Some((before, _)) => format!("{before}?…"),
        None => text,
    }
}

fn shown_segment(segment: &str) -> String {
    let token = segment.split(|c: char| !c.is_ascii_alphanumeric()).any(looks_like_a_token);
    if !token && segment.chars().count() <= MAX_SHOWN_SEGMENT && !segment.chars().any(char::is_control) {
        return segment.to_owned();
    }
    let prefix: String = segment.chars().take_while(|c| !c.is_control()).take(SHOWN_PREFIX).collect();
    format!("{prefix}…")
}

fn looks_like_a_token(run: &str) -> bool {
    let has = |kind: fn(&u8) -> bool| run.as_bytes().iter().any(kind);
    let mixed = has(u8::is_ascii_digit) && has(u8::is_ascii_alphabetic);
    let capitals = has(u8::is_ascii_lowercase) && run.as_bytes().iter().skip(1).any(u8::is_ascii_uppercase);
    (run.len() >= TOKEN_RUN && mixed) || (run.len() >= TOKEN_LETTERS && capitals)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(url: &str) -> String {
        let redacted = Redacted::url(Url::parse(url).unwrap());
        assert_eq!(format!("{redacted:?}"), format!("Redacted({redacted})"));
        redacted.to_string()
    }

    #[test]
    fn a_url_is_shown_without_its_secrets() {
        assert_eq!(
            shown("https://user:pass@host.example:8443/a/b.jsonl?token=secret#fragment"),
            "https://host.example:8443/a/b.jsonl"
        );
        assert_eq!(shown("https://h/eyJhbGciOiJIUzI1NiJ9.eyJ1cmwiOiJhIn0.c2lnbmF0dXJl/x"), "https://h/eyJh…/x");
        assert_eq!(shown("https://h/d/0123456789abcdef0123456789abcdef"), "https://h/d/0123…");
        assert_eq!(shown("https://h/AbCdEfGhIjKlMnOpQrStUvWxYz/x"), "https://h/AbCd…/x");
        assert_eq!(shown(&format!("https://h/{}", "a".repeat(200))), "https://h/aaaa…");
    }

    #[test]
    fn names_that_people_give_are_shown() {
        for path in [
            "/storage/v1/object/sign/training-files/my-dataset-2026-05-01.final.jsonl",
            "/3fa85f64-5717-4562-b3fc-2c963f66afa6/data.jsonl",
            "/bucket/conversations_of_the_month.jsonl.gz",
        ] {
            assert_eq!(shown(&format!("https://h{path}")), format!("https://h{path}"));
        }
    }

    #[test]
    fn what_is_hidden_is_hidden() {
        let key = Redacted::hidden("wJalrXUtnFEMI".to_owned());
        assert_eq!((format!("{key}"), format!("{key:?}")), ("[hidden]".into(), "Redacted([hidden])".into()));
        assert_eq!(key.expose(), "wJalrXUtnFEMI");
    }

    #[test]
    fn a_link_without_its_scheme_is_no_leak() {
        assert_eq!(shown_file(Path::new("h.supabase.co/x?token=secret")), "h.supabase.co/x?…");
        assert_eq!(shown_file(Path::new("data/a.jsonl")), "data/a.jsonl");
    }
}
