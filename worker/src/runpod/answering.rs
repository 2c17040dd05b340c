//! What is said of one job, in order: progress, of which only the latest counts, and the end, which is last and arrives.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::client::{Acknowledged, Client};
use crate::{net::Backoff, newest::Newest, work::Answer};

/// Largest answer that is sent: the platform drops results that are larger without a word.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// So often a job's end is told to a platform that does not know the job: it may be wrong for a moment, and a result is worth
/// more than the seconds that this takes.
const MOST_UNKNOWN: u32 = 5;

/// How often something is said.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Between two messages of progress.
    pub progress: Duration,
    /// After the first failure to say the end; doubled each time.
    pub first_pause: Duration,
    /// The longest such pause.
    pub longest_pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            progress: Duration::from_secs(1),
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(30),
        }
    }
}

/// How saying the end ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Final {
    /// The platform has it.
    Acknowledged,
    /// The platform does not know the job any more, or wants neither the answer nor a short error in its place.
    Refused(u16),
}

/// Says what there is to say of one job.
pub(super) struct Answering {
    client: Arc<Client>,
    job: String,
    pace: Pace,
    shown: Newest<Value>,
}

// === impl Answering ===

impl Answering {
    /// Begins; nothing is said yet.
    pub(super) fn begin(client: Arc<Client>, job: &str, pace: Pace) -> Self {
        let (telling, id, every) = (client.clone(), Arc::<str>::from(job), pace.progress);
        let shown = Newest::begin(
            move |_, _| every,
            move |output| {
                let (client, job) = (telling.clone(), id.clone());
                async move { tell(&client, &job, output).await }
            },
        );
        Self { client, job: job.to_owned(), pace, shown }
    }

    /// Shows how far the job is. It never waits; what was to be shown before and was not sent yet is forgotten.
    pub(super) fn progress(&self, output: Value) {
        self.shown.put(output);
    }

    /// Says how the job ended. Progress that is on its way arrives before, or never. It is said again until the platform has
    /// it, or nobody waits for that; what the platform finds wrong, or too large, is replaced by a short error.
    pub(super) async fn end(&self, answer: &Answer) -> Final {
        self.fall_silent().await;
        let mut body = Bytes::from(json!(answer).to_string());
        let mut shortened = false;
        if body.len() > MAX_ANSWER_BYTES {
            body = short(&format!(
                "its result has {} bytes, and the platform takes {MAX_ANSWER_BYTES} at most",
                body.len()
            ));
            shortened = true;
        }
        let mut backoff = Backoff::new(self.pace.first_pause, self.pace.longest_pause);
        let mut unknown = 0;
        loop {
            match self.client.answer(&self.job, body.clone()).await {
                Acknowledged::Yes => return Final::Acknowledged,
                Acknowledged::Refused(status) if shortened => return Final::Refused(status),
                Acknowledged::Refused(status) => {
                    tracing::warn!(
                        "the platform refuses the answer (HTTP {status}); a short error is sent in its place"
                    );
                    body = short(&format!("the platform refused its result with HTTP {status}"));
                    shortened = true;
                }
                Acknowledged::Unknown(status) => {
                    unknown += 1;
                    if unknown >= MOST_UNKNOWN {
                        return Final::Refused(status);
                    }
                    wait(&mut backoff, &format!("it answered HTTP {status}")).await;
                }
                Acknowledged::NotYet(why) => wait(&mut backoff, &why).await,
            }
        }
    }

    /// Says nothing more: the platform has stopped the job itself.
    pub(super) async fn fall_silent(&self) {
        self.shown.fall_silent().await;
    }
}

async fn wait(backoff: &mut Backoff, why: &str) {
    let pause = backoff.pause();
    tracing::warn!("the answer did not arrive: {why}; again in {:.1} s", pause.as_secs_f64());
    sleep(pause).await;
}

fn short(why: &str) -> Bytes {
    json!({ "error": format!("The job has ended, but {why}. Its files are where the worker left them; result.json is among them.") }).to_string().into()
}

/// Shows the platform how far the job is, once.
async fn tell(client: &Client, job: &str, output: Value) -> ControlFlow<()> {
    let body = Bytes::from(json!({ "status": "IN_PROGRESS", "output": output }).to_string());
    match client.answer(job, body).await {
        Acknowledged::Yes => {}
        Acknowledged::Refused(status) | Acknowledged::Unknown(status) => {
            tracing::debug!("progress was refused with HTTP {status}");
        }
        Acknowledged::NotYet(why) => tracing::debug!("progress did not arrive: {why}"),
    }
    ControlFlow::Continue(())
}
