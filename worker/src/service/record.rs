//! What is known of a job at any moment, without what is large.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{store::Answered, stream::Stream};

/// Where a job is, in RunPod's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Status {
    InQueue,
    InProgress,
    Completed,
    Failed,
    Cancelled,
}

/// All of them, in the order of a job's life.
pub(super) const STATUSES: [Status; 5] =
    [Status::InQueue, Status::InProgress, Status::Completed, Status::Failed, Status::Cancelled];

/// What is written of a job beside its input and its output. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Facts {
    /// Its place in the queue: lower ones come first.
    pub(super) place: i64,
    pub(super) status: Status,
    pub(super) submitted: i64,
    /// When it came into the queue the last time.
    pub(super) queued: i64,
    pub(super) started: Option<i64>,
    pub(super) ended: Option<i64>,
    /// How often it was sent again, or began again because the program ended under it.
    pub(super) retries: u32,
    /// How often the program ended under it.
    pub(super) broken: u32,
    /// Bytes of its input.
    pub(super) bytes: i64,
    pub(super) policy: Policy,
}

/// A job's limits, in milliseconds, as they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Policy {
    pub(super) execution: Option<i64>,
    pub(super) ttl: Option<i64>,
}

/// A job as the server has it in memory.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) facts: Facts,
    /// How far it is.
    pub(super) latest: Option<Arc<Value>>,
    pub(super) stream: Stream,
    /// What came out of it, where that was a moment ago and is not large.
    pub(super) answer: Option<Answered>,
    /// Ends the work on it.
    pub(super) stop: CancellationToken,
    /// Whoever waits for something new about it.
    pub(super) changed: watch::Sender<()>,
}

/// Milliseconds since 1970. A clock before that is not set.
pub(super) fn now() -> i64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

// === impl Status ===

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::InQueue => "IN_QUEUE",
            Self::InProgress => "IN_PROGRESS",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }

    pub(super) fn of_name(name: &str) -> Option<Self> {
        STATUSES.into_iter().find(|status| status.name() == name)
    }

    /// Nothing more happens to it by itself.
    pub(super) fn is_over(self) -> bool {
        !matches!(self, Self::InQueue | Self::InProgress)
    }
}

// === impl Facts ===

impl Facts {
    /// When it is deleted unless it is over.
    pub(super) fn expires(&self) -> Option<i64> {
        self.policy.ttl.map(|ttl| self.submitted.saturating_add(ttl))
    }

    /// As `/status` tells it, without output and error.
    pub(super) fn told(&self, id: &str, worker: &str) -> Map<String, Value> {
        let mut told = Map::new();
        let mut add = |name: &str, value: Value| told.insert(name.to_owned(), value);
        if let Some(started) = self.started {
            add("delayTime", json!(started.saturating_sub(self.queued).max(0)));
            add("executionTime", json!(self.ended.unwrap_or_else(now).saturating_sub(started).max(0)));
        }
        add("id", json!(id));
        if self.retries > 0 {
            add("retries", json!(self.retries));
        }
        add("status", json!(self.status.name()));
        if self.started.is_some() {
            add("workerId", json!(worker));
        }
        told
    }
}

// === impl Policy ===

impl Policy {
    /// Of a request's `policy`; what is no number has no effect, as at RunPod.
    pub(super) fn read(policy: &Value) -> Self {
        let number = |name: &str| policy.get(name).and_then(Value::as_i64).filter(|time| *time >= 0);
        Self { execution: number("executionTimeout"), ttl: number("ttl").map(|ttl| clamped(ttl, SHORTEST_LIFE)) }
    }

    /// As a job carries it.
    pub(super) fn told(&self) -> Value {
        let mut told = Map::new();
        told.extend(self.execution.map(|time| ("executionTimeout".to_owned(), json!(time))));
        told.extend(self.ttl.map(|time| ("ttl".to_owned(), json!(time))));
        Value::Object(told)
    }

    /// How long a job may run.
    pub(super) fn execution(&self, operators: Option<Duration>) -> Option<Duration> {
        let own = self.execution.map(|time| clamped(time, SHORTEST_EXECUTION));
        own.map(|time| Duration::from_millis(time.unsigned_abs())).or(operators)
    }
}

/// RunPod's bounds of both limits, in milliseconds.
const SHORTEST_EXECUTION: i64 = 5_000;
const SHORTEST_LIFE: i64 = 10_000;
const LONGEST: i64 = 7 * 24 * 3600 * 1000;

fn clamped(time: i64, shortest: i64) -> i64 {
    time.clamp(shortest, LONGEST)
}

// === impl Record ===

impl Record {
    pub(super) fn new(facts: Facts) -> Self {
        let (changed, _) = watch::channel(());
        Self { facts, latest: None, stream: Stream::default(), answer: None, stop: CancellationToken::new(), changed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            place: 0,
            status: Status::Completed,
            submitted: 1000,
            queued: 5000,
            started: Some(5250),
            ended: Some(9000),
            retries: 1,
            broken: 0,
            bytes: 2,
            policy: Policy::default(),
        }
    }

    #[test]
    fn a_job_is_told_in_the_platforms_words() {
        let expected = json!({
            "delayTime": 250, "executionTime": 3750, "id": "a", "retries": 1, "status": "COMPLETED", "workerId": "w",
        });
        assert_eq!(Value::Object(facts().told("a", "w")), expected);
        let waiting = Facts { status: Status::InQueue, started: None, ended: None, retries: 0, ..facts() };
        assert_eq!(Value::Object(waiting.told("a", "w")), json!({ "id": "a", "status": "IN_QUEUE" }));
    }

    #[test]
    fn a_clock_that_went_back_gives_no_negative_times() {
        let facts = Facts { queued: 9000, ended: Some(1), ..facts() };
        let told = facts.told("a", "w");
        assert_eq!((&told["delayTime"], &told["executionTime"]), (&json!(0), &json!(0)));
    }

    #[test]
    fn limits_are_those_of_the_platform() {
        let policy = Policy::read(&json!({ "executionTimeout": 1, "ttl": 1, "lowPriority": true }));
        assert_eq!(policy.execution(None), Some(Duration::from_secs(5)));
        assert_eq!(policy.told(), json!({ "executionTimeout": 1, "ttl": 10_000 }));
        let odd = Policy::read(&json!({ "executionTimeout": "soon", "ttl": -1 }));
        assert_eq!(odd, Policy::default());
        assert_eq!(odd.execution(Some(Duration::from_secs(60))), Some(Duration::from_secs(60)));
        assert_eq!(Policy::read(&Value::Null), Policy::default());
    }

    #[test]
    fn statuses_have_their_names() {
        for status in STATUSES {
            assert_eq!(Status::of_name(status.name()), Some(status));
        }
        assert_eq!(Status::of_name("RUNNING"), None);
    }
}
