//! What lies in a store under a key, and whether it is the file that should lie there.

use aws_sdk_s3::{
    operation::head_object::HeadObjectOutput,
    types::{ChecksumType, ServerSideEncryption},
};
use base64_simd::STANDARD as BASE64;

use super::{bucket::NOTE, measured::Measured};

/// Letters of an MD5 in hexadecimal digits.
const MD5_LETTERS: usize = 32;

/// What a store says of an object.
#[derive(Debug, Default)]
pub(super) struct Held {
    bytes: Option<u64>,
    /// Without its quotes.
    tag: String,
    /// Of the whole object, in base 64.
    sha256: Option<String>,
    /// The note of its sender.
    note: Option<String>,
    /// The tag of an object under the store's own keys is no hash.
    other_tag: bool,
}

/// Whether an object is a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Likeness {
    Same,
    Different(String),
    /// Its tag looks like a hash, and is not the one of the file.
    Doubtful,
    /// The length is right, and the store says nothing more.
    Untold,
}

// === impl Held ===

impl Held {
    pub(super) fn of(answer: &HeadObjectOutput) -> Self {
        let whole = answer.checksum_type().is_none_or(|kind| *kind == ChecksumType::FullObject);
        let by_parts = |sum: &&str| sum.contains('-');
        let sha256 = answer.checksum_sha256().filter(|_| whole).filter(|sum| !by_parts(sum)).map(str::to_owned);
        let plain = |kind: &ServerSideEncryption| *kind == ServerSideEncryption::Aes256;
        Self {
            bytes: answer.content_length().and_then(|bytes| u64::try_from(bytes).ok()),
            tag: answer.e_tag().unwrap_or_default().trim_matches('"').to_ascii_lowercase(),
            sha256,
            note: answer.metadata().and_then(|notes| notes.get(NOTE)).cloned(),
            other_tag: !answer.server_side_encryption().is_none_or(plain) || answer.sse_customer_algorithm().is_some(),
        }
    }

    pub(super) fn likeness(&self, measured: &Measured) -> Likeness {
        if let Some(bytes) = self.bytes.filter(|bytes| *bytes != measured.whole.bytes) {
            return Likeness::Different(format!("it has {bytes} bytes and not {}", measured.whole.bytes));
        }
        if let Some(sum) = &self.sha256 {
            return match *sum == BASE64.encode_to_string(measured.whole.sha256) {
                true => Likeness::Same,
                false => Likeness::Different("it has another SHA-256".into()),
            };
        }
        if self.tag == hex::encode(measured.whole.md5) || self.tag == measured.tag_of_parts() {
            return Likeness::Same;
        }
        let (hash, parts) = self.tag.split_once('-').unwrap_or((&self.tag, "1"));
        let hash = hash.len() == MD5_LETTERS && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        let like_a_hash = hash && parts.bytes().all(|byte| byte.is_ascii_digit());
        if like_a_hash && !self.other_tag { Likeness::Doubtful } else { Likeness::Untold }
    }

    /// Whether the file lies there already: by its hash, or by its sender's note where the store tells no hash.
    pub(super) fn need_not_be_sent(&self, measured: &Measured) -> bool {
        match self.likeness(measured) {
            Likeness::Same => true,
            Likeness::Untold => self.bytes.is_some() && self.note == Some(measured.whole.hex()),
            Likeness::Different(_) | Likeness::Doubtful => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_util::sync::CancellationToken;

    #[test]
    fn objects_are_compared_by_what_the_store_tells() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, b"0123456789").unwrap();
        let measured = Measured::of("a", &path, |_| 4, &CancellationToken::new()).unwrap();
        let held = || Held { bytes: Some(10), ..Held::default() };
        let note = Some(measured.whole.hex());
        let sum = Some(BASE64.encode_to_string(measured.whole.sha256));
        let (md5, other) = ("781e5e245d69b566979b86e28d23f2c7", "00000000000000000000000000000000");
        let cases = [
            (held(), Likeness::Untold, false),
            (Held { note: note.clone(), ..held() }, Likeness::Untold, true),
            (Held { tag: md5.into(), ..held() }, Likeness::Same, true),
            (Held { tag: measured.tag_of_parts(), ..held() }, Likeness::Same, true),
            (Held { tag: other.into(), note: note.clone(), ..held() }, Likeness::Doubtful, false),
            (Held { tag: format!("{other}-3"), ..held() }, Likeness::Doubtful, false),
            (Held { tag: other.into(), other_tag: true, ..held() }, Likeness::Untold, false),
            (Held { tag: "opaque".into(), note, ..held() }, Likeness::Untold, true),
            (Held { sha256: sum, tag: other.into(), ..held() }, Likeness::Same, true),
        ];
        for (held, expected, skipped) in cases {
            assert_eq!((held.likeness(&measured), held.need_not_be_sent(&measured)), (expected, skipped), "{held:?}");
        }
        for held in [Held { bytes: Some(9), ..held() }, Held { sha256: Some("x".into()), tag: md5.into(), ..held() }] {
            assert!(matches!(held.likeness(&measured), Likeness::Different(_)), "{held:?}");
        }
    }
}
