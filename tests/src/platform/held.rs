//! A take that only the test answers.

use std::{sync::Arc, time::Instant};

use serde_json::{Value, json};

use super::{http::Reply, state::State};

/// A take in flight that neither jobs nor time answer. Dropped, it is one as all others.
pub struct HeldTake {
    state: Arc<State>,
    number: usize,
}

// === impl HeldTake ===

impl HeldTake {
    /// The oldest take in flight that nobody holds.
    pub(super) fn claim(state: &Arc<State>) -> Option<Self> {
        let mut inner = state.lock();
        let (&number, take) = inner.takes.iter_mut().find(|(_, take)| !take.held)?;
        take.held = true;
        Some(Self { state: state.clone(), number })
    }

    /// Its place in the record of requests.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Whether the worker still waits for the answer.
    pub fn is_open(&self) -> bool {
        self.state.lock().takes.contains_key(&self.number)
    }

    /// Answers with a job of this input. The job is given out even if the worker has closed the connection, as by a
    /// platform that has not noticed; nothing but a missing ping will then bring it back. Says the id of the job.
    pub fn release_with(self, input: Value) -> String {
        self.release_with_body(json!({ "input": input }))
    }

    /// The same with what a client posts to `/run`.
    pub fn release_with_body(self, body: Value) -> String {
        let id = self.state.note_job(body);
        let mut guard = self.state.lock();
        let inner = &mut *guard;
        let worker = inner.seen[self.number].worker.clone();
        let job = inner.queue.deliver(&id, &worker, Instant::now()).unwrap_or_default();
        inner.seen[self.number].delivered.push(id.clone());
        if let Some(take) = inner.takes.get_mut(&self.number) {
            let is_batch = inner.seen[self.number].route == super::Route::TakeBatch;
            take.release = Some(Reply::json(200, &if is_batch { json!([job]) } else { job }));
        }
        drop(guard);
        self.state.changed();
        id
    }

    /// Answers that there is no job.
    pub fn release_empty(self) {
        if let Some(take) = self.state.lock().takes.get_mut(&self.number) {
            take.release = Some(Reply::empty(204));
        }
        self.state.changed();
    }
}

impl Drop for HeldTake {
    fn drop(&mut self) {
        if let Some(take) = self.state.lock().takes.get_mut(&self.number) {
            take.held = false;
        }
        self.state.changed();
    }
}
