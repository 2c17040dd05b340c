//! A job as the platform keeps it, and as its client sees it.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

/// The error of a job nobody answered for.
pub(super) const UNANSWERED: &str = "job timed out after 1 retries";
/// The error of a job that ran for too long.
const TOO_LONG: &str = "executionTimeout exceeded";

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// It waits for a worker.
    InQueue,
    /// A worker has it.
    InProgress,
    /// It has a result.
    Completed,
    /// It has an error.
    Failed,
    /// Its client called it off.
    Cancelled,
    /// It ran for longer than it may.
    TimedOut,
}

/// A job as its client and the test see it.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    /// Its id.
    pub id: String,
    /// Where it is.
    pub status: Status,
    /// The latest progress, or the result.
    pub output: Option<Value>,
    /// What went wrong.
    pub error: Option<String>,
    /// How often it was given out again because nobody answered for it.
    pub retries: u32,
    /// The worker that had it last.
    pub worker: Option<String>,
    /// How long it waited.
    pub delay: Duration,
    /// How long it ran, or runs.
    pub execution: Option<Duration>,
    /// How often it was given out.
    pub deliveries: u32,
    /// Every result the platform took, in order; more than one is one too many unless it was given out again.
    pub results: Vec<Value>,
    /// Every progress the platform took, in order.
    pub progress: Vec<Value>,
    /// Every piece of its stream, in order.
    pub stream: Vec<Value>,
    /// Whether a result asked for the worker to be replaced.
    pub stop_pod: bool,
}

pub(super) struct Job {
    body: Map<String, Value>,
    view: JobView,
    submitted: Instant,
    started: Option<Instant>,
    ended: Option<Instant>,
    /// When it was given out or listed by a ping last.
    heard_of: Instant,
}

/// What the clock did to a job.
pub(super) enum Ticked {
    Nothing,
    Requeued,
    /// Its worker is told to stop.
    Stopped,
    Expired,
}

// === impl Status ===

impl Status {
    /// As the endpoint's API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::InQueue => "IN_QUEUE",
            Self::InProgress => "IN_PROGRESS",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
            Self::TimedOut => "TIMED_OUT",
        }
    }

    /// Whether a job stays there.
    pub fn ended(self) -> bool {
        !matches!(self, Self::InQueue | Self::InProgress)
    }
}

// === impl JobView ===

impl JobView {
    /// What `GET /status/{id}` says.
    pub fn json(&self) -> Value {
        let mut body = Map::new();
        body.insert("delayTime".into(), json!(self.delay.as_millis() as u64));
        self.error.iter().for_each(|error| drop(body.insert("error".into(), json!(error))));
        if let Some(execution) = self.execution.filter(|_| self.status.ended()) {
            body.insert("executionTime".into(), json!(execution.as_millis() as u64));
        }
        body.insert("id".into(), json!(self.id));
        self.output.iter().for_each(|output| drop(body.insert("output".into(), output.clone())));
        if self.retries > 0 {
            body.insert("retries".into(), json!(self.retries));
        }
        body.insert("status".into(), json!(self.status.name()));
        self.worker.iter().for_each(|worker| drop(body.insert("workerId".into(), json!(worker))));
        Value::Object(body)
    }
}

// === impl Job ===

impl Job {
    pub(super) fn new(id: String, body: Map<String, Value>, now: Instant) -> Self {
        let view = JobView {
            id,
            status: Status::InQueue,
            output: None,
            error: None,
            retries: 0,
            worker: None,
            delay: Duration::ZERO,
            execution: None,
            deliveries: 0,
            results: Vec::new(),
            progress: Vec::new(),
            stream: Vec::new(),
            stop_pod: false,
        };
        Self { body, view, submitted: now, started: None, ended: None, heard_of: now }
    }

    pub(super) fn status(&self) -> Status {
        self.view.status
    }

    pub(super) fn worker(&self) -> Option<&str> {
        self.view.worker.as_deref()
    }

    pub(super) fn view(&self, now: Instant) -> JobView {
        let delay = self.started.unwrap_or(now) - self.submitted;
        let execution = self.started.map(|started| self.ended.unwrap_or(now).saturating_duration_since(started));
        JobView { delay, execution, ..self.view.clone() }
    }

    /// The JSON a worker gets. An empty object as input is left out, as the real platform does.
    pub(super) fn deliver(&mut self, worker: &str, now: Instant) -> Value {
        self.view.status = Status::InProgress;
        self.view.worker = Some(worker.to_owned());
        self.view.deliveries += 1;
        (self.started, self.ended, self.heard_of) = (Some(now), None, now);
        let mut job = Map::new();
        job.insert("delayTime".into(), json!((now - self.submitted).as_millis() as u64));
        job.insert("id".into(), json!(self.view.id));
        let is_empty = |value: &Value| value.as_object().is_some_and(Map::is_empty);
        let given = self.body.iter().filter(|(name, value)| *name != "input" || !is_empty(value));
        job.extend(given.map(|(name, value)| (name.clone(), value.clone())));
        Value::Object(job)
    }

    pub(super) fn heard_of(&mut self, now: Instant) {
        self.heard_of = now;
    }

    pub(super) fn stream(&mut self, piece: Value) {
        self.view.stream.push(piece);
    }

    /// The latest wins, also over a result: that is how jobs get stuck.
    pub(super) fn progress(&mut self, output: Value) {
        self.view.progress.push(output.clone());
        if matches!(self.view.status, Status::Cancelled | Status::TimedOut) {
            return;
        }
        self.view.output = Some(output);
        self.view.status = Status::InProgress;
    }

    /// A job that was called off stays called off.
    pub(super) fn result(&mut self, body: &Map<String, Value>, now: Instant) {
        self.view.results.push(Value::Object(body.clone()));
        self.view.stop_pod |= body.get("stopPod").is_some_and(|stop| stop == true);
        if matches!(self.view.status, Status::Cancelled | Status::TimedOut) {
            return;
        }
        self.view.output = body.get("output").cloned();
        self.view.error =
            body.get("error").map(|error| error.as_str().map_or_else(|| error.to_string(), str::to_owned));
        self.end(if self.view.error.is_some() { Status::Failed } else { Status::Completed }, now);
    }

    /// What becomes of a job whose result is too large.
    pub(super) fn complete_without_output(&mut self, now: Instant) {
        self.view.output = None;
        self.end(Status::Completed, now);
    }

    pub(super) fn end(&mut self, status: Status, now: Instant) {
        self.view.status = status;
        self.ended = Some(now);
    }

    pub(super) fn tick(&mut self, patience: Option<Duration>, now: Instant) -> Ticked {
        if self.limit("ttl").is_some_and(|limit| now > self.submitted + limit) {
            return Ticked::Expired;
        }
        if self.view.status != Status::InProgress || self.ended.is_some() {
            return Ticked::Nothing;
        }
        let limit = self.limit("executionTimeout");
        if limit.zip(self.started).is_some_and(|(limit, started)| now > started + limit) {
            self.fail(TOO_LONG, now);
            return Ticked::Stopped;
        }
        if patience.is_none_or(|patience| now <= self.heard_of + patience) {
            return Ticked::Nothing;
        }
        if self.view.retries > 0 {
            self.fail(UNANSWERED, now);
            return Ticked::Nothing;
        }
        self.view.retries += 1;
        self.view.status = Status::InQueue;
        self.view.output = None;
        Ticked::Requeued
    }

    fn fail(&mut self, error: &str, now: Instant) {
        self.view.error = Some(error.to_owned());
        self.view.output = None;
        self.end(Status::Failed, now);
    }

    /// A limit of the job's own policy, in milliseconds there.
    fn limit(&self, name: &str) -> Option<Duration> {
        self.body.get("policy")?.get(name)?.as_u64().map(Duration::from_millis)
    }
}
