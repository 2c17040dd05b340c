//! What the operator allows of the network.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};

use super::address;

/// Which servers a request may go to. By default: public ones.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// Also addresses that are not public: this machine, private networks, metadata services.
    pub private_addresses: bool,
    /// Single exceptions to `private_addresses`.
    pub allowed_addresses: Vec<SocketAddr>,
    /// Certificates of authorities that are trusted beside the public ones.
    pub extra_root_certificates: Vec<CertificateDer<'static>>,
    /// How names of hosts are resolved.
    pub names: Names,
}

// === impl Network ===

impl Network {
    /// Why a connection to this address is refused, if it is.
    pub(super) fn refusal(&self, address: SocketAddr) -> Option<&'static str> {
        let excepted = self.private_addresses || self.allowed_addresses.contains(&address);
        if excepted { None } else { address::refusal(address.ip()) }
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

impl Default for Names {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Names")
    }
}
