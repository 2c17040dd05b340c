//! What can go wrong between a request and its answer.

use std::{net::IpAddr, time::Duration};

use thiserror::Error;

/// Why a request has no answer. Whoever asked knows the place, and says it.
#[derive(Debug, Error)]
pub(crate) enum NetError {
    /// The host's address is not a public one.
    #[error("its host has the address {address}, which is refused: {what}")]
    RefusedAddress {
        /// The address.
        address: IpAddr,
        /// What the address is for.
        what: &'static str,
    },
    /// The server cannot prove who it is.
    #[error("the server's certificate is not trusted: {0}")]
    Untrusted(String),
    /// The caller did not want it any more.
    #[error("it was cancelled")]
    Cancelled,
    /// All together took too long.
    #[error("it took longer than {0:?}")]
    Deadline(Duration),
    /// Trying again may help.
    #[error(transparent)]
    Trouble(#[from] Trouble),
}

/// What may be better next time.
#[derive(Debug, Clone, Error)]
#[error("{why}")]
pub(crate) struct Trouble {
    pub(crate) kind: TroubleKind,
    pub(crate) why: String,
}

/// What kind of trouble it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TroubleKind {
    /// No connection.
    Unreachable,
    /// The server, or the connection to it, failed.
    ServerFailed,
    /// What it sends is no HTTP.
    BrokenAnswer,
    /// It takes too long.
    TooSlow,
}

// === impl Trouble ===

impl Trouble {
    pub(crate) fn new(kind: TroubleKind, why: impl Into<String>) -> Self {
        Self { kind, why: why.into() }
    }
}
