//! Why files could not be delivered, and what to do next.

use std::{io, net::IpAddr, path::PathBuf, time::Duration};

use thiserror::Error;

use crate::storage::{
    error::{self, Trouble, TroubleKind},
    expiry::for_people,
};

/// Why files could not be delivered. `place` is the address without its secrets; no variant holds more of it.
#[derive(Debug, Error)]
pub enum UploadError {
    /// No file to deliver, which a caller would take for a result.
    #[error("there is no file to deliver")]
    Nothing,
    /// A name that does not fit into a key or a link.
    #[error("{name}: cannot be delivered under this name: {why}; rename it")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file of this machine that cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file of this machine changed, or went, while it was sent.
    #[error("{} changed while it was sent; deliver it again when nothing writes to it", path.display())]
    ChangedOnDisk {
        /// The file.
        path: PathBuf,
    },
    /// There is no such bucket.
    #[error("{place}: there is no such bucket; make it, or set BUCKET_NAME to one that is there")]
    NoSuchBucket {
        /// Where.
        place: String,
    },
    /// The key is known and may not do this.
    #[error(
        "{place}: the store does not allow it ({said}); give the operator's key leave to put, get and abort uploads there"
    )]
    AccessDenied {
        /// Where.
        place: String,
        /// What the store said.
        said: String,
    },
    /// The key is not known, or its secret half is wrong.
    #[error(
        "{place}: the store does not know the operator's key ({said}); check BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY (or S3_*, AWS_*)"
    )]
    WrongKey {
        /// Where.
        place: String,
        /// What the store said.
        said: String,
    },
    /// A key that was lent for a time that is over.
    #[error("{place}: the operator's key for the store has expired; it needs a new one")]
    ExpiredKey {
        /// Where.
        place: String,
    },
    /// This machine's clock and the store's differ too much.
    #[error("{place}: this machine's clock is wrong{}; set it", by.map(|by| format!(" by {}", for_people(by))).unwrap_or_default())]
    ClockSkew {
        /// Where.
        place: String,
        /// By how much, where the store says its time.
        by: Option<Duration>,
    },
    /// The bucket is elsewhere.
    #[error("{place}: the bucket is in another region{}; the operator sets it with S3_REGION", region.as_ref().map(|region| format!(", {region}")).unwrap_or_default())]
    WrongRegion {
        /// Where.
        place: String,
        /// Which, where the store says it.
        region: Option<String>,
    },
    /// More bytes than the store takes.
    #[error("{place}: too large for the store ({bytes} bytes); raise the store's limit, or make the file smaller")]
    TooLarge {
        /// Where.
        place: String,
        /// Its size.
        bytes: u64,
    },
    /// What lies in the store is not what was sent.
    #[error("{place}: the store holds other bytes than were sent: {what}; send the job again, and check the store")]
    Corrupt {
        /// Where.
        place: String,
        /// What differs.
        what: String,
    },
    /// The links that were made do not open.
    #[error(
        "{place}: the link that was made for it does not open: {said}; check the region, the endpoint and that the key may get"
    )]
    LinkDoesNotOpen {
        /// Where.
        place: String,
        /// What the store said.
        said: String,
    },
    /// The link for the upload says itself that it is over, or the server does.
    #[error("{place}: the link for the upload expired{}; make one that lasts longer than the job and send the job again", ago.map(|ago| format!(" {} ago", for_people(ago))).unwrap_or_default())]
    LinkExpired {
        /// Where.
        place: String,
        /// How long ago, where that is known.
        ago: Option<Duration>,
    },
    /// The server does not take the upload, or the store the request.
    #[error("{place}: the server refuses the upload: {said}")]
    Refused {
        /// Where.
        place: String,
        /// What it said, in our words, and what to do.
        said: String,
    },
    /// The operator does not allow this kind of link.
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
    /// The server cannot prove who it is.
    #[error("{place}: the server's certificate is not trusted: {why}; have its authority added to the trusted ones")]
    Untrusted {
        /// Where.
        place: String,
        /// Why.
        why: String,
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
    /// The server says that it cannot, or breaks off.
    #[error("{place}: the server failed ({attempts} attempts): {why}; try again later")]
    ServerFailed {
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
    /// All together took too long.
    #[error("{place}: not delivered within {}; try again later, or use a faster server", for_people(*deadline))]
    Deadline {
        /// Where.
        place: String,
        /// The time there was.
        deadline: Duration,
    },
    /// Neither the settings nor AWS's usual places have what opens the store.
    #[error("{place}: {why}")]
    NotSetUp {
        /// Where.
        place: String,
        /// What is missing, and what to set.
        why: String,
    },
    /// The operator's settings do not suffice.
    #[error("files cannot be delivered: {0}")]
    Configuration(String),
    /// The caller did not want it any more.
    #[error("the delivery was cancelled")]
    Cancelled,
}

/// What went wrong in one attempt.
pub(super) type Failure = error::Failure<UploadError>;

impl From<UploadError> for Failure {
    fn from(error: UploadError) -> Self {
        Self::Final(error)
    }
}

/// The error that a trouble becomes when it does not end.
pub(super) fn given_up(trouble: Trouble, place: String, attempts: u32) -> UploadError {
    let why = trouble.why;
    match trouble.kind {
        TroubleKind::Unreachable => UploadError::Unreachable { place, attempts, why },
        TroubleKind::ServerFailed | TroubleKind::BrokenAnswer => UploadError::ServerFailed { place, attempts, why },
        TroubleKind::TooSlow => UploadError::TooSlow { place, attempts, why },
    }
}
