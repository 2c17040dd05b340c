//! Queue and history as they are now: in memory, so that asking is cheap, and on disk, so that nothing is lost.

mod views;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;
use thiserror::Error;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    live::Live,
    record::{Facts, Status, now},
    settings::Limits,
    store::{Answered, Store, StoreError, Told},
    submission::Submission,
};
use crate::{redacted::Redacted, work::Job};

/// Jobs under which the program ended so often are not begun again: it is probably their doing.
const MOST_BROKEN: u32 = 30;

/// Why something is not done.
#[derive(Debug, Error)]
pub(super) enum Refusal {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("there is no job of this id; it was never here, has expired, or was over so long ago that it is forgotten")]
    Unknown,
    #[error("the queue is full: {0}; send the job again later")]
    Full(String),
    #[error("{0}")]
    Wrong(String),
}

/// A job that is to be carried out now.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) job: Job,
    pub(super) stop: CancellationToken,
    /// So long it may take.
    pub(super) limit: Option<Duration>,
    /// So long it has waited, in milliseconds.
    pub(super) waited: i64,
}

/// How a job ended.
#[derive(Debug)]
pub(super) struct End {
    pub(super) status: Status,
    pub(super) answer: Answered,
}

/// Queue and history. Whatever writes may wait for the disk; it is called where that is allowed.
#[derive(Debug)]
pub(super) struct Queue {
    /// Held through every change, so that disk and memory tell the same.
    store: Mutex<Store>,
    /// Held for moments only, and never while the disk is waited for.
    live: Mutex<Live>,
    /// Something new is in the queue.
    pub(super) news: Notify,
    limits: Limits,
    execution: Option<Duration>,
    worker: String,
}

// === impl Queue ===

impl Queue {
    /// As it was left: what was under way is first again, in its order.
    pub(super) fn open(
        mut store: Store,
        limits: Limits,
        execution: Option<Duration>,
        worker: String,
    ) -> Result<Self, StoreError> {
        let mut live = Live::default();
        let all = store.all()?;
        for (id, mut facts) in all {
            if facts.status == Status::InProgress {
                facts.status = Status::InQueue;
                facts.broken += 1;
                facts.retries += 1;
                facts.started = None;
                facts.queued = now();
                tracing::info!("job {id} was under way when the program ended; it goes on");
                store.move_on(&id, &facts)?;
            }
            if facts.broken >= MOST_BROKEN && !facts.status.is_over() {
                facts.status = Status::Failed;
                facts.ended = Some(now());
                let error = format!(
                    "the program ended {MOST_BROKEN} times while it did this job, which may need more memory than there is; \
                     make it smaller, or start it again with /retry"
                );
                store.end(&id, &facts, &Answered { output: None, error: Some(error) })?;
            }
            live.add(id, facts);
        }
        let queue =
            Self { store: Mutex::new(store), live: Mutex::new(live), news: Notify::new(), limits, execution, worker };
        queue.news.notify_one();
        Ok(queue)
    }

    /// Takes a job in; it is on disk when this returns.
    pub(super) fn submit(&self, job: &Submission) -> Result<(), Refusal> {
        let input = job.input.to_string();
        let mut store = self.store();
        let now = now();
        let facts = {
            let live = self.live();
            let waiting = live.waiting.len();
            if waiting >= self.limits.queue {
                return Err(Refusal::Full(format!("{waiting} jobs wait")));
            }
            if live.waiting_bytes.unsigned_abs() + input.len() as u64 > self.limits.queue_bytes {
                return Err(Refusal::Full(format!("jobs of {} bytes wait", live.waiting_bytes)));
            }
            Facts {
                place: live.jobs.values().map(|job| job.facts.place).max().unwrap_or_default() + 1,
                status: Status::InQueue,
                submitted: now,
                queued: now,
                started: None,
                ended: None,
                retries: 0,
                broken: 0,
                bytes: i64::try_from(input.len()).unwrap_or(i64::MAX),
                policy: job.policy,
            }
        };
        store.add(job, &input, &facts)?;
        self.live().add(job.id.clone(), facts);
        self.news.notify_one();
        Ok(())
    }

    /// The next job, which is under way from now on.
    pub(super) fn begin(&self) -> Result<Option<Begun>, StoreError> {
        let mut store = self.store();
        let (id, mut facts, stop) = {
            let live = self.live();
            let Some(id) = live.waiting.values().next() else { return Ok(None) };
            let Some(record) = live.jobs.get(id) else { return Ok(None) };
            (id.clone(), record.facts.clone(), record.stop.clone())
        };
        let now = now();
        facts.status = Status::InProgress;
        facts.started = Some(now);
        let Some(asked) = store.asked(&id)? else {
            // Somebody has changed the file under us.
            self.live().remove(&id);
            return Ok(None);
        };
        store.move_on(&id, &facts)?;
        let waited = now.saturating_sub(facts.queued).max(0);
        let since = now.saturating_sub(facts.submitted).max(0);
        let job = Job {
            id: id.clone(),
            input: asked.input,
            policy: facts.policy.told(),
            waited: Duration::from_millis(since.unsigned_abs()),
            store: asked.store.map(Redacted::hidden),
        };
        let limit = facts.policy.execution(self.execution);
        self.live().change(&id, facts);
        Ok(Some(Begun { job, stop, limit, waited }))
    }

    /// Ends a job that is not over. Whether there is a webhook to tell; nothing where it is over or gone.
    pub(super) fn end(&self, id: &str, end: &End) -> Result<Option<bool>, StoreError> {
        let mut store = self.store();
        let Some((mut facts, stop)) = self.live().open(id) else { return Ok(None) };
        facts.status = end.status;
        facts.ended = Some(now());
        let to_tell = store.end(id, &facts, &end.answer)?;
        stop.cancel();
        let surplus = {
            let mut live = self.live();
            live.change(id, facts);
            live.note_end(id, &end.answer);
            live.surplus(&self.limits, now())
        };
        if let Err(error) = self.remove(&mut store, &surplus) {
            tracing::warn!("old jobs are not forgotten: {error}");
        }
        Ok(Some(to_tell))
    }

    /// A job that is under way waits again, before all others: its place is still the lowest.
    pub(super) fn put_back(&self, id: &str) -> Result<(), StoreError> {
        let mut store = self.store();
        let Some((mut facts, _)) = self.live().open(id) else { return Ok(()) };
        facts.status = Status::InQueue;
        facts.started = None;
        store.move_on(id, &facts)?;
        self.live().change(id, facts);
        self.news.notify_one();
        Ok(())
    }

    /// A job that failed waits once more, after all others.
    pub(super) fn retry(&self, id: &str) -> Result<(), Refusal> {
        let mut store = self.store();
        let (mut facts, last) = {
            let live = self.live();
            let record = live.jobs.get(id).ok_or(Refusal::Unknown)?;
            (record.facts.clone(), live.jobs.values().map(|job| job.facts.place).max().unwrap_or_default())
        };
        if facts.status != Status::Failed {
            let why = format!("the job is {}; only one that FAILED can be retried", facts.status.name());
            return Err(Refusal::Wrong(why));
        }
        if store.is_forgotten(id)? {
            let why = "the job's signed links or keys were forgotten when it ended; send it again with /run and the same job_id, \
                       and it goes on where it was";
            return Err(Refusal::Wrong(why.to_owned()));
        }
        facts.status = Status::InQueue;
        facts.place = last + 1;
        facts.retries += 1;
        facts.broken = 0;
        (facts.started, facts.ended) = (None, None);
        facts.queued = now();
        if facts.expires().is_some_and(|end| end <= facts.queued) {
            return Err(Refusal::Wrong("the job's policy.ttl is over; send it again with /run".to_owned()));
        }
        store.move_on(id, &facts)?;
        let mut live = self.live();
        live.remove(id);
        live.add(id.to_owned(), facts);
        self.news.notify_one();
        Ok(())
    }

    /// Forgets all jobs that wait; how many there were.
    pub(super) fn purge(&self) -> Result<usize, StoreError> {
        let mut store = self.store();
        let waiting: Vec<String> = self.live().waiting.values().cloned().collect();
        self.remove(&mut store, &waiting)?;
        Ok(waiting.len())
    }

    /// Forgets what has expired, and what was over long ago.
    pub(super) fn expire(&self) -> Result<(), StoreError> {
        let now = now();
        let gone = || {
            let live = self.live();
            let mut gone = live.expired(now);
            gone.extend(live.surplus(&self.limits, now));
            gone
        };
        if gone().is_empty() {
            return Ok(());
        }
        let mut store = self.store();
        // A job may have ended while the disk was waited for.
        self.remove(&mut store, &gone())
    }

    fn remove(&self, store: &mut Store, ids: &[String]) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        store.delete(ids)?;
        let mut live = self.live();
        for record in ids.iter().filter_map(|id| live.remove(id)) {
            record.stop.cancel();
            record.changed.send_replace(());
        }
        Ok(())
    }

    /// Shows how far a job is. It never waits for the disk.
    pub(super) fn show(&self, id: &str, output: Value) {
        let mut live = self.live();
        let Some(record) = live.jobs.get_mut(id).filter(|record| record.facts.status == Status::InProgress) else {
            return;
        };
        let output = Arc::new(output);
        record.latest = Some(output.clone());
        record.stream.push(output);
        record.changed.send_replace(());
    }

    /// Jobs whose webhooks are still to be told.
    pub(super) fn to_tell(&self) -> Result<Vec<String>, StoreError> {
        self.store().to_tell()
    }

    /// What a webhook is told with.
    pub(super) fn webhook(&self, id: &str) -> Result<Option<Told>, StoreError> {
        self.store().told(id)
    }

    pub(super) fn webhook_is_done(&self, id: &str) -> Result<(), StoreError> {
        self.store().webhook_is_done(id)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
