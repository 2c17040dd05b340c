//! One place where a task waits: for the network, for a pause, and never longer than allowed.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::error::{NetError, Trouble, TroubleKind};

/// Knows when to stop waiting.
pub(crate) struct Patience {
    cancel: CancellationToken,
    end: Instant,
    deadline: Duration,
}

impl Patience {
    pub(crate) fn new(cancel: CancellationToken, deadline: Duration) -> Self {
        Self { cancel, end: Instant::now() + deadline, deadline }
    }

    /// Waits for `work`, at most for `most`; `what` names it in the error.
    pub(crate) async fn within<T>(
        &self,
        most: Duration,
        what: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, NetError> {
        let limit = Instant::now() + most;
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(NetError::Cancelled),
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
    pub(crate) async fn pause(&self, time: Duration) -> Result<(), NetError> {
        let until = Instant::now() + time;
        if until >= self.end {
            return Err(self.too_late());
        }
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(NetError::Cancelled),
            () = sleep_until(until) => Ok(()),
        }
    }

    /// Whether the caller wants to stop.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    fn too_late(&self) -> NetError {
        NetError::Deadline(self.deadline)
    }
}
