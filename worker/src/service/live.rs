//! All jobs as they are in memory.

use std::collections::{BTreeMap, HashMap, VecDeque};

use tokio_util::sync::CancellationToken;

use super::{
    record::{Facts, Record, Status},
    settings::Limits,
    store::Answered,
};

/// Jobs that ended last: their streams and results are in memory, for whoever comes late.
pub(super) const MOST_LATE: usize = 16;
/// Larger results are read from the disk.
pub(super) const MAX_LATE_BYTES: usize = 256 << 10;

/// All jobs, and which of them wait.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) jobs: HashMap<String, Record>,
    /// Jobs that wait, by their places.
    pub(super) waiting: BTreeMap<i64, String>,
    pub(super) waiting_bytes: i64,
    /// Jobs that ended last.
    late: VecDeque<String>,
}

// === impl Live ===

impl Live {
    pub(super) fn add(&mut self, id: String, facts: Facts) {
        self.enqueue(&id, &facts);
        self.jobs.insert(id, Record::new(facts));
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Record> {
        let record = self.jobs.remove(id)?;
        self.dequeue(&record.facts);
        Some(record)
    }

    /// What has become of a job; whoever waits hears of it.
    pub(super) fn change(&mut self, id: &str, facts: Facts) {
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
    pub(super) fn note_end(&mut self, id: &str, answer: &Answered) {
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
    pub(super) fn open(&self, id: &str) -> Option<(Facts, CancellationToken)> {
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
    pub(super) fn expired(&self, now: i64) -> Vec<String> {
        let expired = |job: &Record| !job.facts.status.is_over() && job.facts.expires().is_some_and(|end| end <= now);
        self.jobs.iter().filter(|(_, job)| expired(job)).map(|(id, _)| id.clone()).collect()
    }

    /// Jobs that are over and not to be remembered any longer.
    pub(super) fn surplus(&self, limits: &Limits, now: i64) -> Vec<String> {
        let keep = i64::try_from(limits.keep.as_millis()).unwrap_or(i64::MAX);
        // Several may end within a millisecond; they ended in their order.
        let mut over: Vec<(i64, i64, &String)> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.facts.status.is_over())
            .map(|(id, job)| (job.facts.ended.unwrap_or_default(), job.facts.place, id))
            .collect();
        over.sort_by(|one, other| other.cmp(one));
        let old = |(ended, _, _): &&(i64, i64, &String)| now.saturating_sub(*ended) > keep;
        let count = over.len().min(limits.history);
        let (kept, surplus) = over.split_at(count);
        kept.iter().filter(old).chain(surplus).map(|(_, _, id)| (*id).clone()).collect()
    }
}
