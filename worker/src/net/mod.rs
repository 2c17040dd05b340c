//! One request to one checked address: what everything that speaks HTTP here stands on.
//!
//! [`Network`] is what the operator allows, [`Patience`] how long is waited, [`Dialer`] makes connections.

pub mod address;
mod backoff;
mod error;
mod exchange;
mod network;
mod patience;

pub use network::{Names, Network, certificates_from_pem};

/// Who asks, as every request says it.
pub(crate) const AGENT: &str = concat!("brightrun/", env!("CARGO_PKG_VERSION"));

pub(crate) use backoff::{Backoff, pause};
pub(crate) use error::{NetError, Trouble, TroubleKind};
pub(crate) use exchange::{Body, Dialer, target, tls};
pub(crate) use patience::Patience;
