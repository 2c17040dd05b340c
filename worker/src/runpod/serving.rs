//! A worker at work: takes jobs one after another, shows them, stops them when it is told to, and answers each of them.

use std::{
    collections::VecDeque,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    answering::{Answering, Final, Pace},
    arrived::Arrived,
    client::{Client, Taken},
    heartbeat::heartbeat,
    held::{Held, Holding},
};
use crate::{
    log,
    net::Backoff,
    work::{self, Answer, Ended, Show, Work},
};

/// An answer without jobs that comes sooner is no long poll, and is not asked for again at once.
const SHORT_POLL: Duration = Duration::from_millis(500);
/// After such an answer, and after the first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause between two attempts to take a job.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Where the platform asks for it.
const LATER: Duration = Duration::from_secs(5);

/// A job may be on its way when this worker is to go. So long its arrival is waited for; what comes later is given to another
/// worker, since nobody here has seen it.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// A worker that is to go tries for so long to give its answer.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// A worker at work.
pub struct Serving<W> {
    client: Arc<Client>,
    held: Held,
    work: W,
    pace: Pace,
    refreshing: bool,
    side_by_side: usize,
}

// === impl Serving ===

impl<W: Work> Serving<W> {
    /// A worker that has not begun.
    pub fn new(client: Arc<Client>, work: W, pace: Pace) -> Self {
        Self { client, held: Held::default(), work, pace, refreshing: false, side_by_side: 1 }
    }

    /// The same, which asks the platform with every answer to replace it, and takes no further job then.
    pub fn refreshing(self, refreshing: bool) -> Self {
        Self { refreshing, ..self }
    }

    /// The same for so many jobs at once.
    pub fn side_by_side(self, jobs: usize) -> Self {
        Self { side_by_side: jobs.max(1), ..self }
    }

    /// Works until `leave`. The error says why it cannot begin.
    pub async fn run(&self, leave: &CancellationToken) -> std::io::Result<()> {
        let over = CancellationToken::new();
        let beating = heartbeat(self.client.clone(), self.held.clone(), over.clone())?;
        tokio::select! {
            () = self.work_off(leave) => {}
            () = self.watch_stops(&over) => {}
        }
        over.cancel();
        // A request that is on its way ends with `over`.
        let _ = tokio::task::spawn_blocking(move || beating.join()).await;
        Ok(())
    }

    /// Takes jobs until `leave`, and carries out what it has taken.
    async fn work_off(&self, leave: &CancellationToken) {
        let no_more = leave.child_token();
        let mut running = FuturesUnordered::new();
        let mut waiting = VecDeque::new();
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        while !no_more.is_cancelled() {
            while running.len() < self.side_by_side
                && let Some(job) = waiting.pop_front()
            {
                running.push(self.one(job, leave, &no_more));
            }
            let room = self.side_by_side - running.len();
            if room == 0 {
                running.next().await;
                continue;
            }
            let took = {
                let taking = pin!(self.take(room, !running.is_empty(), &no_more, &mut backoff));
                // Jobs go on while more are asked for.
                beside(taking, &mut running).await
            };
            // All are here from now on, also those that wait for others.
            waiting.extend(took.into_iter().map(|arrived| (self.held.hold(&arrived.id), arrived)));
        }
        // What is here is not dropped, and knows that it is to end.
        running.extend(waiting.into_iter().map(|job| self.one(job, leave, &no_more)));
        while running.next().await.is_some() {}
    }

    async fn one(
        &self,
        (holding, arrived): (Holding, Arrived),
        leave: &CancellationToken,
        no_more: &CancellationToken,
    ) {
        let span = log::job(&arrived.id);
        self.carry_out(arrived, &holding.stop, leave).instrument(span).await;
        if self.refreshing {
            no_more.cancel();
        }
    }

    /// Asks the platform for jobs once, and pauses where it should not be asked again at once.
    async fn take(&self, room: usize, busy: bool, no_more: &CancellationToken, backoff: &mut Backoff) -> Vec<Arrived> {
        let begin = Instant::now();
        let taken = tokio::select! {
            biased;
            taken = self.client.take(room, busy) => taken,
            () = after(no_more, ON_ITS_WAY) => return Vec::new(),
        };
        let pause = match taken {
            Taken::Jobs(jobs) if jobs.is_empty() => {
                if begin.elapsed() >= SHORT_POLL {
                    backoff.reset();
                }
                (begin.elapsed() < SHORT_POLL).then(|| backoff.pause().min(LATER))
            }
            Taken::Jobs(jobs) => {
                backoff.reset();
                return jobs;
            }
            Taken::Later(why) => {
                tracing::info!("the platform has no time: {why}");
                Some(LATER.max(backoff.pause()))
            }
            Taken::Trouble(why) => {
                let pause = backoff.pause();
                tracing::warn!("cannot ask the platform for jobs: {why}; again in {:.1} s", pause.as_secs_f64());
                Some(pause)
            }
        };
        if let Some(pause) = pause {
            no_more.run_until_cancelled(sleep(pause)).await;
        }
        Vec::new()
    }

    async fn carry_out(&self, Arrived { id, job }: Arrived, stop: &CancellationToken, leave: &CancellationToken) {
        let answering = Arc::new(Answering::begin(self.client.clone(), &id, self.pace.clone()));
        let showing = answering.clone();
        let show = Show::new(move |output| showing.progress(output));
        let work = async {
            match job {
                Ok(job) => self.work.carry_out(job, show, stop.clone(), leave.clone()).await,
                Err(why) => Ended::Answered(Answer { error: Some(why), ..Answer::default() }),
            }
        };
        let ended = work::guarded(work).await.unwrap_or_else(|| Ended::Answered(self.fault()));
        let ended = if stop.is_cancelled() { Ended::Stopped } else { ended };
        match ended {
            Ended::Answered(mut answer) => {
                answer.refresh |= self.refreshing;
                let said = tokio::select! {
                    said = answering.end(&answer) => Some(said),
                    () = after(leave, LAST_WORDS) => None,
                    () = stop.cancelled() => return tracing::info!("job {id} was stopped by the platform"),
                };
                match said {
                    Some(Final::Acknowledged) => tracing::info!("job {id} is answered"),
                    Some(Final::Refused(status)) => {
                        tracing::warn!("the platform knows job {id} no more (HTTP {status})")
                    }
                    // It is given to another worker then, which finds the result.
                    None => {
                        tracing::warn!("job {id} is not answered: the platform did not take it, and this worker goes")
                    }
                }
            }
            Ended::Stopped => {
                answering.fall_silent().await;
                tracing::info!("job {id} was stopped by the platform");
            }
            Ended::HandedBack => {
                answering.fall_silent().await;
                tracing::info!("job {id} goes on at another worker");
            }
        }
    }

    /// The answer to a job that brought this program down.
    fn fault(&self) -> Answer {
        let endpoints = self.client.endpoints();
        Answer::fault(&endpoints.hostname, &endpoints.worker)
    }

    /// Stops what the platform wants stopped, until `over`.
    async fn watch_stops(&self, over: &CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_secs(1), LONGEST_PAUSE);
        loop {
            let begin = Instant::now();
            let pause = match self.client.stops(over).await {
                // Nothing can be stopped here; whoever waits for this waits for ever.
                None => return over.cancelled().await,
                Some(Ok(ids)) => {
                    backoff.reset();
                    self.held.stop(&ids);
                    (begin.elapsed() < SHORT_POLL).then_some(Duration::from_secs(1))
                }
                Some(Err(why)) => {
                    tracing::debug!("cannot ask the platform what to stop: {why}");
                    Some(backoff.pause())
                }
            };
            if over.is_cancelled() {
                return;
            }
            if let Some(pause) = pause {
                over.run_until_cancelled(sleep(pause)).await;
            }
        }
    }
}

/// So long after `leave`.
async fn after(leave: &CancellationToken, time: Duration) {
    leave.cancelled().await;
    sleep(time).await;
}

/// What `first` gives, while the others go on.
async fn beside<T>(mut first: Pin<&mut impl Future<Output = T>>, others: &mut FuturesUnordered<impl Future>) -> T {
    loop {
        tokio::select! {
            biased;
            done = &mut first => return done,
            Some(_) = others.next() => {}
        }
    }
}
