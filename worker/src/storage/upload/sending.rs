//! What all requests of one delivery share: limits, time, the errors of a delivery, and when to try again.

use std::{sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    error::{Failure, UploadError, given_up},
    limits::UploadLimits,
};
use crate::{
    net::{self, Dialer, NetError, Network, Patience},
    storage::{chain::Obstacle, error::Trouble, expiry::for_people, s3_client::Line},
};

/// What all requests of one delivery share.
pub(super) struct Sending {
    pub(super) limits: UploadLimits,
    pub(super) cancel: CancellationToken,
    pub(super) network: Network,
    /// For requests without a body.
    pub(super) line: Arc<Line>,
    end: Instant,
}

// === impl Sending ===

impl Sending {
    pub(super) fn new(
        network: &Network,
        limits: &UploadLimits,
        cancel: &CancellationToken,
    ) -> Result<Self, UploadError> {
        let end = Instant::now() + limits.deadline;
        let line = line(network, limits, cancel, limits.answer, limits.deadline)?;
        Ok(Self { limits: limits.clone(), cancel: cancel.clone(), network: network.clone(), line: Arc::new(line), end })
    }

    /// For requests with a body of so many bytes.
    pub(super) fn line_for(&self, bytes: u64) -> Result<Arc<Line>, UploadError> {
        let left = self.end.saturating_duration_since(Instant::now());
        line(&self.network, &self.limits, &self.cancel, self.limits.time_for(bytes), left).map(Arc::new)
    }

    /// What became of a request without an answer.
    pub(super) fn failure(&self, error: NetError, place: &str) -> Failure {
        let place = place.to_owned();
        match error {
            NetError::RefusedAddress { address, what } => UploadError::RefusedAddress { place, address, what }.into(),
            NetError::Untrusted(why) => UploadError::Untrusted { place, why }.into(),
            NetError::Cancelled => UploadError::Cancelled.into(),
            NetError::Deadline(_) => UploadError::Deadline { place, deadline: self.limits.deadline }.into(),
            NetError::Trouble(trouble) => Trouble::from(trouble).into(),
        }
    }

    /// What became of a request that was not even made, or has no answer.
    pub(super) fn kept_from(&self, obstacle: Obstacle, place: &str) -> Failure {
        match obstacle {
            Obstacle::Missing(why) => UploadError::NotSetUp { place: place.to_owned(), why }.into(),
            Obstacle::Net(error) => self.failure(error, place),
        }
    }

    /// Lets a thread that may wait for the disk work.
    pub(super) async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&CancellationToken) -> Result<T, UploadError> + Send + 'static,
    ) -> Result<T, UploadError> {
        let cancel = self.cancel.clone();
        let worked = spawn_blocking(move || work(&cancel));
        let ended = |_| UploadError::Configuration("the disk's thread ended".into());
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(UploadError::Cancelled),
            worked = worked => worked.map_err(ended)?,
        }
    }

    /// Attempts at one thing.
    pub(super) fn attempts(&self, place: &str) -> Attempts<'_> {
        Attempts { sending: self, place: place.to_owned(), failed: 0 }
    }
}

fn line(
    network: &Network,
    limits: &UploadLimits,
    cancel: &CancellationToken,
    headers: Duration,
    deadline: Duration,
) -> Result<Line, UploadError> {
    let tls = net::tls(network).map_err(UploadError::Configuration)?;
    let dialer = Dialer { network: network.clone(), tls, connect: limits.connect, headers };
    Ok(Line { dialer, patience: Patience::new(cancel.clone(), deadline) })
}

/// Counts failed attempts and waits between them.
pub(super) struct Attempts<'a> {
    sending: &'a Sending,
    place: String,
    failed: u32,
}

// === impl Attempts ===

impl Attempts<'_> {
    /// Waits after a failure, or says that it is the last one.
    pub(super) async fn after(&mut self, failure: Failure) -> Result<(), UploadError> {
        let trouble = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Again(trouble) => trouble,
        };
        let limits = &self.sending.limits;
        self.failed += 1;
        if self.failed >= limits.attempts {
            return Err(given_up(trouble, self.place.clone(), self.failed));
        }
        let wait = trouble.wait.unwrap_or_default();
        if wait > limits.longest_retry_after {
            let why = format!("{trouble}, and asks to come back in {}", for_people(wait));
            return Err(UploadError::ServerFailed { place: self.place.clone(), attempts: self.failed, why });
        }
        tracing::info!("{}: {trouble}; trying again", self.place);
        let paused = self.sending.line.patience.pause(limits.pause(self.failed).max(wait)).await;
        match paused.map_err(|error| self.sending.failure(error, &self.place)) {
            Err(Failure::Final(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether something went wrong before.
    pub(super) fn any_failed(&self) -> bool {
        self.failed > 0
    }
}
