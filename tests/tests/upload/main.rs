//! Results are delivered to stores and links that go wrong. Each fault of `docs/delivery.md` has its test here.

mod chain;
mod faults;
mod given;
mod local;
mod round_trip;
mod secrets;
mod stand;
#[path = "../shared/store.rs"]
mod store;

use std::{collections::BTreeMap, fs, net::SocketAddr, time::Duration};

use brightrun_tests::{faults::FaultServer, waiting::soon};
use brightrun_worker::{
    Redacted,
    net::Network,
    storage::{
        SourcePolicy,
        upload::{Artifact, Delivered, Store, UploadError, UploadLimits, UploadProgress, deliver, upload_link},
    },
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Attempts in these tests.
const ATTEMPTS: u32 = 3;
/// The smallest part that the store takes.
const PART: u64 = 5 << 20;
const JOB: &str = "job-1";

/// Files to deliver, and how.
struct Bench {
    folder: TempDir,
    files: Vec<Artifact>,
    links: BTreeMap<String, Redacted<url::Url>>,
    store: Store,
    policy: SourcePolicy,
    limits: UploadLimits,
    cancel: CancellationToken,
}

impl Bench {
    fn new(store: Store) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            files: Vec::new(),
            links: BTreeMap::new(),
            store,
            policy: SourcePolicy::service(),
            limits: UploadLimits {
                attempts: ATTEMPTS,
                first_pause: Duration::from_millis(2),
                longest_pause: Duration::from_millis(5),
                part_bytes: PART,
                ..UploadLimits::default()
            },
            cancel: CancellationToken::new(),
        }
    }

    /// With the bucket `bucket` of a store.
    fn bucket(endpoint: SocketAddr, secret: &str) -> Self {
        Self::new(Store::Bucket(Box::new(store::settings(endpoint, secret))))
    }

    /// Allows plain links to this server.
    fn allow(mut self, server: &FaultServer) -> Self {
        self.policy.plain_http = true;
        self.policy.network = Network { allowed_addresses: vec![server.address()], ..Network::default() };
        self
    }

    fn file(mut self, name: &str, content: &[u8]) -> Self {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        self.files.push(Artifact { name: name.into(), path });
        self
    }

    fn link(mut self, name: &str, link: &str) -> Self {
        self.links.insert(name.into(), upload_link(link).unwrap());
        self
    }

    async fn deliver(&self) -> Result<Delivered, UploadError> {
        self.deliver_telling(&|_| {}).await
    }

    async fn deliver_telling(
        &self,
        progress: &(dyn Fn(UploadProgress) + Send + Sync),
    ) -> Result<Delivered, UploadError> {
        let (policy, limits) = (&self.policy, &self.limits);
        let work = deliver(&self.store, JOB, &self.files, &self.links, policy, limits, progress, &self.cancel);
        sendable(work).await
    }

    async fn fails(&self) -> UploadError {
        self.deliver().await.unwrap_err()
    }
}

/// Whoever runs deliveries may want to do so on another thread.
fn sendable<T: Send>(work: T) -> T {
    work
}

/// Bytes that do not repeat, so that a piece in the wrong place is seen.
fn body(bytes: usize) -> Vec<u8> {
    (0u32..).flat_map(u32::to_le_bytes).take(bytes).collect()
}

/// Asserts that an error is of a kind and says something.
#[track_caller]
fn says(error: &UploadError, kind: &str, text: &str) {
    assert!(format!("{error:?}").starts_with(kind), "{error:?}");
    assert!(error.to_string().contains(text), "{text:?} is not in: {error}");
}
