//! Datasets from where they are to a file on disk.
//!
//! [`fetch`] streams a [`Source`] into `<name>.part`, hashes it on the way and renames it once it is whole. What a
//! source may be is the operator's [`SourcePolicy`]; how long and how often it is tried is [`FetchLimits`]. Every way in
//! which it fails is a [`FetchError`] that says what to do next and nothing of the link's secrets.
//! `docs/datasets-fetching.md` lists the faults and what becomes of them.

mod chain;
mod download;
mod error;
mod expiry;
mod fetching;
mod gzip;
pub mod limits;
mod link;
mod local;
mod opened;
mod partial;
mod policy;
mod refusal;
mod s3;
mod s3_client;
mod source;
pub mod upload;

use std::{fs::File, io, path::Path, sync::Arc};

use tokio_util::sync::CancellationToken;

pub use chain::Chain;
pub use error::FetchError;
pub use expiry::LEEWAY;
pub use limits::FetchLimits;
pub use policy::{MAX_BYTES, SourcePolicy};
pub use s3::{S3Settings, StoreKey};
pub use source::{MAX_S3_KEY_BYTES, MAX_SOURCE_BYTES, Source, SourceError};

pub(crate) use refusal::{MAX_REFUSAL_BYTES, Said, is_temporary};
pub(crate) use source::link as web_address;

use download::{Download, Origin};
use fetching::Fetching;
use link::Link;

/// How far a fetch is. `bytes` goes back to 0 when it begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchProgress {
    /// Bytes that are there, as they come over the wire.
    pub bytes: u64,
    /// Bytes in all, where that is known.
    pub total: Option<u64>,
}

/// A file that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its length on disk.
    pub bytes: u64,
    /// SHA-256 of what is on disk.
    pub sha256: [u8; 32],
    /// The server's strong entity tag, if it gave one.
    pub etag: Option<String>,
    /// How often it went on from what was there.
    pub resumed: u32,
}

/// Brings a dataset to `target`, whose folder must exist. A file that is there is replaced once the new one is whole.
///
/// `progress` is called on the fetching task about once a megabyte and should be quick. After `cancel` the fetch ends
/// within a second. Where a later fetch of the same place could go on, `<name>.part` and `<name>.part.json` are left
/// behind: when the server could not be reached, failed or was too slow, when the link expired, and when the fetch was
/// cancelled, each only if the server named the content (strong `ETag` or `Last-Modified`). Otherwise nothing is left.
pub async fn fetch(
    source: &Source,
    target: &Path,
    policy: &SourcePolicy,
    limits: &FetchLimits,
    progress: &(dyn Fn(FetchProgress) + Send + Sync),
    cancel: &CancellationToken,
) -> Result<Fetched, FetchError> {
    let place = source.to_string();
    if let Source::File(path) = source {
        if !policy.local_files {
            let what = "files of this machine are not allowed here; use an https:// link";
            return Err(FetchError::NotAllowed { place, what });
        }
        return local::copy(path, target, policy, progress, cancel);
    }
    let configuration = |why: String| FetchError::Configuration { place: place.clone(), why };
    let fetching = Fetching::new(policy, limits, place.clone(), cancel).map_err(configuration)?;
    let fetching = Arc::new(fetching);
    let (origin, identity) = match source {
        Source::S3 { bucket, key } => {
            let missing = "no S3 store is set up here; use an https:// link";
            let settings = policy.s3.as_ref().ok_or_else(|| configuration(missing.into()))?;
            let object = s3::Object::new(fetching.clone(), settings, bucket, key, &place);
            (Origin::Object(Box::new(object)), format!("s3://{bucket}/{key}"))
        }
        Source::Link(url) => {
            let mut identity = url.expose().clone();
            identity.set_query(None);
            (Origin::Link(Link { fetching: fetching.clone(), url: url.expose().clone() }), identity.to_string())
        }
        Source::File(_) => return Err(configuration("is a file".into())),
    };
    Download::open(origin, fetching, progress, place.clone(), identity, target).await?.run().await
}

/// Whether a file of this machine has to be fetched before it can be read, because it is compressed.
pub fn is_compressed(path: &Path) -> io::Result<bool> {
    gzip::is_gzip(&mut File::open(path)?)
}

/// As [`fetch`], for callers without an asynchronous runtime. Panics where there is one.
pub fn fetch_blocking(
    source: &Source,
    target: &Path,
    policy: &SourcePolicy,
    limits: &FetchLimits,
    progress: &(dyn Fn(FetchProgress) + Send + Sync),
    cancel: &CancellationToken,
) -> Result<Fetched, FetchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let failed = |error: io::Error| FetchError::Configuration { place: source.to_string(), why: error.to_string() };
    let runtime = runtime.map_err(failed)?;
    let outcome = runtime.block_on(fetch(source, target, policy, limits, progress, cancel));
    // A lookup of a name may still wait; nobody needs its answer.
    runtime.shutdown_background();
    outcome
}
