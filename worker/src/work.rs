//! A job and what becomes of it, whoever brought it: RunPod's queue or an HTTP request to this machine.

use std::{
    fmt,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::redacted::Redacted;

/// Longest name of a job that is accepted; RunPod's have about 40 letters.
pub(crate) const MAX_ID_BYTES: usize = 256;

/// A job as it was handed over. What is in it is not checked yet.
#[derive(Clone, PartialEq)]
pub struct Job {
    /// Its name at whoever brought it.
    pub id: String,
    /// What is asked for; `{}` where an empty one was left out.
    pub input: Value,
    /// Time limits, where the job came with any.
    pub policy: Value,
    /// How long it has waited for somebody to do it.
    pub waited: Duration,
    /// The store where its owner wants the results: RunPod's `s3Config`, with its keys.
    pub store: Option<Redacted<Value>>,
}

/// What is done with a job.
pub trait Work: Send + Sync + 'static {
    /// Carries a job out. `stop` ends when nobody wants it any more, `leave` when this process is to go.
    fn carry_out(
        &self,
        job: Job,
        show: Show,
        stop: CancellationToken,
        leave: CancellationToken,
    ) -> impl Future<Output = Ended> + Send;
}

impl<W: Work> Work for Arc<W> {
    fn carry_out(
        &self,
        job: Job,
        show: Show,
        stop: CancellationToken,
        leave: CancellationToken,
    ) -> impl Future<Output = Ended> + Send {
        (**self).carry_out(job, show, stop, leave)
    }
}

/// Shows how far a job is.
#[derive(Clone)]
pub struct Show(Arc<dyn Fn(Value) + Send + Sync>);

/// How a job ended here.
#[derive(Debug)]
pub enum Ended {
    /// With this answer.
    Answered(Answer),
    /// It was stopped from outside, and nobody wants to hear anything.
    Stopped,
    /// It is not over, and goes on elsewhere or later, since nobody answers.
    HandedBack,
}

/// What a job's client hears in the end. A job has failed only where there is an error.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Answer {
    /// What came out of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Value>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The platform is to replace this worker by a fresh one.
    #[serde(rename = "stopPod", skip_serializing_if = "std::ops::Not::not")]
    pub refresh: bool,
}

// === impl Job ===

impl Job {
    /// A job of an object with `id` and `input`, as RunPod's queue and its clients write them; nothing where nobody could
    /// answer it, because it has no name.
    pub fn read(value: Value) -> Option<Self> {
        let Value::Object(mut fields) = value else { return None };
        let id = match fields.remove("id") {
            Some(Value::String(id)) => id,
            Some(Value::Number(number)) => number.to_string(),
            _ => return None,
        };
        let waited = fields.get("delayTime").and_then(Value::as_u64).unwrap_or_default();
        let mut there = |name: &str| fields.remove(name).filter(|value| !value.is_null());
        let usable = (1..=MAX_ID_BYTES).contains(&id.len()) && !id.chars().any(char::is_control);
        usable.then_some(Self {
            id,
            input: there("input").unwrap_or(Value::Object(Map::new())),
            policy: there("policy").unwrap_or(Value::Null),
            waited: Duration::from_millis(waited),
            store: there("s3Config").map(Redacted::hidden),
        })
    }

    /// What its owner calls it: the input's `job_id`, or what it is called where it came from.
    pub fn name(&self) -> &str {
        self.input.get("job_id").and_then(Value::as_str).unwrap_or(&self.id)
    }
}

/// Inputs hold signed links.
impl fmt::Debug for Job {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Job({})", self.id)
    }
}

// === impl Answer ===

impl Answer {
    /// The answer to a job that brought its work down, in the form of the platform's own workers.
    pub(crate) fn fault(hostname: &str, worker: &str) -> Self {
        let report = json!({
            "error_type": "panic",
            "error_message": "The worker has a fault, and the job ended with it. Send it again; if it ends so again, tell the operator.",
            "error_traceback": "",
            "hostname": hostname,
            "worker_id": worker,
            "runpod_version": env!("CARGO_PKG_VERSION"),
        });
        // Nobody knows what it has left behind.
        Self { error: Some(report.to_string()), refresh: true, output: None }
    }
}

/// What comes out of a future; nothing where it panics.
pub(crate) async fn guarded<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    })
    .await
}

// === impl Show ===

impl Show {
    /// What is to be shown goes to `tell`, which must not wait.
    pub fn new(tell: impl Fn(Value) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// Shows it. The latest counts.
    pub fn progress(&self, output: Value) {
        (self.0)(output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_that_was_left_out_is_an_empty_one() {
        for value in [json!({"id": "a"}), json!({"id": "a", "input": null}), json!({"id": "a", "input": {}})] {
            assert_eq!(Job::read(value).unwrap().input, json!({}));
        }
    }

    #[test]
    fn what_nobody_could_answer_is_no_job() {
        for value in [json!({"input": {}}), json!({"id": ""}), json!({"id": "a\nb"}), json!({"id": []}), json!("a")] {
            assert_eq!(Job::read(value), None);
        }
        assert_eq!(Job::read(json!({"id": "x".repeat(MAX_ID_BYTES + 1)})), None);
    }

    #[test]
    fn what_came_beside_the_input_is_kept() {
        let job =
            Job::read(json!({ "id": "a", "delayTime": 2500, "policy": {"ttl": 1}, "s3Config": {"accessId": "x"} }));
        let job = job.unwrap();
        assert_eq!((job.waited, &job.policy), (Duration::from_millis(2500), &json!({"ttl": 1})));
        assert_eq!(job.store.unwrap().expose(), &json!({"accessId": "x"}));
        assert_eq!(Job::read(json!({"id": "a", "delayTime": "soon"})).unwrap().waited, Duration::ZERO);
    }

    #[test]
    fn what_is_asked_for_is_not_shown() {
        let input = json!({"dataset_url": "https://h/x?token=S3CR3T"});
        let job = Job::read(json!({"id": "a", "input": input, "s3Config": {"accessSecret": "S3CR3T"}})).unwrap();
        assert_eq!(format!("{job:?}"), "Job(a)");
    }
}
