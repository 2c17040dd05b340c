//! How long and how often a delivery tries, and in what pieces it sends.

use std::time::Duration;

use crate::net;

/// A delivery that takes longer has failed.
pub const DEADLINE: Duration = Duration::from_secs(60 * 60);
/// Resolving a name, and each attempt to connect.
pub const CONNECT: Duration = Duration::from_secs(10);
/// From a request without a body to the end of the answer's headers. With a body, the time that it needs at
/// [`MINIMUM_RATE`] is added.
pub const ANSWER: Duration = Duration::from_secs(60);
/// Bytes per second that a body must go with.
pub const MINIMUM_RATE: u64 = 64 << 10;
/// Attempts in a row for one request.
pub const ATTEMPTS: u32 = 6;
/// Pause after the first failed attempt; each further one doubles it.
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// Longest pause that a server's `Retry-After` may ask for.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);
/// Files up to this size are sent by one request, larger ones in parts of at least this size.
pub const PART_BYTES: u64 = 16 << 20;
/// Parts of one object, by S3's rules.
pub const MAX_PARTS: u64 = 10_000;
/// Largest object, by S3's rules: 5 TiB.
pub const MAX_OBJECT_BYTES: u64 = 5 << 40;
/// Finding out whether a store would take results.
pub const LOOK: Duration = Duration::from_secs(30);
/// Attempts at that.
pub const LOOK_ATTEMPTS: u32 = 3;
/// So long is tried to remove the parts of an upload that failed.
pub const ABORT: Duration = Duration::from_secs(30);
/// So long of that is waited for after a cancellation; the rest goes on beside.
pub const ABORT_AFTER_CANCEL: Duration = Duration::from_millis(1500);

/// The limits of one delivery; the constants of this module are the defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadLimits {
    /// See [`DEADLINE`].
    pub deadline: Duration,
    /// See [`CONNECT`].
    pub connect: Duration,
    /// See [`ANSWER`].
    pub answer: Duration,
    /// See [`MINIMUM_RATE`].
    pub minimum_rate: u64,
    /// See [`ATTEMPTS`].
    pub attempts: u32,
    /// See [`FIRST_PAUSE`].
    pub first_pause: Duration,
    /// See [`LONGEST_PAUSE`].
    pub longest_pause: Duration,
    /// See [`LONGEST_RETRY_AFTER`].
    pub longest_retry_after: Duration,
    /// See [`PART_BYTES`].
    pub part_bytes: u64,
    /// See [`ABORT`].
    pub abort: Duration,
    /// See [`ABORT_AFTER_CANCEL`].
    pub abort_after_cancel: Duration,
}

impl Default for UploadLimits {
    fn default() -> Self {
        Self {
            deadline: DEADLINE,
            connect: CONNECT,
            answer: ANSWER,
            minimum_rate: MINIMUM_RATE,
            attempts: ATTEMPTS,
            first_pause: FIRST_PAUSE,
            longest_pause: LONGEST_PAUSE,
            longest_retry_after: LONGEST_RETRY_AFTER,
            part_bytes: PART_BYTES,
            abort: ABORT,
            abort_after_cancel: ABORT_AFTER_CANCEL,
        }
    }
}

impl UploadLimits {
    /// For finding out whether a store would take results, before anybody waits for one.
    pub fn of_a_look() -> Self {
        Self { deadline: LOOK, attempts: LOOK_ATTEMPTS, ..Self::default() }
    }

    /// Size of the parts of a file of so many bytes: as few bytes as the number of parts allows.
    pub(super) fn part_bytes_for(&self, bytes: u64) -> u64 {
        self.part_bytes.max(bytes.div_ceil(MAX_PARTS)).max(1)
    }

    /// Time for a request with a body of so many bytes.
    pub(super) fn time_for(&self, bytes: u64) -> Duration {
        self.answer + Duration::from_secs(bytes / self.minimum_rate.max(1))
    }

    /// Pause after so many failed attempts in a row.
    pub(super) fn pause(&self, failed: u32) -> Duration {
        net::pause(self.first_pause, self.longest_pause, failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_where_there_would_be_too_many() {
        let limits = UploadLimits::default();
        assert_eq!(limits.part_bytes_for(PART_BYTES + 1), PART_BYTES);
        for bytes in [PART_BYTES * MAX_PARTS, PART_BYTES * MAX_PARTS + 1, MAX_OBJECT_BYTES] {
            let part = limits.part_bytes_for(bytes);
            assert!(bytes.div_ceil(part) <= MAX_PARTS && part >= PART_BYTES, "{bytes}: {part}");
        }
        assert_eq!(limits.time_for(MINIMUM_RATE * 10), ANSWER + Duration::from_secs(10));
    }

    #[test]
    fn pauses_double_up_to_a_limit() {
        let limits = UploadLimits::default();
        for (failed, most) in [(1, 0.5), (2, 1.0), (6, 16.0), (7, 20.0), (u32::MAX, 20.0)] {
            let pause = limits.pause(failed).as_secs_f64();
            assert!((most / 2.0..=most).contains(&pause), "{failed}: {pause}");
        }
    }
}
