//! Why a dataset could not be fetched, and what to do next.

use std::{io, net::IpAddr, path::PathBuf, time::Duration};

use thiserror::Error;

use super::expiry::for_people;
use crate::net;
pub(super) use crate::net::TroubleKind;

/// Why a dataset could not be fetched. `place` is the address without its secrets; no variant holds more of it.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The link says itself that it is over, or the server does.
    #[error("{place}: the link expired{}; make a new one and send the job again", ago.map(|ago| format!(" {} ago", for_people(ago))).unwrap_or_default())]
    Expired {
        /// Where.
        place: String,
        /// How long ago, where that is known.
        ago: Option<Duration>,
    },
    /// There is nothing at this address, or not for us.
    #[error("{place}: the link is wrong: {said}")]
    WrongLink {
        /// Where.
        place: String,
        /// What the server said, in our words.
        said: String,
    },
    /// The operator does not allow this kind of source.
    #[error("{place}: {what}")]
    NotAllowed {
        /// Where.
        place: String,
        /// What is not allowed, and how it can be.
        what: &'static str,
    },
    /// The host's address is not a public one.
    #[error("{place}: its host has the address {address}, which is refused: {what}; use a link to a public server")]
    RefusedAddress {
        /// Where.
        place: String,
        /// The address.
        address: IpAddr,
        /// What the address is for.
        what: &'static str,
    },
    /// A redirect that is not followed.
    #[error("{place}: the server redirects {why}; use the link of the file itself")]
    RefusedRedirect {
        /// Where.
        place: String,
        /// Which way.
        why: String,
    },
    /// Larger than the operator allows.
    #[error(
        "{place}: the dataset is too large: {found}, and at most {most} bytes are allowed; make it smaller or split it"
    )]
    TooLarge {
        /// Where.
        place: String,
        /// What was found.
        found: String,
        /// The limit.
        most: u64,
    },
    /// The content was another one at each attempt.
    #[error("{place}: the content changed {times} times while it was fetched; send the job again when it is complete")]
    Changed {
        /// Where.
        place: String,
        /// How often.
        times: u32,
    },
    /// No connection.
    #[error("{place}: cannot be reached ({attempts} attempts): {why}; check the host's name, or try again later")]
    Unreachable {
        /// Where.
        place: String,
        /// How often it was tried.
        attempts: u32,
        /// The last reason.
        why: String,
    },
    /// The server cannot prove who it is.
    #[error(
        "{place}: the server's certificate is not trusted: {why}; use a server whose certificate is valid, or have its authority added to the trusted ones"
    )]
    Untrusted {
        /// Where.
        place: String,
        /// Why.
        why: String,
    },
    /// The server says that it cannot.
    #[error("{place}: the server failed ({attempts} attempts): {why}; try again later")]
    ServerFailed {
        /// Where.
        place: String,
        /// How often it was tried.
        attempts: u32,
        /// The last reason.
        why: String,
    },
    /// What the server sends is not what HTTP allows, or not what it announced.
    #[error(
        "{place}: the server's answer is broken ({attempts} attempts): {why}; try again later, or use another server"
    )]
    BrokenAnswer {
        /// Where.
        place: String,
        /// How often it was tried.
        attempts: u32,
        /// The last reason.
        why: String,
    },
    /// Too slow to wait for.
    #[error("{place}: the server is too slow ({attempts} attempts): {why}; try again later, or use another server")]
    TooSlow {
        /// Where.
        place: String,
        /// How often it was tried.
        attempts: u32,
        /// The last reason.
        why: String,
    },
    /// All attempts together took too long.
    #[error("{place}: not fetched within {}; try again later, or use a faster server", for_people(*deadline))]
    Deadline {
        /// Where.
        place: String,
        /// The time there was.
        deadline: Duration,
    },
    /// A compression that is not read.
    #[error("{place}: the content is {what}; send it as it is, or compressed with gzip")]
    Encoding {
        /// Where.
        place: String,
        /// How it is encoded.
        what: String,
    },
    /// Compressed data that cannot be decompressed.
    #[error("{place}: the gzip data are damaged: {why}; compress and upload the file again")]
    Damaged {
        /// Where.
        place: String,
        /// How.
        why: String,
    },
    /// The local file is not there or not a file.
    #[error("cannot read {path}: {why}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
    /// This machine's disk.
    #[error("cannot write {}: {error}; make room or choose another folder", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another fetch writes the same file.
    #[error("{} is being written by another process; wait for it, or choose another folder", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The operator's settings do not suffice.
    #[error("{place}: {why}")]
    Configuration {
        /// Where.
        place: String,
        /// What is missing.
        why: String,
    },
    /// The caller did not want it any more.
    #[error("fetching {place} was cancelled")]
    Cancelled {
        /// Where.
        place: String,
    },
}

impl FetchError {
    /// Whether a later fetch of the same place may go on where this one stopped.
    pub(super) fn keeps_what_is_there(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::ServerFailed { .. }
                | Self::TooSlow { .. }
                | Self::Deadline { .. }
                | Self::Expired { .. }
                | Self::Cancelled { .. }
        )
    }
}

/// What went wrong in one attempt.
#[derive(Debug)]
pub(super) enum Failure<E = FetchError> {
    /// Trying again cannot help.
    Final(E),
    /// Trying again may help.
    Again(Trouble),
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Self::Final(error)
    }
}

/// What went wrong and may be better next time.
#[derive(Debug, Clone, Error)]
#[error("{why}")]
pub(super) struct Trouble {
    /// Which error it becomes when it does not end.
    pub(super) kind: TroubleKind,
    pub(super) why: String,
    /// The server's wish.
    pub(super) wait: Option<Duration>,
    /// What is there already cannot be continued.
    pub(super) anew: bool,
}

impl Trouble {
    pub(super) fn new(kind: TroubleKind, why: impl Into<String>) -> Self {
        Self { kind, why: why.into(), wait: None, anew: false }
    }

    /// A broken answer after which nothing of what it brought is kept.
    pub(super) fn broken_anew(why: impl Into<String>) -> Self {
        Self { anew: true, ..Self::new(TroubleKind::BrokenAnswer, why) }
    }

    pub(super) fn into_error(self, place: String, attempts: u32) -> FetchError {
        let why = self.why;
        match self.kind {
            TroubleKind::Unreachable => FetchError::Unreachable { place, attempts, why },
            TroubleKind::ServerFailed => FetchError::ServerFailed { place, attempts, why },
            TroubleKind::BrokenAnswer => FetchError::BrokenAnswer { place, attempts, why },
            TroubleKind::TooSlow => FetchError::TooSlow { place, attempts, why },
        }
    }
}

impl From<net::Trouble> for Trouble {
    fn from(trouble: net::Trouble) -> Self {
        // A server that does not speak HTTP may have sent anything before.
        let anew = trouble.kind == TroubleKind::BrokenAnswer;
        Self { anew, ..Self::new(trouble.kind, trouble.why) }
    }
}

impl<E> From<Trouble> for Failure<E> {
    fn from(trouble: Trouble) -> Self {
        Self::Again(trouble)
    }
}
