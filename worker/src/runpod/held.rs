//! Which jobs are here.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The jobs that this worker has, from the moment in which they arrive to that in which their result is acknowledged. Every
/// ping lists them: the platform gives a job that is neither listed nor answered to somebody else.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    jobs: Arc<Mutex<BTreeMap<String, usize>>>,
}

/// One job is here as long as this lives.
#[derive(Debug)]
pub(super) struct Holding {
    held: Held,
    id: String,
}

// === impl Held ===

impl Held {
    /// Holds a job. One that is delivered twice is held until both are let go.
    pub(super) fn hold(&self, id: &str) -> Holding {
        *self.lock().entry(id.to_owned()).or_default() += 1;
        Holding { held: self.clone(), id: id.to_owned() }
    }

    /// All that are here, by name.
    pub(super) fn ids(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Holding ===

impl Drop for Holding {
    fn drop(&mut self) {
        let mut jobs = self.held.lock();
        match jobs.get_mut(&self.id) {
            Some(count) if *count > 1 => *count -= 1,
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
}
