//! The platform's memory: jobs, who waits, who is to be stopped.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Instant,
};

use serde_json::{Map, Value};

use super::{
    JobView, Options, Status,
    http::Reply,
    job::{Job, Ticked},
};

/// All jobs, those that wait first in, first out.
#[derive(Default)]
pub(super) struct Queue {
    jobs: BTreeMap<String, Job>,
    waiting: VecDeque<String>,
    /// By worker.
    stops: HashMap<String, Vec<String>>,
    submitted: u64,
}

// === impl Queue ===

impl Queue {
    /// Notes a job without queueing it.
    pub(super) fn note(&mut self, mut body: Map<String, Value>, now: Instant) -> String {
        self.submitted += 1;
        let given = body.shift_remove("id").and_then(|id| id.as_str().map(str::to_owned));
        let id = given.unwrap_or_else(|| format!("00000000-0000-4000-8000-{:012x}-u1", self.submitted));
        assert!(!self.jobs.contains_key(&id), "a job {id} is there already");
        self.jobs.insert(id.clone(), Job::new(id.clone(), body, now));
        id
    }

    /// Lets a known job be given out, once more if it was given out.
    pub(super) fn enqueue(&mut self, id: &str) {
        assert!(self.jobs.contains_key(id), "there is no job {id}");
        self.waiting.push_back(id.to_owned());
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The ids and the JSON of up to so many jobs.
    pub(super) fn take(&mut self, worker: &str, most: usize, now: Instant) -> (Vec<String>, Vec<Value>) {
        let count = most.min(self.waiting.len());
        let ids: Vec<String> = self.waiting.drain(..count).collect();
        let jobs = ids.iter().filter_map(|id| self.deliver(id, worker, now)).collect();
        (ids, jobs)
    }

    pub(super) fn deliver(&mut self, id: &str, worker: &str, now: Instant) -> Option<Value> {
        Some(self.jobs.get_mut(id)?.deliver(worker, now))
    }

    /// A progress or a result.
    pub(super) fn post(&mut self, id: &str, body: &[u8], options: &Options, now: Instant) -> Reply {
        let parsed = serde_json::from_slice::<Map<String, Value>>(body).ok();
        let is_progress = parsed.as_ref().is_some_and(|body| body.get("status").is_some_and(|it| it == "IN_PROGRESS"));
        let Some(job) = self.jobs.get_mut(id) else { return refusal(404, "no such job") };
        if body.len() > options.max_body_bytes {
            if !is_progress {
                job.complete_without_output(now);
            }
            return refusal(400, "body exceeds the max allowed size");
        }
        let Some(parsed) = parsed else { return refusal(400, "json is invalid") };
        if is_progress {
            job.progress(parsed.get("output").cloned().unwrap_or(Value::Null));
        } else {
            // Answered late, after all: nobody needs to do it again.
            if job.status() == Status::InQueue {
                self.waiting.retain(|waiting| waiting != id);
            }
            job.result(&parsed, now);
        }
        Reply::json(200, &Value::Object(Map::new()))
    }

    pub(super) fn stream(&mut self, id: &str, body: &[u8]) -> Reply {
        let Some(job) = self.jobs.get_mut(id) else { return refusal(404, "no such job") };
        let Ok(mut body) = serde_json::from_slice::<Map<String, Value>>(body) else {
            return refusal(400, "json is invalid");
        };
        job.stream(body.shift_remove("output").unwrap_or(Value::Null));
        Reply::json(200, &Value::Object(Map::new()))
    }

    /// Only what the pings of the worker that has a job say keeps it with that worker.
    pub(super) fn ping(&mut self, worker: &str, ids: &[String], now: Instant) {
        for id in ids {
            if let Some(job) = self.jobs.get_mut(id).filter(|job| job.worker() == Some(worker)) {
                job.heard_of(now);
            }
        }
    }

    /// What a worker is to stop and was not told yet.
    pub(super) fn stops(&mut self, worker: &str) -> Vec<String> {
        self.stops.remove(worker).unwrap_or_default()
    }

    /// Ends a job that has not ended from outside. Its worker is told to stop.
    pub(super) fn end(&mut self, id: &str, status: Status, now: Instant) -> Option<Status> {
        let job = self.jobs.get_mut(id)?;
        match job.status() {
            Status::InQueue => self.waiting.retain(|waiting| waiting != id),
            Status::InProgress => stop(&mut self.stops, job, id),
            ended => return Some(ended),
        }
        job.end(status, now);
        Some(status)
    }

    /// What has become of jobs only because time went by; true if anything has.
    pub(super) fn tick(&mut self, options: &Options, now: Instant) -> bool {
        let mut expired = Vec::new();
        let mut changed = false;
        for (id, job) in &mut self.jobs {
            let before = job.status();
            match job.tick(options.redispatch_after, now) {
                Ticked::Nothing => {}
                Ticked::Requeued => self.waiting.push_back(id.clone()),
                Ticked::Stopped => stop(&mut self.stops, job, id),
                Ticked::Expired => {
                    if job.status() == Status::InProgress {
                        stop(&mut self.stops, job, id);
                    }
                    expired.push(id.clone());
                }
            }
            changed |= job.status() != before;
        }
        for id in &expired {
            self.jobs.remove(id);
            self.waiting.retain(|waiting| waiting != id);
        }
        changed || !expired.is_empty()
    }

    pub(super) fn view(&self, id: &str, now: Instant) -> Option<JobView> {
        Some(self.jobs.get(id)?.view(now))
    }

    pub(super) fn views(&self, now: Instant) -> Vec<JobView> {
        self.jobs.values().map(|job| job.view(now)).collect()
    }
}

fn stop(stops: &mut HashMap<String, Vec<String>>, job: &Job, id: &str) {
    if let Some(worker) = job.worker() {
        stops.entry(worker.to_owned()).or_default().push(id.to_owned());
    }
}

fn refusal(status: u16, text: &str) -> Reply {
    Reply::json(status, &serde_json::json!({ "error": text }))
}
