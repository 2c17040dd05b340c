//! Datasets are fetched from servers that go wrong. Each fault of `docs/datasets-fetching.md` has its test here.
//!
//! Limits are short where a limit is what is tested, and generous everywhere else, so that a slow machine changes nothing.

mod content;
mod killed;
mod refusals;
mod s3;
mod safety;
mod secrets;
mod time;
mod tls;
mod transport;

use std::{fs, io::Write, net::SocketAddr, path::PathBuf, time::Duration};

use brightrun_tests::faults::FaultServer;
use brightrun_worker::{
    net::Network,
    storage::{FetchError, FetchLimits, Fetched, Source, SourcePolicy, fetch},
};
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Name of the file that is fetched.
const NAME: &str = "dataset.jsonl";
/// Attempts in these tests.
const ATTEMPTS: u32 = 3;

/// A folder to fetch into, and what is allowed.
struct Bench {
    folder: TempDir,
    policy: SourcePolicy,
    limits: FetchLimits,
    cancel: CancellationToken,
}

impl Bench {
    /// Allows plain HTTP, and of the addresses that are not public only these servers'.
    fn new(servers: &[&FaultServer]) -> Self {
        let allowed_addresses = servers.iter().map(|server| server.address()).collect();
        let limits = FetchLimits {
            attempts: ATTEMPTS,
            first_pause: Duration::from_millis(2),
            longest_pause: Duration::from_millis(5),
            ..FetchLimits::default()
        };
        Self {
            folder: tempfile::tempdir().unwrap(),
            policy: SourcePolicy {
                plain_http: true,
                network: Network { allowed_addresses, ..Network::default() },
                ..SourcePolicy::service()
            },
            limits,
            cancel: CancellationToken::new(),
        }
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join(NAME)
    }

    async fn get(&self, source: &str) -> Result<Fetched, FetchError> {
        let source = Source::parse(source).unwrap();
        fetch(&source, &self.target(), &self.policy, &self.limits, &|_| {}, &self.cancel).await
    }

    /// Fetches, and compares what arrived.
    async fn expect(&self, source: &str, body: &[u8]) -> Fetched {
        let fetched = self.get(source).await.unwrap();
        assert_eq!(fs::read(self.target()).unwrap(), body);
        assert_eq!((fetched.bytes, &fetched.sha256[..]), (body.len() as u64, &Sha256::digest(body)[..]));
        assert_eq!(self.names(), [NAME]);
        fetched
    }

    /// Fetches in vain, and gives the error's text. Nothing may be left behind.
    async fn fails(&self, source: &str) -> FetchError {
        let error = self.get(source).await.unwrap_err();
        assert_eq!(self.names(), [""; 0], "{error}");
        error
    }

    /// What lies in the folder.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Bytes that do not repeat, so that a piece in the wrong place is seen.
fn body(bytes: usize) -> Vec<u8> {
    (0..).flat_map(|line: u32| format!("{{\"text\":\"line {line}\"}}\n").into_bytes()).take(bytes).collect()
}

/// An address where nobody listens: the discard port, which needs rights that no test has.
fn nobody() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Asserts that an error is of a kind and says something.
#[track_caller]
fn says(error: &FetchError, kind: &str, text: &str) {
    assert!(format!("{error:?}").starts_with(kind), "{error:?}");
    assert!(error.to_string().contains(text), "{text:?} is not in: {error}");
}
