//! Which jobs are here.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// The jobs that this worker has, from the moment in which they arrive to that in which their result is acknowledged. Every
/// ping lists them: the platform gives a job that is neither listed nor answered to somebody else.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    jobs: Arc<Mutex<BTreeMap<String, Entry>>>,
}

/// One job is here as long as this lives.
#[derive(Debug)]
pub(super) struct Holding {
    held: Held,
    id: String,
    /// Ends when the platform wants the job stopped.
    pub(super) stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Entry {
    holders: usize,
    stop: CancellationToken,
}

// === impl Held ===

impl Held {
    /// Holds a job. One that is delivered twice is held until both are let go.
    pub(super) fn hold(&self, id: &str) -> Holding {
        let mut jobs = self.lock();
        let entry = jobs.entry(id.to_owned()).or_default();
        entry.holders += 1;
        Holding { held: self.clone(), id: id.to_owned(), stop: entry.stop.clone() }
    }

    /// All that are here, by name.
    pub(super) fn ids(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Stops those of these jobs that are here.
    pub(super) fn stop<'a>(&self, ids: impl IntoIterator<Item = &'a String>) {
        let jobs = self.lock();
        ids.into_iter().filter_map(|id| jobs.get(id)).for_each(|entry| entry.stop.cancel());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Holding ===

impl Drop for Holding {
    fn drop(&mut self) {
        let mut jobs = self.held.lock();
        match jobs.get_mut(&self.id) {
            Some(entry) if entry.holders > 1 => entry.holders -= 1,
            _ => drop(jobs.remove(&self.id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_here_until_nobody_holds_it() {
        let held = Held::default();
        let (first, second, other) = (held.hold("a"), held.hold("a"), held.hold("b"));
        drop(first);
        assert_eq!(held.ids(), ["a", "b"]);
        drop((second, other));
        assert!(held.ids().is_empty());
    }

    #[test]
    fn what_is_stopped_is_stopped_for_all_who_hold_it_and_not_for_the_next() {
        let held = Held::default();
        let (first, second, other) = (held.hold("a"), held.hold("a"), held.hold("b"));
        held.stop(["a".to_owned(), "c".to_owned()].iter());
        assert!(first.stop.is_cancelled() && second.stop.is_cancelled() && !other.stop.is_cancelled());
        drop((first, second));
        assert!(!held.hold("a").stop.is_cancelled());
    }
}
