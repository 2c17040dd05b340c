//! What a job's owner should know of those who could not be told.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Each thing once.
#[derive(Clone, Default)]
pub(super) struct Notes(Arc<Mutex<Vec<String>>>);

// === impl Notes ===

impl Notes {
    /// Takes note, and says so in the log, where it is not known yet.
    pub(super) fn take(&self, note: String) {
        let mut notes = self.lock();
        if !notes.contains(&note) {
            tracing::warn!("{note}");
            notes.push(note);
        }
    }

    /// All so far.
    pub(super) fn all(&self) -> Vec<String> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
