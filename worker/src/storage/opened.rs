//! An answer that holds a file, or the rest of one.

use aws_sdk_s3::primitives::ByteStream;
use hyper::body::Bytes;

use super::{
    error::{Trouble, TroubleKind},
    partial::{Content, Validator},
};
use crate::net::Body;

/// Longest entity tag that is kept.
const MAX_VALIDATOR_BYTES: usize = 256;

/// Where to go on, and what the content must still be.
#[derive(Debug, Clone)]
pub(super) struct Rest {
    pub(super) from: u64,
    pub(super) validator: Validator,
}

/// An answer that holds a file, from some byte on.
pub(super) struct Opened {
    pub(super) start: u64,
    /// Bytes that this answer will bring, where that is known.
    pub(super) length: Option<u64>,
    pub(super) content: Content,
    pub(super) flow: Flow,
}

/// The bytes of an answer.
pub(super) enum Flow {
    Web(Body),
    S3(ByteStream),
}

impl Flow {
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Trouble> {
        match self {
            Self::Web(body) => Ok(body.next().await?),
            // The SDK's error names its layers; what happened is always that the bytes ended or were not the right ones.
            Self::S3(stream) => stream.try_next().await.map_err(|_| {
                Trouble::new(
                    TroubleKind::ServerFailed,
                    "the connection ended before the object did, or its checksum is wrong",
                )
            }),
        }
    }

    pub(super) async fn sends_more(self) -> bool {
        match self {
            Self::Web(body) => body.sends_more().await,
            // The SDK compares lengths itself.
            Self::S3(_) => false,
        }
    }
}

/// Which content this is: by a strong entity tag, or else by its date.
pub(super) fn validator(tag: Option<&str>, modified: Option<&str>) -> Option<Validator> {
    let usable =
        |value: &&str| value.len() <= MAX_VALIDATOR_BYTES && value.bytes().all(|byte| (32..127).contains(&byte));
    match tag.filter(usable) {
        Some(tag) if tag.starts_with('"') && tag.ends_with('"') && tag.len() > 2 => Some(Validator::ETag(tag.into())),
        // A weak tag says that the content means the same, not that it is the same; a date beside it says no more.
        Some(_) => None,
        None => modified.filter(usable).map(|date| Validator::LastModified(date.into())),
    }
}

/// `bytes 5-9/10`: first byte, last byte, length of all.
pub(super) fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let total = if total == "*" { None } else { Some(number(total)?) };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, last, total))
}

/// Start, length and total of an answer to a request for the rest, checked against what is there.
pub(super) fn check_range(text: &str, rest: &Rest, length: Option<u64>, total: Option<u64>) -> Result<u64, Trouble> {
    let wrong = || Trouble::broken_anew("it was asked for the rest of the file and sent another part");
    let (first, last, said) = content_range(text).ok_or_else(wrong)?;
    let long = last - first + 1;
    let consistent = first == rest.from
        && length.is_none_or(|length| length == long)
        && said.is_none_or(|said| said == last + 1 && total.is_none_or(|total| said == total))
        && said.or(total) == Some(last + 1);
    if consistent { Ok(long) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_strictly() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, 9, None)));
        for text in [
            "",
            "bytes",
            "bytes */10",
            "5-9/10",
            "bytes 9-5/10",
            "bytes 5-10/10",
            "bytes +5-9/10",
            "bytes 5-9/",
            "bytes 5-9/99999999999999999999",
        ] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }

    #[test]
    fn the_rest_must_be_the_rest() {
        let rest = Rest { from: 5, validator: Validator::ETag("\"a\"".into()) };
        let check = |text, length, total| check_range(text, &rest, length, total).ok();
        assert_eq!(check("bytes 5-9/10", Some(5), Some(10)), Some(5));
        assert_eq!(check("bytes 5-9/10", None, None), Some(5));
        assert_eq!(check("bytes 5-9/*", None, Some(10)), Some(5));
        for (text, length, total) in [
            ("bytes 4-9/10", None, Some(10)),
            ("bytes 6-9/10", None, Some(10)),
            ("bytes 5-8/10", None, Some(10)),
            ("bytes 5-9/11", None, Some(10)),
            ("bytes 5-10/11", None, Some(10)),
            ("bytes 5-9/10", Some(4), Some(10)),
            ("bytes 5-9/*", None, None),
            ("bytes", None, None),
        ] {
            assert_eq!(check(text, length, total), None, "{text}");
        }
    }

    #[test]
    fn only_what_is_the_same_byte_for_byte_validates() {
        assert_eq!(validator(Some("\"a\""), Some("x")), Some(Validator::ETag("\"a\"".into())));
        assert_eq!(validator(None, Some("Thu, 01")), Some(Validator::LastModified("Thu, 01".into())));
        for tag in ["W/\"a\"", "a", "\"", "\"\"", "\"ä\"", &format!("\"{}\"", "a".repeat(300))] {
            let expected = (tag.len() > 256 || !tag.is_ascii()).then(|| Validator::LastModified("x".into()));
            assert_eq!(validator(Some(tag), Some("x")), expected, "{tag}");
        }
    }
}
