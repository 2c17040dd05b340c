//! A request to end a run early, from a signal handler or another thread.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

/// How a run is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum StopKind {
    /// After the step at hand, with a checkpoint to go on from.
    Pause = 1,
    /// At once, and nothing of it is wanted.
    Cancel = 2,
}

/// Shared by whoever asks and whoever works.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    asked: Arc<AtomicU8>,
}

impl Stop {
    /// Asks. A later, milder request changes nothing.
    pub fn ask(&self, kind: StopKind) {
        self.asked.fetch_max(kind as u8, Ordering::Relaxed);
    }

    /// What was asked for.
    pub fn asked(&self) -> Option<StopKind> {
        match self.asked.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(StopKind::Pause),
            _ => Some(StopKind::Cancel),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stronger_request_wins() {
        let stop = Stop::default();
        assert_eq!(stop.asked(), None);
        let other = stop.clone();
        other.ask(StopKind::Cancel);
        other.ask(StopKind::Pause);
        assert_eq!(stop.asked(), Some(StopKind::Cancel));
    }
}
