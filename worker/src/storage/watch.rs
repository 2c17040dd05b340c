//! One place where a fetch waits: for the network, for a pause, and never longer than allowed.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::error::{Failure, FetchError, Trouble, TroubleKind};

/// Knows when to stop waiting.
pub(super) struct Watch {
    place: String,
    cancel: CancellationToken,
    end: Instant,
    deadline: Duration,
}

impl Watch {
    pub(super) fn new(place: String, cancel: CancellationToken, deadline: Duration) -> Self {
        Self { place, cancel, end: Instant::now() + deadline, deadline }
    }

    /// Waits for `work`, at most for `most`; `what` names it in the error.
    pub(super) async fn within<T>(
        &self,
        most: Duration,
        what: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        let limit = Instant::now() + most;
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(self.cancelled()),
            done = work => Ok(done),
            () = sleep_until(limit.min(self.end)) => Err(if self.end <= limit {
                self.too_late()
            } else {
                let why = format!("{what} took longer than {most:?}");
                Trouble::new(TroubleKind::TooSlow, why).into()
            }),
        }
    }

    /// Waits for so long, or says that there is no time for that.
    pub(super) async fn pause(&self, time: Duration) -> Result<(), Failure> {
        let until = Instant::now() + time;
        if until >= self.end {
            return Err(self.too_late());
        }
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(self.cancelled()),
            () = sleep_until(until) => Ok(()),
        }
    }

    /// Whether the caller wants to stop.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    fn cancelled(&self) -> Failure {
        FetchError::Cancelled { place: self.place.clone() }.into()
    }

    fn too_late(&self) -> Failure {
        FetchError::Deadline { place: self.place.clone(), deadline: self.deadline }.into()
    }
}
