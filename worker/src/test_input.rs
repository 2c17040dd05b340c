//! One job in the foreground, as the official SDK's local run does it: to see whether a job works before it is sent.

use std::{
    fs, io,
    path::Path,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    life::{Settings, Training},
    output, signals,
    telling::LAST_NEWS,
    work::{self, Answer, Ended, Job, Show, Work},
};

/// The file that is taken where none is named.
pub(crate) const FILE: &str = "test_input.json";
/// The name of a job that has none.
const NAME: &str = "local_test";
/// Larger files are no jobs.
const MAX_BYTES: u64 = 20 << 20;
/// How far it is is told so often.
const PACE: Duration = Duration::from_secs(5);

/// A job of a file or of the command line.
#[derive(Debug)]
pub(crate) struct TestInput(Job);

/// How it ended.
pub(crate) struct Tested {
    id: String,
    ended: Ended,
}

// === impl TestInput ===

impl TestInput {
    /// Of a file's name, or of JSON itself.
    pub(crate) fn read(text: &str) -> anyhow::Result<Self> {
        if text.trim_start().starts_with('{') {
            return Self::of_json(text).context("--test_input");
        }
        let path = Path::new(text);
        let size = fs::metadata(path).with_context(|| format!("cannot read {text}"))?.len();
        anyhow::ensure!(size <= MAX_BYTES, "{text} has {size} bytes, and a job has {MAX_BYTES} at most");
        Self::of_json(&fs::read_to_string(path).with_context(|| format!("cannot read {text}"))?)
            .with_context(|| text.to_owned())
    }

    /// Of the file that is taken where none is named, if it is there.
    pub(crate) fn usual() -> anyhow::Result<Option<Self>> {
        if Path::new(FILE).is_file() { Self::read(FILE).map(Some) } else { Ok(None) }
    }

    fn of_json(text: &str) -> anyhow::Result<Self> {
        let mut value: Value = serde_json::from_str(text).context("it is not JSON")?;
        let fields = value.as_object_mut().context("it must be an object: {\"input\": {…}}")?;
        anyhow::ensure!(fields.get("input").is_some_and(|input| !input.is_null()), "input is missing");
        fields.entry("id").or_insert_with(|| json!(NAME));
        Job::read(value).map(Self).context("its id must be a short text")
    }
}

/// Runs it. The error says why that cannot be tried.
pub(crate) fn run(input: TestInput, settings: Settings) -> anyhow::Result<Tested> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let leave = CancellationToken::new();
        signals::leave(leave.clone())?;
        let id = input.0.id.clone();
        tracing::info!("job {id} begins");
        let last = Mutex::new(None::<Instant>);
        let show = Show::new(move |output| {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_none_or(|last| last.elapsed() >= PACE) {
                *last = Some(Instant::now());
                tracing::info!("{output}");
            }
        });
        let telling = settings.telling.clone();
        let work = Training::new(settings);
        let ended = work::guarded(work.carry_out(input.0, show, CancellationToken::new(), leave)).await;
        telling.settle(LAST_NEWS).await;
        Ok(Tested { id, ended: ended.unwrap_or_else(|| Ended::Answered(Answer::fault("local", "local"))) })
    })
}

// === impl Tested ===

impl Tested {
    /// As `/status` would tell it.
    fn told(&self) -> Value {
        let mut told = json!({ "id": self.id });
        match &self.ended {
            Ended::Answered(answer) => {
                told["status"] = json!(if answer.error.is_some() { "FAILED" } else { "COMPLETED" });
                if let Some(output) = &answer.output {
                    told["output"] = output.clone();
                }
                if let Some(error) = &answer.error {
                    told["error"] = json!(error);
                }
            }
            Ended::Stopped | Ended::HandedBack => {
                told["status"] = json!("IN_QUEUE");
                told["error"] = json!("it was interrupted; run it again, and it goes on from its last checkpoint");
            }
        }
        told
    }

    /// Prints it. 0: the job did what it was asked for; 1: it did not.
    pub(crate) fn finish(&self) -> ExitCode {
        output::write_to(&mut io::stdout().lock(), &format!("{:#}\n", self.told()));
        if self.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Whether the job did what it was asked for.
    fn is_good(&self) -> bool {
        matches!(&self.ended, Ended::Answered(answer) if answer.error.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_read_from_a_file_or_from_the_command_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("job.json");
        fs::write(&path, r#"{"id": "mine", "input": {"a": 1}, "policy": {"ttl": 5}}"#).unwrap();
        let job = TestInput::read(path.to_str().unwrap()).unwrap().0;
        assert_eq!((job.id.as_str(), job.input, job.policy), ("mine", json!({ "a": 1 }), json!({ "ttl": 5 })));
        let job = TestInput::read(r#" {"input": {}}"#).unwrap().0;
        assert_eq!((job.id.as_str(), job.input), (NAME, json!({})));
    }

    #[test]
    fn what_is_no_job_is_named() {
        for (text, says) in [
            ("{", "not JSON"),
            ("{}", "input is missing"),
            (r#"{"input": null}"#, "missing"),
            ("nowhere.json", "nowhere.json"),
        ] {
            let error = format!("{:#}", TestInput::read(text).unwrap_err());
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn its_end_is_told_as_a_status() {
        let ended = |ended| Tested { id: "a".into(), ended };
        let good = ended(Ended::Answered(Answer { output: Some(json!(5)), ..Answer::default() }));
        assert_eq!((good.told(), good.is_good()), (json!({ "id": "a", "status": "COMPLETED", "output": 5 }), true));
        let bad = ended(Ended::Answered(Answer { error: Some("no".into()), ..Answer::default() }));
        assert_eq!((bad.told(), bad.is_good()), (json!({ "id": "a", "status": "FAILED", "error": "no" }), false));
        assert!(!ended(Ended::HandedBack).is_good());
    }
}
