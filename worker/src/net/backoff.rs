//! Pauses between attempts that fail.

use std::time::Duration;

/// The pause after so many failures in a row: doubled each time up to a limit, and between half and all of that, so that many
/// workers that failed together do not come back together.
pub(crate) fn pause(first: Duration, longest: Duration, failed: u32) -> Duration {
    let doubled = first.saturating_mul(1 << failed.saturating_sub(1).min(20));
    doubled.min(longest).mul_f64(0.5 + 0.5 * fastrand::f64())
}

/// Counts failures for [`pause`].
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    failed: u32,
}

// === impl Backoff ===

impl Backoff {
    /// Begins with `first`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failed: 0 }
    }

    /// The pause after one more failure.
    pub(crate) fn pause(&mut self) -> Duration {
        self.failed = self.failed.saturating_add(1);
        pause(self.first, self.longest, self.failed)
    }

    /// After a success.
    pub(crate) fn reset(&mut self) {
        self.failed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        for most in [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] {
            let pause = backoff.pause().as_secs_f64();
            assert!((most / 2.0..=most).contains(&pause), "{pause} of {most}");
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_secs(1));
    }
}
