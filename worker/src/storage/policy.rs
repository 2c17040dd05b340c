//! What the operator allows a dataset's address to be.

use super::s3::S3Settings;
use crate::net::Network;

/// Largest dataset unless the operator says otherwise: 500 MB, as the platform promises.
pub const MAX_BYTES: u64 = 500_000_000;

/// What the operator allows.
#[derive(Debug, Clone)]
pub struct SourcePolicy {
    /// Files of this machine.
    pub local_files: bool,
    /// Links that are not encrypted.
    pub plain_http: bool,
    /// Which servers a link may lead to.
    pub network: Network,
    /// Largest dataset, as it comes over the wire and as it is once decompressed.
    pub max_bytes: u64,
    /// The store that `s3://` addresses are in. Its endpoint is the operator's own choice, so it may be private.
    pub s3: Option<S3Settings>,
}

// === impl SourcePolicy ===

impl SourcePolicy {
    /// For jobs of strangers: `https://` links to public addresses.
    pub fn service() -> Self {
        Self { local_files: false, plain_http: false, network: Network::default(), max_bytes: MAX_BYTES, s3: None }
    }

    /// For a person at the command line: files as well.
    pub fn local() -> Self {
        Self { local_files: true, ..Self::service() }
    }
}
