//! One job after another, in the order of the queue.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    metrics::Metrics,
    queue::{Begun, End, Queue},
    record::Status,
    store::{Answered, StoreError},
    webhook::Webhooks,
};
use crate::{
    log,
    net::Backoff,
    work::{self, Answer, Ended, Show, Work},
};

/// What RunPod says of a job whose time is over.
const OUT_OF_TIME: &str = "executionTimeout exceeded";
/// Largest result that is kept; those of training have some 20 kB.
const MAX_OUTPUT_BYTES: usize = 16 << 20;
/// A job that is given back although nobody goes is begun again after so long.
const GIVEN_BACK: Duration = Duration::from_secs(5);
/// What may expire is looked at so often.
const LOOK: Duration = Duration::from_secs(1);

/// Carries out the jobs of a queue.
pub(super) struct Running<W> {
    pub(super) work: W,
    pub(super) queue: Arc<Queue>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) webhooks: Arc<Webhooks>,
    pub(super) worker: String,
}

// === impl Running ===

impl<W: Work> Running<W> {
    /// Works until `leave`; the job at hand is over or back in the queue then.
    pub(super) async fn run(&self, leave: &CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        while !leave.is_cancelled() {
            let begun = match self.at_the_disk(|queue| queue.begin()).await {
                Ok(Some(begun)) => begun,
                Ok(None) => {
                    leave.run_until_cancelled(self.queue.news.notified()).await;
                    continue;
                }
                Err(error) => {
                    tracing::error!("the next job cannot be begun: {error}");
                    leave.run_until_cancelled(sleep(backoff.pause())).await;
                    continue;
                }
            };
            backoff.reset();
            self.metrics.began(begun.waited);
            let span = log::job(&begun.job.id);
            // In a box: what a job is made of is much, and nobody has to know its type.
            Box::pin(self.one(begun, leave)).instrument(span).await;
        }
    }

    async fn one(&self, begun: Begun, leave: &CancellationToken) {
        let id = begun.job.id.clone();
        tracing::info!("job {id} begins");
        match self.carry_out(begun, leave).await {
            Some(end) => self.keep(&id, end, leave).await,
            None => self.give_back(&id, leave).await,
        }
    }

    /// How a job ended; nothing where it is not over.
    async fn carry_out(&self, begun: Begun, leave: &CancellationToken) -> Option<End> {
        let Begun { job, stop, limit, .. } = begun;
        let (queue, id) = (self.queue.clone(), job.id.clone());
        let show = Show::new(move |output| queue.show(&id, output));
        let id = job.id.clone();
        let end = limit.map(|limit| Instant::now() + limit);
        let mut working = std::pin::pin!(work::guarded(self.work.carry_out(job, show, stop.clone(), leave.clone())));
        let ended = tokio::select! {
            ended = &mut working => ended,
            () = until(end) => {
                // Its client hears of it now, however long the work takes to end.
                self.keep(&id, failed(OUT_OF_TIME), leave).await;
                stop.cancel();
                working.await
            }
        };
        match ended {
            Some(Ended::Answered(answer)) => Some(answered(answer)),
            Some(Ended::HandedBack) => None,
            // Whoever stopped it has said what it is now; if nobody did, the work has.
            Some(Ended::Stopped) => Some(failed("the job was stopped; send it again")),
            None => {
                tracing::error!("job {id} brought its work down");
                Some(answered(Answer::fault(&self.worker, &self.worker)))
            }
        }
    }

    /// Writes down how a job ended, however long the disk takes; whoever leaves may find the result in the job's folder.
    async fn keep(&self, id: &str, end: End, leave: &CancellationToken) {
        let status = end.status;
        let end = Arc::new(end);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        loop {
            let (name, kept) = (id.to_owned(), end.clone());
            match self.at_the_disk(move |queue| queue.end(&name, &kept)).await {
                Ok(None) => return,
                Ok(Some(to_tell)) => {
                    tracing::info!("job {id} is {}", status.name());
                    self.metrics.ended(status);
                    if to_tell {
                        self.webhooks.tell(id.to_owned());
                    }
                    return;
                }
                Err(error) => tracing::error!("job {id} ended, and that cannot be written down: {error}"),
            }
            if leave.is_cancelled() {
                return;
            }
            leave.run_until_cancelled(sleep(backoff.pause())).await;
        }
    }

    async fn give_back(&self, id: &str, leave: &CancellationToken) {
        let name = id.to_owned();
        // If this fails, it is found to be under way when the program begins again.
        match self.at_the_disk(move |queue| queue.put_back(&name)).await {
            Ok(()) => tracing::info!("job {id} waits; it goes on later"),
            Err(error) => tracing::error!("job {id} cannot be put back: {error}"),
        }
        leave.run_until_cancelled(sleep(GIVEN_BACK)).await;
    }

    /// Forgets what has expired, for ever.
    pub(super) async fn expire(&self) {
        loop {
            sleep(LOOK).await;
            if let Err(error) = self.at_the_disk(Queue::expire).await {
                tracing::warn!("old jobs are not forgotten: {error}");
            }
        }
    }

    async fn at_the_disk<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Queue) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let queue = self.queue.clone();
        match spawn_blocking(move || act(&queue)).await {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

fn failed(error: &str) -> End {
    End { status: Status::Failed, answer: Answered { output: None, error: Some(error.to_owned()) } }
}

fn answered(answer: Answer) -> End {
    let bytes = answer.output.as_ref().map_or(0, |output| output.to_string().len());
    if bytes > MAX_OUTPUT_BYTES {
        return failed(&format!(
            "the job has ended, but its result has {bytes} bytes, and {MAX_OUTPUT_BYTES} are kept; its files are in its folder"
        ));
    }
    let status = if answer.error.is_some() { Status::Failed } else { Status::Completed };
    End { status, answer: Answered { output: answer.output, error: answer.error } }
}
