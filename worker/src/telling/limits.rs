//! How often somebody is told, how long they are waited for, and when that ends.

use std::time::Duration;

/// Between two messages of progress.
pub const PROGRESS: Duration = Duration::from_secs(10);
/// Between two messages where the stage is another one.
pub const CHANGE: Duration = Duration::from_secs(1);
/// Resolving a name, and each attempt to connect.
pub const CONNECT: Duration = Duration::from_secs(3);
/// One small request, from its beginning to its answer.
pub const ANSWER: Duration = Duration::from_secs(5);
/// After so many failures in a row nothing more is told of progress; of the end it is.
pub const FAILURES: u32 = 6;
/// Telling the end, with all attempts, to the job's callback.
pub const LAST_OF_CALLBACK: Duration = Duration::from_secs(20);
/// Telling the end, with all attempts, to the operator's own table: nobody else tells those who read it.
pub const LAST_OF_ROW: Duration = Duration::from_secs(120);
/// Pause after the first failure to tell the end; doubled each time.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Bringing the archive of the adapter to the operator's store, with all attempts.
pub const ARCHIVE: Duration = Duration::from_secs(15 * 60);
/// Bytes per second that an archive must go with.
pub const MINIMUM_RATE: u64 = 64 << 10;

/// The limits of telling; the constants of this module are the defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TellingLimits {
    /// See [`PROGRESS`].
    pub progress: Duration,
    /// See [`CHANGE`].
    pub change: Duration,
    /// See [`CONNECT`].
    pub connect: Duration,
    /// See [`ANSWER`].
    pub answer: Duration,
    /// See [`FAILURES`].
    pub failures: u32,
    /// See [`LAST_OF_CALLBACK`].
    pub last_of_callback: Duration,
    /// See [`LAST_OF_ROW`].
    pub last_of_row: Duration,
    /// See [`FIRST_PAUSE`].
    pub first_pause: Duration,
    /// See [`LONGEST_PAUSE`].
    pub longest_pause: Duration,
    /// See [`ARCHIVE`].
    pub archive: Duration,
    /// See [`MINIMUM_RATE`].
    pub minimum_rate: u64,
}

impl Default for TellingLimits {
    fn default() -> Self {
        Self {
            progress: PROGRESS,
            change: CHANGE,
            connect: CONNECT,
            answer: ANSWER,
            failures: FAILURES,
            last_of_callback: LAST_OF_CALLBACK,
            last_of_row: LAST_OF_ROW,
            first_pause: FIRST_PAUSE,
            longest_pause: LONGEST_PAUSE,
            archive: ARCHIVE,
            minimum_rate: MINIMUM_RATE,
        }
    }
}

// === impl TellingLimits ===

impl TellingLimits {
    /// Time for a request with a body of so many bytes.
    pub(super) fn time_for(&self, bytes: u64) -> Duration {
        self.answer + Duration::from_secs(bytes / self.minimum_rate.max(1))
    }
}
