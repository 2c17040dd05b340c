//! Time, handed in by whoever calls: nothing that is computed follows from it, only what is told and when it is saved.

use std::time::Duration;

/// Tells the time.
pub trait Clock: Send + Sync {
    /// Since some fixed moment. It never goes back.
    fn elapsed(&self) -> Duration;

    /// Since the beginning of 1970, as files say it.
    fn since_1970(&self) -> Duration;
}

/// A clock that stands still, so that two runs leave the same files.
#[derive(Debug, Clone, Copy, Default)]
pub struct Still;

impl Clock for Still {
    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }

    fn since_1970(&self) -> Duration {
        Duration::ZERO
    }
}
