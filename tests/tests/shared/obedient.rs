//! A kind of job that does as its input says.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use brightrun_worker::work::{Answer, Ended, Job, Show, Work};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// A kind of job that does as its input says.
#[derive(Clone, Default)]
pub(crate) struct Obedient {
    pub(crate) begun: Arc<AtomicUsize>,
}

impl Work for Obedient {
    async fn carry_out(&self, job: Job, show: Show, stop: CancellationToken, leave: CancellationToken) -> Ended {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let number = |name: &str| job.input.get(name).and_then(Value::as_u64).unwrap_or_default();
        for step in 1..=number("steps") {
            show.progress(json!({ "step": step }));
            tokio::select! {
                () = sleep(Duration::from_millis(number("pause").max(1))) => {}
                () = stop.cancelled(), if number("deaf") == 0 => return Ended::Stopped,
                () = leave.cancelled(), if job.input.get("resumable").is_some() => return Ended::HandedBack,
            }
        }
        assert!(job.input.get("panic").is_none(), "as it was told");
        let error = job.input.get("error").and_then(Value::as_str).map(str::to_owned);
        let output = match number("bytes") as usize {
            0 => echo(&job),
            bytes => json!("x".repeat(bytes)),
        };
        Ended::Answered(Answer { output: Some(output), error, refresh: job.input.get("refresh").is_some() })
    }
}

/// What it was given, as far as it was given anything.
fn echo(job: &Job) -> Value {
    let mut output = json!({ "echo": job.input });
    if job.policy.as_object().is_some_and(|policy| !policy.is_empty()) {
        output["policy"] = job.policy.clone();
    }
    if let Some(store) = &job.store {
        output["store"] = store.expose().clone();
    }
    output
}
