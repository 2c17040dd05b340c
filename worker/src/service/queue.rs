//! Queue and history as they are now: in memory, so that asking is cheap, and on disk, so that nothing is lost.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Map, Value, json};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    record::{Facts, Record, STATUSES, Status, now},
    settings::Limits,
    store::{Answered, Store, StoreError, Told},
    submission::Submission,
};
use crate::{redacted::Redacted, work::Job};

/// Jobs under which the program ended so often are not begun again: it is probably their doing.
const MOST_BROKEN: u32 = 10;
/// Jobs that ended last: their streams and results are in memory, for whoever comes late.
const MOST_LATE: usize = 16;
/// Larger results are read from the disk.
const MAX_LATE_BYTES: usize = 256 << 10;

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

#[derive(Debug, Default)]
struct Live {
    jobs: HashMap<String, Record>,
    /// Jobs that wait, by their places.
    waiting: BTreeMap<i64, String>,
    waiting_bytes: i64,
    /// Jobs that ended last.
    late: VecDeque<String>,
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
        // The lowest place begins; what comes before it goes down from there.
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

    /// A job that is under way waits again, before all others.
    pub(super) fn put_back(&self, id: &str) -> Result<(), StoreError> {
        let mut store = self.store();
        let Some((mut facts, _)) = self.live().open(id) else { return Ok(()) };
        facts.status = Status::InQueue;
        facts.started = None;
        facts.place = self.live().waiting.keys().next().map_or(facts.place, |first| facts.place.min(first - 1));
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

    /// A job as `/status` tells it.
    pub(super) fn told(&self, id: &str) -> Result<Option<Value>, StoreError> {
        if let Some(told) = self.told_from_memory(id) {
            return Ok(told);
        }
        let answer = self.store().answered(id)?;
        Ok(self.brief(id).map(|told| whole(told, answer)))
    }

    /// The same, as far as that needs no disk: a job that is not over, ended a moment ago, or is not there.
    pub(super) fn told_from_memory(&self, id: &str) -> Option<Option<Value>> {
        let live = self.live();
        let Some(record) = live.jobs.get(id) else { return Some(None) };
        let told = record.facts.told(id, &self.worker);
        if record.facts.status.is_over() {
            let answer = record.answer.clone()?;
            drop(live);
            return Some(Some(whole(told, answer)));
        }
        let latest = record.latest.clone();
        drop(live);
        let output = latest.map(|output| (*output).clone());
        Some(Some(whole(told, Answered { output, error: None })))
    }

    /// The same without output and error.
    pub(super) fn brief(&self, id: &str) -> Option<Map<String, Value>> {
        Some(self.live().jobs.get(id)?.facts.told(id, &self.worker))
    }

    /// What a job has shown since the last time somebody asked, with its status.
    pub(super) fn drain(&self, id: &str) -> Option<(Status, Vec<Value>)> {
        let mut live = self.live();
        let record = live.jobs.get_mut(id)?;
        Some((record.facts.status, record.stream.drain()))
    }

    /// Whether a job is over or gone, and whether it has something to stream.
    pub(super) fn state(&self, id: &str) -> (bool, bool) {
        let live = self.live();
        live.jobs.get(id).map_or((true, false), |job| (job.facts.status.is_over(), !job.stream.is_empty()))
    }

    /// Hears of everything new about a job.
    pub(super) fn listen(&self, id: &str) -> Option<watch::Receiver<()>> {
        Some(self.live().jobs.get(id)?.changed.subscribe())
    }

    /// All jobs, the newest first, without their outputs.
    pub(super) fn list(&self) -> Vec<Value> {
        let live = self.live();
        let mut all: Vec<_> = live.jobs.iter().collect();
        all.sort_by_key(|(_, job)| (std::cmp::Reverse(job.facts.submitted), job.facts.place));
        all.into_iter().map(|(id, job)| Value::Object(job.facts.told(id, &self.worker))).collect()
    }

    /// How many jobs there are of each kind, and how many were retried.
    pub(super) fn counts(&self) -> ([(Status, usize); 5], usize) {
        let live = self.live();
        let of = |status| live.jobs.values().filter(|job| job.facts.status == status).count();
        let retried = live.jobs.values().filter(|job| job.facts.retries > 0).count();
        (STATUSES.map(|status| (status, of(status))), retried)
    }

    /// What the job that is under way shows.
    pub(super) fn latest(&self) -> Option<Arc<Value>> {
        let live = self.live();
        live.jobs.values().find(|job| job.facts.status == Status::InProgress)?.latest.clone()
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

fn whole(mut told: Map<String, Value>, answer: Answered) -> Value {
    told.extend(answer.output.map(|output| ("output".to_owned(), output)));
    told.extend(answer.error.map(|error| ("error".to_owned(), json!(error))));
    Value::Object(told)
}

// === impl Live ===

impl Live {
    fn add(&mut self, id: String, facts: Facts) {
        self.enqueue(&id, &facts);
        self.jobs.insert(id, Record::new(facts));
    }

    fn remove(&mut self, id: &str) -> Option<Record> {
        let record = self.jobs.remove(id)?;
        self.dequeue(&record.facts);
        Some(record)
    }

    /// What has become of a job; whoever waits hears of it.
    fn change(&mut self, id: &str, facts: Facts) {
        let Some(record) = self.jobs.get_mut(id) else { return };
        let before = std::mem::replace(&mut record.facts, facts.clone());
        if facts.status != Status::InProgress {
            record.latest = None;
        }
        record.changed.send_replace(());
        self.dequeue(&before);
        self.enqueue(id, &facts);
    }

    /// A job is over; what only those have that ended last is taken from another one.
    fn note_end(&mut self, id: &str, answer: &Answered) {
        let bytes = answer.output.as_ref().map_or(0, |output| output.to_string().len());
        if let Some(record) = self.jobs.get_mut(id).filter(|_| bytes <= MAX_LATE_BYTES) {
            record.answer = Some(answer.clone());
        }
        self.late.retain(|late| late != id);
        self.late.push_back(id.to_owned());
        while self.late.len() > MOST_LATE {
            let oldest = self.late.pop_front();
            if let Some(record) = oldest.and_then(|id| self.jobs.get_mut(&id)) {
                record.stream.drain();
                record.answer = None;
            }
        }
    }

    /// A job that is not over.
    fn open(&self, id: &str) -> Option<(Facts, CancellationToken)> {
        let record = self.jobs.get(id).filter(|record| !record.facts.status.is_over())?;
        Some((record.facts.clone(), record.stop.clone()))
    }

    fn enqueue(&mut self, id: &str, facts: &Facts) {
        if facts.status == Status::InQueue {
            self.waiting.insert(facts.place, id.to_owned());
            self.waiting_bytes += facts.bytes;
        }
    }

    fn dequeue(&mut self, facts: &Facts) {
        if facts.status == Status::InQueue && self.waiting.remove(&facts.place).is_some() {
            self.waiting_bytes -= facts.bytes;
        }
    }

    /// Jobs that are not over and whose life is.
    fn expired(&self, now: i64) -> Vec<String> {
        let expired = |job: &Record| !job.facts.status.is_over() && job.facts.expires().is_some_and(|end| end <= now);
        self.jobs.iter().filter(|(_, job)| expired(job)).map(|(id, _)| id.clone()).collect()
    }

    /// Jobs that are over and not to be remembered any longer.
    fn surplus(&self, limits: &Limits, now: i64) -> Vec<String> {
        let keep = i64::try_from(limits.keep.as_millis()).unwrap_or(i64::MAX);
        let mut over: Vec<(i64, &String)> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.facts.status.is_over())
            .map(|(id, job)| (job.facts.ended.unwrap_or_default(), id))
            .collect();
        over.sort_by(|one, other| other.cmp(one));
        let old = |(ended, _): &&(i64, &String)| now.saturating_sub(*ended) > keep;
        let count = over.len().min(limits.history);
        let (kept, surplus) = over.split_at(count);
        kept.iter().filter(old).chain(surplus).map(|(_, id)| (*id).clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(folder: &std::path::Path) -> Queue {
        let store = Store::open(folder).unwrap();
        Queue::open(store, Limits::default(), None, "w".into()).unwrap()
    }

    fn submitted(queue: &Queue, input: &Value) -> String {
        let body = json!({ "input": input }).to_string();
        let job = Submission::read(body.as_bytes(), false, false).unwrap();
        queue.submit(&job).unwrap();
        job.id
    }

    fn ended(queue: &Queue, output: Value) -> String {
        let id = submitted(queue, &json!({}));
        assert_eq!(queue.begin().unwrap().unwrap().job.id, id);
        queue.show(&id, json!("shown"));
        let answer = Answered { output: Some(output), error: None };
        queue.end(&id, &End { status: Status::Completed, answer }).unwrap();
        id
    }

    #[test]
    fn what_ended_last_is_in_memory_and_the_rest_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let queue = queue(folder.path());
        let ids: Vec<String> = (0..=MOST_LATE).map(|number| ended(&queue, json!(number))).collect();
        assert!(queue.told_from_memory(&ids[0]).is_none() && queue.told_from_memory(&ids[1]).is_some());
        for (number, id) in ids.iter().enumerate() {
            assert_eq!(queue.told(id).unwrap().unwrap()["output"], json!(number));
        }
        assert_eq!(queue.drain(&ids[0]).unwrap().1.len(), 0);
        assert_eq!(queue.drain(&ids[1]).unwrap().1, [json!({ "output": "shown" })]);
        let large = ended(&queue, json!("x".repeat(MAX_LATE_BYTES + 1)));
        assert!(queue.told_from_memory(&large).is_none());
        assert!(queue.told("none").unwrap().is_none());
    }

    #[test]
    fn a_full_disk_refuses_what_is_new_and_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let queue = queue(folder.path());
        let first = submitted(&queue, &json!({ "x": 1 }));
        queue.store().fill_up();
        let job =
            Submission::read(&json!({ "input": "x".repeat(1 << 20) }).to_string().into_bytes(), false, false).unwrap();
        let refused = queue.submit(&job).unwrap_err();
        assert!(matches!(refused, Refusal::Store(_)) && refused.to_string().contains("room"), "{refused}");
        assert!(queue.told(&job.id).unwrap().is_none());
        assert_eq!(queue.begin().unwrap().unwrap().job.id, first);
        assert!(queue.begin().unwrap().is_none());
    }
}
