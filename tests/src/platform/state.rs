//! What everything in the platform shares.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::sync::watch;

use super::{
    Fault, Options, Outcome, Seen, Status,
    fault::Faults,
    http::{Reply, Request},
    object,
    queue::Queue,
};

pub(super) struct State {
    inner: Mutex<Inner>,
    changes: watch::Sender<()>,
    start: Instant,
}

pub(super) struct Inner {
    pub(super) options: Options,
    pub(super) queue: Queue,
    pub(super) faults: Faults,
    pub(super) seen: Vec<Seen>,
    /// Takes in flight, by their place in `seen`.
    pub(super) takes: BTreeMap<usize, Take>,
}

/// A take in flight.
#[derive(Default)]
pub(super) struct Take {
    /// Only the test answers it.
    pub(super) held: bool,
    /// What the test answers.
    pub(super) release: Option<Reply>,
}

// === impl State ===

impl State {
    pub(super) fn new(options: Options) -> Self {
        let inner = Inner {
            options,
            queue: Queue::default(),
            faults: Faults::default(),
            seen: Vec::new(),
            takes: BTreeMap::new(),
        };
        Self { inner: Mutex::new(inner), changes: watch::Sender::new(()), start: Instant::now() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn clock(&self) -> Duration {
        self.start.elapsed()
    }

    /// Wakes everything that waits for something to happen.
    pub(super) fn changed(&self) {
        self.changes.send_replace(());
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Remembers a request; says its place and what goes wrong with it.
    pub(super) fn note(&self, request: Request, connection: usize) -> (usize, Fault) {
        let mut inner = self.lock();
        let number = inner.seen.len();
        let seen = Seen::new(request, number, connection, self.clock());
        let fault = inner.faults.next(seen.route, seen.job.as_deref(), Instant::now());
        inner.seen.push(seen);
        drop(inner);
        self.changed();
        (number, fault)
    }

    pub(super) fn end_request(&self, number: usize, outcome: impl FnOnce(Duration) -> Outcome) {
        let mut inner = self.lock();
        inner.takes.remove(&number);
        inner.seen[number].outcome = outcome(self.clock());
        drop(inner);
        self.changed();
    }

    pub(super) fn note_job(&self, body: Value) -> String {
        self.lock().queue.note(object(body), Instant::now())
    }

    pub(super) fn enqueue(&self, job: &str) {
        self.lock().queue.enqueue(job);
        self.changed();
    }

    pub(super) fn end_job(&self, job: &str, status: Status) -> Option<Status> {
        let status = self.lock().queue.end(job, status, Instant::now());
        self.changed();
        status
    }
}
