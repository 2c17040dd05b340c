//! `manifest.json`: what a checkpoint consists of, and a hash of that statement itself.
//!
//! ```text
//! {"sha256":"<of the bytes of the object below>","manifest":{"format":1,"step":40,"best":false,"files":[…]}}
//! ```
//!
//! The outer shape is the same in every version of the format, so that a newer checkpoint is told from a damaged one.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Version of the format.
pub(super) const FORMAT: u64 = 1;
/// Most bytes of a manifest.
pub(super) const MAX_BYTES: u64 = 64 * 1024;
/// Steps are numbers that JSON readers of every kind can tell apart.
pub(super) const MAX_STEP: u64 = 1 << 53;

/// Values of the adapter.
pub(super) const ADAPTER: &str = "adapter.safetensors";
/// State of the optimiser.
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
/// Where the run stands.
pub(super) const PROGRESS: &str = "progress.json";
/// What was measured so far.
pub(super) const METRICS: &str = "metrics.jsonl";
/// What the run is.
pub(super) const FINGERPRINT: &str = "fingerprint.json";
/// The manifest itself.
pub(super) const MANIFEST: &str = "manifest.json";

/// The files of a checkpoint, in the order in which they are listed and read; no other name is ever opened.
pub(super) const FILES: [&str; 5] = [FINGERPRINT, PROGRESS, METRICS, ADAPTER, OPTIMIZER];

const HEAD: &str = "{\"sha256\":\"";
const MIDDLE: &str = "\",\"manifest\":";
const TAIL: &str = "}\n";
/// Characters of a SHA-256.
const DIGEST_CHARACTERS: usize = 64;

/// Size and SHA-256 of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) bytes: u64,
    /// Small hexadecimal digits.
    pub(super) sha256: String,
}

/// What a checkpoint consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) step: u64,
    pub(super) best: bool,
    /// One for each of [`FILES`].
    pub(super) sums: Vec<Sum>,
}

/// Why a manifest is of no use.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is not what was written.
    Damaged(String),
    /// It is whole, and of another version.
    OtherFormat(u64),
}

/// The part that the hash covers.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    format: u64,
    step: u64,
    best: bool,
    files: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    bytes: u64,
    sha256: String,
}

/// All that every version has.
#[derive(Deserialize)]
struct Version {
    format: u64,
}

// === impl Manifest ===

impl Manifest {
    pub(super) fn text(&self) -> serde_json::Result<String> {
        let entry = |(name, sum): (&&str, &Sum)| Entry {
            name: (*name).to_owned(),
            bytes: sum.bytes,
            sha256: sum.sha256.clone(),
        };
        let files = FILES.iter().zip(&self.sums).map(entry).collect();
        let body = Body { format: FORMAT, step: self.step, best: self.best, files };
        Ok(sealed(&serde_json::to_string(&body)?))
    }

    pub(super) fn parse(text: &[u8]) -> Result<Self, Refusal> {
        let damaged = |reason: &str| Refusal::Damaged(reason.to_owned());
        let body = opened(text).ok_or_else(|| damaged("its hash is not that of its content"))?;
        let unreadable = |error: serde_json::Error| Refusal::Damaged(error.to_string());
        let Version { format } = serde_json::from_str(body).map_err(unreadable)?;
        if format != FORMAT {
            return Err(Refusal::OtherFormat(format));
        }
        let body: Body = serde_json::from_str(body).map_err(unreadable)?;
        if !body.files.iter().map(|entry| entry.name.as_str()).eq(FILES) {
            return Err(Refusal::Damaged(format!("lists other files than {}", FILES.join(", "))));
        }
        if body.step > MAX_STEP {
            return Err(Refusal::Damaged(format!("step {} is above {MAX_STEP}", body.step)));
        }
        let sums = body.files.into_iter().map(|entry| Sum { bytes: entry.bytes, sha256: entry.sha256 }).collect();
        Ok(Self { step: body.step, best: body.best, sums })
    }

    /// Size and hash of one of [`FILES`].
    pub(super) fn sum(&self, name: &str) -> Option<&Sum> {
        FILES.iter().position(|file| *file == name).and_then(|index| self.sums.get(index))
    }
}

/// A body with its hash.
pub(super) fn sealed(body: &str) -> String {
    let digest = hex::encode(Sha256::digest(body));
    [HEAD, &digest, MIDDLE, body, TAIL].concat()
}

/// The body of a text that is exactly what [`sealed`] makes of it.
fn opened(text: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(text).ok()?;
    let (digest, rest) = text.strip_prefix(HEAD)?.split_at_checked(DIGEST_CHARACTERS)?;
    let body = rest.strip_prefix(MIDDLE)?.strip_suffix(TAIL)?;
    (hex::encode(Sha256::digest(body)) == digest).then_some(body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest() -> Manifest {
        let sum = |index: u64| Sum { bytes: index * 1000, sha256: hex::encode([index as u8; 32]) };
        Manifest { step: 40, best: true, sums: (0..FILES.len() as u64).map(sum).collect() }
    }

    fn damage(body: &str) -> String {
        match Manifest::parse(sealed(body).as_bytes()) {
            Err(Refusal::Damaged(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_reads_back_as_json_too() {
        let text = manifest().text().unwrap();
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap(), manifest());
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["manifest"]["step"], 40);
        assert_eq!(json["manifest"]["files"][4]["name"], OPTIMIZER);
        assert!((text.len() as u64) < MAX_BYTES);
    }

    #[test]
    fn files_are_those_of_the_format_and_no_others() {
        let text = manifest().text().unwrap();
        let body = opened(text.as_bytes()).unwrap();
        for other in ["../secret", "/etc/passwd", "progress.json/../x", "", "manifest.json"] {
            assert!(damage(&body.replace(PROGRESS, other)).contains("other files"), "{other}");
        }
        assert!(damage(&body.replace("\"step\":40", "\"step\":99999999999999999")).contains("step"));
        assert!(damage(&body.replace("\"step\"", "\"stop\"")).contains("stop"));
        assert!(damage("[]").contains("invalid"));
        assert!(damage(&"[".repeat(10_000)).contains("invalid"));
        let other = Manifest::parse(sealed("{\"format\":7,\"anything\":[]}").as_bytes());
        assert_eq!(other, Err(Refusal::OtherFormat(7)));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let text = manifest().text().unwrap().into_bytes();
        for bit in 0..8 * text.len() {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Manifest::parse(&flipped), Err(Refusal::Damaged(_))), "bit {bit}");
        }
        for end in 0..text.len() {
            assert!(matches!(Manifest::parse(&text[..end]), Err(Refusal::Damaged(_))), "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), body in ".{0,200}") {
            prop_assert!(Manifest::parse(&bytes).is_err());
            prop_assert!(Manifest::parse(sealed(&body).as_bytes()).is_err());
        }
    }
}
