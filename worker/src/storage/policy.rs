//! What the operator allows a dataset's address to be.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};

use super::s3::S3Settings;

/// Largest dataset unless the operator says otherwise: 500 MB, as the platform promises.
pub const MAX_BYTES: u64 = 500_000_000;

/// What the operator allows.
#[derive(Debug, Clone)]
pub struct SourcePolicy {
    /// Files of this machine.
    pub local_files: bool,
    /// Links that are not encrypted.
    pub plain_http: bool,
    /// Links to addresses that are not public: this machine, private networks, metadata services.
    pub private_addresses: bool,
    /// Single exceptions to `private_addresses`.
    pub allowed_addresses: Vec<SocketAddr>,
    /// Largest dataset, as it comes over the wire and as it is once decompressed.
    pub max_bytes: u64,
    /// Certificates of authorities that are trusted beside the public ones.
    pub extra_root_certificates: Vec<CertificateDer<'static>>,
    /// The store that `s3://` addresses are in. Its endpoint is the operator's own choice, so it may be private.
    pub s3: Option<S3Settings>,
    /// How names of hosts are resolved.
    pub names: Names,
}

// === impl SourcePolicy ===

impl SourcePolicy {
    /// For jobs of strangers: `https://` links to public addresses.
    pub fn service() -> Self {
        Self {
            local_files: false,
            plain_http: false,
            private_addresses: false,
            allowed_addresses: Vec::new(),
            max_bytes: MAX_BYTES,
            extra_root_certificates: Vec::new(),
            s3: None,
            names: Names::system(),
        }
    }

    /// For a person at the command line: files as well.
    pub fn local() -> Self {
        Self { local_files: true, ..Self::service() }
    }

    /// Why a connection to this address is refused, if it is.
    pub(super) fn refusal(&self, address: SocketAddr) -> Option<&'static str> {
        let excepted = self.private_addresses || self.allowed_addresses.contains(&address);
        if excepted { None } else { super::address::refusal(address.ip()) }
    }
}

/// Reads the certificates of a PEM file.
pub fn certificates_from_pem(pem: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "holds no certificate")),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("is not a PEM file: {error}"))),
    }
}

type Lookup = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// How names of hosts are resolved. Each hop asks once, checks every answer, and connects to what it has checked, so
/// a name that changes its address in between gains nothing.
#[derive(Clone)]
pub struct Names(Arc<Lookup>);

// === impl Names ===

impl Names {
    /// As the operating system does it.
    pub fn system() -> Self {
        Self::with(|host| Ok((host, 0).to_socket_addrs()?.map(|address| address.ip()).collect()))
    }

    /// By a function of the caller's, which may block.
    pub fn with(lookup: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(lookup))
    }

    pub(super) fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        (self.0)(host)
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Names")
    }
}
