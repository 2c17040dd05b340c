//! Requests that wait for a job.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::queue::Queue;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// The job's end.
    End,
    /// Something new that it shows, or its end.
    News,
}

/// Lets requests wait, not too many at the same time.
#[derive(Debug)]
pub(super) struct Waiting {
    places: Semaphore,
    leave: CancellationToken,
}

// === impl Waiting ===

impl Waiting {
    /// So many at the same time, until `leave`.
    pub(super) fn new(places: usize, leave: CancellationToken) -> Self {
        Self { places: Semaphore::new(places), leave }
    }

    /// Waits at most so long. Where too many wait already, it does not.
    pub(super) async fn until(&self, queue: &Arc<Queue>, id: &str, what: For, most: Duration) {
        let there = || {
            let (over, news) = queue.state(id);
            over || (what == For::News && news)
        };
        let Some(mut news) = queue.listen(id) else { return };
        if most.is_zero() || there() {
            return;
        }
        let Ok(_place) = self.places.try_acquire() else { return };
        let end = Instant::now() + most;
        loop {
            let changed = self.leave.run_until_cancelled(timeout_at(end, news.changed()));
            // Anything but a change: the time is over, the job is gone, or this server goes.
            if !matches!(changed.await, Some(Ok(Ok(())))) || there() {
                return;
            }
        }
    }
}
