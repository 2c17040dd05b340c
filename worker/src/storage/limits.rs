//! How long and how often a fetch tries.

use std::time::Duration;

use crate::net;

/// A fetch that takes longer has failed.
pub const DEADLINE: Duration = Duration::from_secs(30 * 60);
/// Resolving a name, and each attempt to connect.
pub const CONNECT: Duration = Duration::from_secs(10);
/// From the request to the end of the answer's headers.
pub const HEADERS: Duration = Duration::from_secs(30);
/// Between two pieces of the body.
pub const IDLE: Duration = Duration::from_secs(30);
/// Bytes per second that a body must come with, averaged over [`RATE_WINDOW`].
pub const MINIMUM_RATE: u64 = 16 << 10;
/// Time over which the rate is averaged.
pub const RATE_WINDOW: Duration = Duration::from_secs(30);
/// Attempts in a row that bring less than [`PROGRESS`].
pub const ATTEMPTS: u32 = 6;
/// An attempt that brings so many bytes is no failed one: the next begins a new row.
pub const PROGRESS: u64 = 1 << 20;
/// Pause after the first failed attempt; each further one doubles it.
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause of our own.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// Longest pause that a server's `Retry-After` may ask for.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);
/// Redirects that are followed.
pub const REDIRECTS: usize = 5;
/// How often the content may change while it is fetched.
pub const CHANGES: u32 = 3;

/// The limits of one fetch; the constants of this module are the defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchLimits {
    /// See [`DEADLINE`].
    pub deadline: Duration,
    /// See [`CONNECT`].
    pub connect: Duration,
    /// See [`HEADERS`].
    pub headers: Duration,
    /// See [`IDLE`].
    pub idle: Duration,
    /// See [`MINIMUM_RATE`].
    pub minimum_rate: u64,
    /// See [`RATE_WINDOW`].
    pub rate_window: Duration,
    /// See [`ATTEMPTS`].
    pub attempts: u32,
    /// See [`PROGRESS`].
    pub progress: u64,
    /// See [`FIRST_PAUSE`].
    pub first_pause: Duration,
    /// See [`LONGEST_PAUSE`].
    pub longest_pause: Duration,
    /// See [`LONGEST_RETRY_AFTER`].
    pub longest_retry_after: Duration,
    /// See [`REDIRECTS`].
    pub redirects: usize,
    /// See [`CHANGES`].
    pub changes: u32,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self {
            deadline: DEADLINE,
            connect: CONNECT,
            headers: HEADERS,
            idle: IDLE,
            minimum_rate: MINIMUM_RATE,
            rate_window: RATE_WINDOW,
            attempts: ATTEMPTS,
            progress: PROGRESS,
            first_pause: FIRST_PAUSE,
            longest_pause: LONGEST_PAUSE,
            longest_retry_after: LONGEST_RETRY_AFTER,
            redirects: REDIRECTS,
            changes: CHANGES,
        }
    }
}

impl FetchLimits {
    /// Pause after so many failed attempts in a row.
    pub(super) fn pause(&self, failed: u32) -> Duration {
        net::pause(self.first_pause, self.longest_pause, failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_differ() {
        let limits = FetchLimits::default();
        for (failed, most) in [(1, 0.5), (2, 1.0), (3, 2.0), (6, 16.0), (7, 20.0), (u32::MAX, 20.0)] {
            for _ in 0..100 {
                let pause = limits.pause(failed).as_secs_f64();
                assert!((most / 2.0..=most).contains(&pause), "{failed}: {pause}");
            }
        }
        assert_ne!(limits.pause(5), limits.pause(5));
    }
}
