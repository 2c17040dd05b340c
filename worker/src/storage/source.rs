//! Where a dataset is: checked once, at the door.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use thiserror::Error;
use url::{Host, Url};

use crate::redacted::{Redacted, shown_file, shown_path};

/// Longest address that is read. Signed URLs stay far below.
pub const MAX_SOURCE_BYTES: usize = 8192;
/// Longest key of an S3 object.
pub const MAX_S3_KEY_BYTES: usize = 1024;

/// A place that a dataset can be fetched from. `Display` and `Debug` show it without secrets.
#[derive(Clone, PartialEq, Eq)]
pub enum Source {
    /// A file of this machine.
    File(PathBuf),
    /// An `https://` or `http://` address, signed or not.
    Link(Redacted<Url>),
    /// An object of an S3 store.
    S3 {
        /// Its bucket.
        bucket: String,
        /// Its key.
        key: String,
    },
}

/// Why a text names no source. The text itself is not repeated: it may be signed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SourceError {
    /// Nothing there.
    #[error("is empty; give an https:// link, an s3://bucket/key, or a path")]
    Empty,
    /// Longer than [`MAX_SOURCE_BYTES`].
    #[error("has {bytes} bytes; at most {MAX_SOURCE_BYTES} are read")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Line breaks, tabs and their kin, which some programs drop silently.
    #[error("has a control character in it; copy the link again in one piece")]
    ControlCharacter,
    /// Something else than the schemes that are read.
    #[error("begins with {0}://, which is not read; use https://, s3:// or a path")]
    Scheme(String),
    /// No URL.
    #[error("is not a valid URL: {0}")]
    NotAUrl(String),
    /// `https://name:password@host`.
    #[error("has a name or password before its host; use a signed link instead")]
    UserInfo,
    /// A `file://` URL of another machine, or a relative one.
    #[error("a file:// URL must name an absolute path of this machine, as in file:///data/x.jsonl")]
    NotThisMachine,
    /// A `file://` URL that cannot be decoded.
    #[error("is a file:// URL that {0}")]
    FileUrl(&'static str),
    /// An `s3://` address that is none.
    #[error("is not of the form s3://bucket/key: {0}")]
    S3(&'static str),
}

// === impl Source ===

impl Source {
    /// Reads an address. What has no scheme is a local path.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        match text.len() {
            0 => return Err(SourceError::Empty),
            bytes if bytes > MAX_SOURCE_BYTES => return Err(SourceError::TooLong { bytes }),
            _ => {}
        }
        if text.chars().any(char::is_control) {
            return Err(SourceError::ControlCharacter);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return if text.trim().is_empty() { Err(SourceError::Empty) } else { Ok(Self::File(text.into())) };
        };
        match scheme.to_ascii_lowercase().as_str() {
            "https" | "http" => Ok(Self::Link(Redacted::url(link(text)?))),
            "s3" => s3(rest),
            "file" => file(rest),
            // A path may have "://" in it, but a scheme is letters only.
            other if other.len() <= 16 && other.chars().all(|c| c.is_ascii_alphanumeric()) => {
                Err(SourceError::Scheme(other.to_owned()))
            }
            _ => Err(SourceError::NotAUrl("its scheme is unknown".into())),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => formatter.write_str(&shown_file(path)),
            Self::Link(url) => url.fmt(formatter),
            Self::S3 { bucket, key } => write!(formatter, "s3://{bucket}/{}", shown_path(key)),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Source({self})")
    }
}

/// Checks a link that was given or that a server redirects to.
pub(crate) fn link(text: &str) -> Result<Url, SourceError> {
    checked(Url::parse(text).map_err(not_a_url)?)
}

/// As [`link`], for an address relative to another one.
pub(super) fn joined(base: &Url, text: &str) -> Result<Url, SourceError> {
    if text.len() > MAX_SOURCE_BYTES {
        return Err(SourceError::TooLong { bytes: text.len() });
    }
    checked(base.join(text).map_err(not_a_url)?)
}

fn not_a_url(error: url::ParseError) -> SourceError {
    SourceError::NotAUrl(match error {
        url::ParseError::RelativeUrlWithoutBase => "it must begin with https://".to_owned(),
        other => other.to_string(),
    })
}

fn checked(mut url: Url) -> Result<Url, SourceError> {
    if !matches!(url.scheme(), "https" | "http") {
        return Err(SourceError::Scheme(url.scheme().chars().take(16).collect()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(SourceError::UserInfo);
    }
    if url.host().is_none_or(|host| matches!(host, Host::Domain(""))) {
        return Err(SourceError::NotAUrl("it has no host".into()));
    }
    url.set_fragment(None);
    Ok(url)
}

fn s3(rest: &str) -> Result<Source, SourceError> {
    let (bucket, key) = rest.split_once('/').ok_or(SourceError::S3("there is no key"))?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let plain_bucket = (1..=255).contains(&bucket.len()) && bucket.chars().all(allowed);
    if !plain_bucket || bucket.starts_with('.') {
        return Err(SourceError::S3("a bucket is letters, digits, '.', '-' and '_'"));
    }
    if key.is_empty() || key.ends_with('/') {
        return Err(SourceError::S3("the key must name an object, not a folder"));
    }
    if key.len() > MAX_S3_KEY_BYTES {
        return Err(SourceError::S3("a key has at most 1024 bytes"));
    }
    if key.contains('?') {
        return Err(SourceError::S3("a key with a '?' looks like a signed link; give the https:// link instead"));
    }
    if key.split('/').any(|part| part == "." || part == "..") {
        return Err(SourceError::S3("'.' and '..' are no parts of a key"));
    }
    Ok(Source::S3 { bucket: bucket.to_owned(), key: key.to_owned() })
}

fn file(rest: &str) -> Result<Source, SourceError> {
    let path = rest.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(SourceError::NotThisMachine);
    }
    percent_decoded(path).map(|path| Source::File(Path::new(&path).to_owned())).map_err(SourceError::FileUrl)
}

fn percent_decoded(path: &str) -> Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = after;
            continue;
        }
        let digits = after.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let code = code.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|code| *code != 0);
        bytes.push(code.ok_or("has a '%' that two hexadecimal digits do not follow")?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 once its %-codes are decoded")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(text: &str) -> String {
        match Source::parse(text).unwrap() {
            Source::Link(url) => url.expose().to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_kind_of_source_is_read() {
        assert_eq!(link("https://h/a?token=x#part"), "https://h/a?token=x");
        assert_eq!(link("HTTP://H:80/a"), "http://h/a");
        let object = |key: &str| Source::S3 { bucket: "b-1".into(), key: key.into() };
        assert_eq!(Source::parse("s3://b-1/folder/ö x.jsonl"), Ok(object("folder/ö x.jsonl")));
        assert_eq!(Source::parse("file://localhost/a%2Fb"), Ok(Source::File("/a/b".into())));
        assert_eq!(Source::parse("data/x.jsonl"), Ok(Source::File("data/x.jsonl".into())));
    }

    /// All the spellings of 127.0.0.1 become one, which is what the address check sees.
    #[test]
    fn spellings_of_an_address_are_normalised() {
        for spelling in ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "127.0.0.1.", "①②⑦.0.0.1"] {
            assert_eq!(link(&format!("http://{spelling}/x")), "http://127.0.0.1/x", "{spelling}");
        }
    }

    #[test]
    fn what_is_no_source_is_refused_without_repeating_it() {
        let secret = "S3CR3Tvalue";
        let long = format!("https://h/{secret}{}", "a".repeat(MAX_SOURCE_BYTES));
        let cases = [
            ("", "empty"),
            ("  ", "empty"),
            (long.as_str(), "at most 8192"),
            ("https://h/a\nS3CR3Tvalue", "control character"),
            ("ftp://h/S3CR3Tvalue", "ftp://"),
            ("javascript://S3CR3Tvalue", "javascript://"),
            ("https://u:S3CR3Tvalue@h/", "password"),
            ("https://S3CR3Tvalue@h/", "password"),
            ("https://", "empty host"),
            ("https://[::1/S3CR3Tvalue", "not a valid URL"),
            ("S3CR3T value x://h", "not a valid URL"),
            ("file://host/x", "this machine"),
            ("file://x", "this machine"),
            ("file:///a%zz", "hexadecimal"),
            ("file:///a%f", "hexadecimal"),
            ("file:///a%00", "hexadecimal"),
            ("file:///%ff", "UTF-8"),
            ("s3://bucket", "no key"),
            ("s3://bucket/", "not a folder"),
            ("s3://b@d/S3CR3Tvalue", "a bucket is"),
            ("s3://b/k?X-Amz-Signature=S3CR3Tvalue", "signed link"),
            ("s3://b/../S3CR3Tvalue", "no parts"),
        ];
        for (text, expected) in cases {
            let error = Source::parse(text).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(error.to_string().contains(expected), "{text:?}: {error}");
            assert!(!shown.contains(secret), "{text:?}: {shown}");
        }
    }

    #[test]
    fn a_source_is_shown_without_secrets() {
        for text in ["https://h/a?token=S3CR3T", "h/a?token=S3CR3T", "s3://b/0123456789abcdefghS3CR3T"] {
            let source = Source::parse(text).unwrap();
            assert!(!format!("{source} {source:?}").contains("S3CR3T"), "{source:?}");
        }
    }
}
