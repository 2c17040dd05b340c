//! What a run shows for itself: that the ops of this machine compute what they should, that the base is the one it began
//! with, and that the adapter is not.
//!
//! The numbers come from [`Model::digest`](crate::model::Model::digest), from
//! [`Adapters::digest`](crate::adapters::Adapters::digest) and [`changed_since`](crate::adapters::Adapters::changed_since),
//! and from [`self_test`]; what is here is plain data that goes into a checkpoint or a result.

use std::collections::BTreeMap;
use std::fmt;

use brightrun_kernels::gpu::Gpu;
use brightrun_kernels::gpu_check::{Check, Family, Sizes};
use brightrun_kernels::self_test as kernels;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// A SHA-256, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// The digests of an adapter's modules at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterDigest {
    /// Of `A` and `B` together, by module path.
    pub modules: BTreeMap<String, Digest>,
}

/// What became of an adapter since the start of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Digest of the whole adapter at the start.
    pub digest_before: Digest,
    /// Digest of the whole adapter now.
    pub digest_after: Digest,
    /// Modules of every kind but routed experts.
    pub modules: ModuleCount,
    /// Projections of routed experts. One whose expert never got a token rightly stays as it was.
    pub routed_experts: ModuleCount,
    /// Share of all modules that changed, from 0 to 1.
    pub share_of_modules_changed: f64,
    /// The first [`MAX_UNCHANGED`] modules that did not change, routed experts left out.
    pub unchanged: Vec<String>,
    /// Modules with a value that is not a number or infinite.
    pub modules_not_finite: u64,
    /// Norm of the updates `scale · B·A` of all modules together; those that are not finite are left out.
    pub update_norm: f64,
    /// The module with the largest update.
    pub largest_update: Option<ModuleUpdate>,
}

/// Modules, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleCount {
    /// All of them.
    pub total: u64,
    /// Those with another `A` or `B` than at the start.
    pub changed: u64,
    /// Those that add nothing to the base, because `B` (or `A`) is zero all over.
    pub without_update: u64,
}

/// The update of one module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModuleUpdate {
    /// Path of the module.
    pub module: String,
    /// Frobenius norm of `scale · B·A`.
    pub norm: f64,
}

/// One result of one op beside that of its reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpCheck {
    /// The op, with its variant where it has several.
    pub op: String,
    /// Which of its results.
    pub what: String,
    /// The largest difference, as a share of the largest expected value; `None` where a value is not a number or missing.
    pub max_relative_error: Option<f64>,
    /// What rounding explains.
    pub tolerance: f64,
}

/// How many unchanged modules [`Change`] names.
pub const MAX_UNCHANGED: usize = 5;

/// How many checks an error spells out.
const MAX_LISTED: usize = 5;

/// Compares every op that training uses with its reference on this machine; a fraction of a second.
pub fn self_test(seed: u64) -> Result<Vec<OpCheck>> {
    Ok(kernels::run(seed)?.iter().map(OpCheck::from).collect())
}

/// The same for a GPU: of each of these families of ops the result that is furthest off, measured by what is
/// allowed.
pub fn self_test_of_gpu(gpu: &Gpu, families: &[Family], seed: u64) -> Result<Vec<OpCheck>> {
    families.iter().map(|family| worst_of(family, gpu, seed)).collect()
}

fn worst_of(family: &Family, gpu: &Gpu, seed: u64) -> Result<OpCheck> {
    let checks = family.run(gpu, Sizes::Small, seed)?;
    let count = checks.len();
    // What does not hold is further off than all that does; results without roundings are alike in every bit.
    let off = |check: &Check| match check.holds() {
        true => check.error / check.tolerance.max(f64::MIN_POSITIVE),
        false => f64::INFINITY,
    };
    let worst = checks.into_iter().max_by(|one, other| off(one).total_cmp(&off(other)));
    let worst = worst.ok_or_else(|| Error::Invalid(format!("the self-test of {} compared nothing", family.name)))?;
    Ok(OpCheck {
        op: format!("{} on a GPU", family.name),
        what: format!("the worst of {count}: {}, {}", worst.case, worst.what),
        max_relative_error: Some(worst.error).filter(|error| error.is_finite()),
        tolerance: worst.tolerance,
    })
}

/// What is wrong with this machine or this build, if any check does not hold.
pub fn self_test_problem(checks: &[OpCheck]) -> Option<String> {
    let failed: Vec<&OpCheck> = checks.iter().filter(|check| !check.holds()).collect();
    let told = failed.iter().take(MAX_LISTED).map(|check| {
        let error =
            check.max_relative_error.map_or("not a number or missing".into(), |error| format!("off by {error:.1e}"));
        format!("{} ({}): {error}, allowed is {:.1e}", check.op, check.what, check.tolerance)
    });
    let told: Vec<String> = told.collect();
    (!failed.is_empty()).then(|| {
        format!(
            "the self-test found wrong numbers: {} of {} checks do not hold: {}. Do not trust this machine with this \
             build; run on another one, and report it",
            failed.len(),
            checks.len(),
            told.join("; ")
        )
    })
}

/// Feeds values as little-endian bytes, without a copy of them all.
pub(crate) fn update_floats(hash: &mut Sha256, values: &[f32]) {
    const AT_ONCE: usize = 1024;
    let mut bytes = [0u8; 4 * AT_ONCE];
    for values in values.chunks(AT_ONCE) {
        let bytes = &mut bytes[..4 * values.len()];
        for (place, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *place = value.to_le_bytes();
        }
        hash.update(bytes);
    }
}

/// Feeds a text so that no other texts one after the other are the same bytes.
pub(crate) fn update_text(hash: &mut Sha256, text: &str) {
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text);
}

// === impl Digest ===

impl Digest {
    pub(crate) fn finish(hash: Sha256) -> Self {
        Self(hash.finalize().into())
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let mut bytes = [0; 32];
        match hex::decode_to_slice(&text, &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            Err(error) => Err(format!("expected the 64 hexadecimal digits of a SHA-256, found {text:?}: {error}")),
        }
    }
}

// === impl AdapterDigest ===

impl AdapterDigest {
    /// One digest of all modules and their names.
    pub fn whole(&self) -> Digest {
        let mut hash = Sha256::new();
        for (path, digest) in &self.modules {
            update_text(&mut hash, path);
            hash.update(digest.bytes());
        }
        Digest::finish(hash)
    }
}

// === impl Change ===

impl Change {
    /// What is wrong with an adapter that was trained, if anything: nothing of it changed, or some of it is no number.
    pub fn problem(&self) -> Option<String> {
        if self.modules_not_finite > 0 {
            return Some(format!(
                "{} modules of the adapter hold values that are not finite; train again with a lower learning rate",
                self.modules_not_finite
            ));
        }
        (self.modules.changed + self.routed_experts.changed == 0).then(|| {
            format!(
                "training changed none of the adapter's {} modules; look at the learning rate, its schedule, and whether \
                 any token has a target",
                self.modules.total + self.routed_experts.total
            )
        })
    }
}

// === impl OpCheck ===

impl OpCheck {
    /// Whether the op computes what it should.
    pub fn holds(&self) -> bool {
        self.max_relative_error.is_some_and(|error| error <= self.tolerance)
    }
}

impl From<&kernels::OpCheck> for OpCheck {
    fn from(check: &kernels::OpCheck) -> Self {
        Self {
            op: check.op.into(),
            what: check.what.into(),
            max_relative_error: Some(check.max_relative_error).filter(|error| error.is_finite()),
            tolerance: check.tolerance,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        let mut hash = Sha256::new();
        hash.update(text);
        Digest::finish(hash)
    }

    #[test]
    fn digests_are_written_as_hexadecimal_and_read_back() {
        let empty = digest("");
        let json = serde_json::to_string(&empty).unwrap();
        assert_eq!(json, "\"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"");
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), empty);
        for bad in ["\"\"", "\"e3b0\"", "3", &json.replace('e', "g")] {
            assert!(serde_json::from_str::<Digest>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn floats_are_hashed_by_their_bits() {
        let hash = |values: &[f32]| {
            let mut hash = Sha256::new();
            update_floats(&mut hash, values);
            Digest::finish(hash)
        };
        let values: Vec<f32> = (0..2500).map(|i| i as f32).collect();
        let mut whole = Sha256::new();
        whole.update(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
        assert_eq!(hash(&values), Digest::finish(whole));
        assert_ne!(hash(&[0.0]), hash(&[-0.0]));
    }

    #[test]
    fn names_are_part_of_an_adapters_digest() {
        let whole = |modules: &[(&str, &str)]| {
            let modules = modules.iter().map(|(path, text)| ((*path).to_owned(), digest(text))).collect();
            AdapterDigest { modules }.whole()
        };
        let original = whole(&[("a", "1"), ("b", "2")]);
        assert_eq!(original, whole(&[("b", "2"), ("a", "1")]));
        for other in [whole(&[("a", "2"), ("b", "1")]), whole(&[("a", "1"), ("c", "2")]), whole(&[("a", "1")])] {
            assert_ne!(original, other);
        }
    }

    #[test]
    fn the_self_test_holds_here_and_names_what_does_not() {
        let mut checks = self_test(3).unwrap();
        assert_eq!(self_test_problem(&checks), None);
        let json = serde_json::to_string(&checks).unwrap();
        let read = serde_json::from_str::<Vec<OpCheck>>(&json).unwrap();
        assert!(read.len() == checks.len() && read.iter().all(OpCheck::holds));
        let broken =
            kernels::OpCheck { op: "rope", what: "forward", max_relative_error: f64::INFINITY, tolerance: 1e-5 };
        checks.push(OpCheck::from(&broken));
        assert_eq!(
            serde_json::to_value(checks.last().unwrap()).unwrap()["max_relative_error"],
            serde_json::Value::Null
        );
        checks[0].max_relative_error = Some(0.25);
        let problem = self_test_problem(&checks).unwrap();
        assert!(problem.contains("rope (forward): not a number or missing, allowed is 1.0e-5"), "{problem}");
        assert!(problem.contains("nf4 (codes): off by 2.5e-1") && problem.contains("2 of "), "{problem}");
    }
}
