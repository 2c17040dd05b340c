//! What there is to see of a queue.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::{
    super::{
        record::{STATUSES, Status},
        store::{Answered, StoreError},
    },
    Queue,
};

impl Queue {
    /// A job as `/status` tells it.
    pub(in super::super) fn told(&self, id: &str) -> Result<Option<Value>, StoreError> {
        if let Some(told) = self.told_from_memory(id) {
            return Ok(told);
        }
        let answer = self.store().answered(id)?;
        Ok(self.brief(id).map(|told| whole(told, answer)))
    }

    /// The same, as far as that needs no disk: a job that is not over, ended a moment ago, or is not there.
    pub(in super::super) fn told_from_memory(&self, id: &str) -> Option<Option<Value>> {
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
    pub(in super::super) fn brief(&self, id: &str) -> Option<Map<String, Value>> {
        Some(self.live().jobs.get(id)?.facts.told(id, &self.worker))
    }

    /// What a job has shown since the last time somebody asked, with its status.
    pub(in super::super) fn drain(&self, id: &str) -> Option<(Status, Vec<Value>)> {
        let mut live = self.live();
        let record = live.jobs.get_mut(id)?;
        Some((record.facts.status, record.stream.drain()))
    }

    /// Whether a job is over or gone, and whether it has something to stream.
    pub(in super::super) fn state(&self, id: &str) -> (bool, bool) {
        let live = self.live();
        live.jobs.get(id).map_or((true, false), |job| (job.facts.status.is_over(), !job.stream.is_empty()))
    }

    /// Hears of everything new about a job.
    pub(in super::super) fn listen(&self, id: &str) -> Option<watch::Receiver<()>> {
        Some(self.live().jobs.get(id)?.changed.subscribe())
    }

    /// All jobs, the newest first, without their outputs.
    pub(in super::super) fn list(&self) -> Vec<Value> {
        let live = self.live();
        let mut all: Vec<_> = live.jobs.iter().collect();
        all.sort_by_key(|(_, job)| (std::cmp::Reverse(job.facts.submitted), job.facts.place));
        all.into_iter().map(|(id, job)| Value::Object(job.facts.told(id, &self.worker))).collect()
    }

    /// How many jobs there are of each kind, and how many were retried.
    pub(in super::super) fn counts(&self) -> ([(Status, usize); 5], usize) {
        let live = self.live();
        let of = |status| live.jobs.values().filter(|job| job.facts.status == status).count();
        let retried = live.jobs.values().filter(|job| job.facts.retries > 0).count();
        (STATUSES.map(|status| (status, of(status))), retried)
    }

    /// What the job that is under way shows.
    pub(in super::super) fn latest(&self) -> Option<Arc<Value>> {
        let live = self.live();
        live.jobs.values().find(|job| job.facts.status == Status::InProgress)?.latest.clone()
    }
}

fn whole(mut told: Map<String, Value>, answer: Answered) -> Value {
    told.extend(answer.output.map(|output| ("output".to_owned(), output)));
    told.extend(answer.error.map(|error| ("error".to_owned(), json!(error))));
    Value::Object(told)
}
