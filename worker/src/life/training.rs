//! What this worker does with a job: it is read, claimed, run and delivered, or goes on where it was left.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    ending,
    lease::LeaseTimes,
    limits::TimeLimit,
    models::Models,
    states::{Begun, Ending, Received},
    task::{Reason, Task},
};
use crate::{
    computer::Wanted,
    storage::{SourcePolicy, upload::Store},
    telling::Telling,
    work::{Answer, Ended, Job, Show, Work},
};

/// What the operator has set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the folders of jobs are, on the volume.
    pub jobs: PathBuf,
    /// Where tokenised datasets are kept.
    pub cache: PathBuf,
    /// Where base models are.
    pub models: Models,
    /// What a dataset's address may be.
    pub sources: SourcePolicy,
    /// Where results go.
    pub store: Store,
    /// Name of this worker.
    pub worker: String,
    /// The endpoint's limit, where the operator says it.
    pub execution: Option<Duration>,
    /// How long a job lives from its arrival in the queue on, where neither the job nor the operator says it.
    pub life: Option<Duration>,
    /// Who is told of jobs besides the queue.
    pub telling: Telling,
    /// How jobs are kept from others.
    pub lease: LeaseTimes,
    /// So long a short job's last numbers stay to be seen before it ends.
    pub hold: Duration,
    /// What jobs are computed on.
    pub device: Wanted,
    /// What an hour of this machine costs, where that is known and the job does not say it.
    pub usd_per_hour: Option<f64>,
}

/// Trains.
#[derive(Debug, Clone)]
pub struct Training {
    settings: Arc<Settings>,
}

// === impl Training ===

impl Training {
    /// With what the operator has set up.
    pub fn new(settings: Settings) -> Self {
        Self { settings: Arc::new(settings) }
    }
}

impl Work for Training {
    async fn carry_out(&self, job: Job, show: Show, stop: CancellationToken, leave: CancellationToken) -> Ended {
        let limit = TimeLimit::of(&job.policy, self.settings.execution, self.settings.life, job.waited);
        let name = job.name().to_owned();
        let told = self.settings.telling.begin(&job, &name);
        let task = Arc::new(Task::new(self.settings.clone(), show, told, limit));
        task.present();
        let closed = tokio::select! {
            closed = whole(task.clone(), job) => closed,
            never = task.watch(&stop, &leave) => match never {},
        };
        let failed = |why: &str| Ended::Answered(ending::failed(&name, &task.shown(), why));
        let ended = match (closed, task.reason()) {
            (Ok(answer), _) => Ended::Answered(answer),
            (_, Some(Reason::Stopped)) => Ended::Stopped,
            (_, Some(Reason::Leaving | Reason::Lost)) => Ended::HandedBack,
            (Err(Ending::BrokenOff { steps }), Some(Reason::OutOfTime | Reason::TooLong)) => {
                failed(&task.out_of_time(Some(steps)))
            }
            (Err(Ending::Failed(_)), Some(Reason::OutOfTime | Reason::TooLong)) => failed(&task.out_of_time(None)),
            (Err(Ending::BrokenOff { .. }), None) => {
                failed("the job was broken off for no known reason; send it again")
            }
            (Err(Ending::Failed(why)), None) => failed(&why),
        };
        task.told.ended(&ended);
        ended
    }
}

/// A job from its beginning to its answer.
async fn whole(task: Arc<Task>, job: Job) -> Result<Answer, Ending> {
    let understood = Received { task: task.clone(), job }.understand().await?;
    match understood.claim().await? {
        Begun::Done(finished) => finished.deliver().await,
        Begun::ToDo(claimed) => {
            let answer = claimed.fetch().await?.run().await?.deliver().await?;
            task.hold().await;
            Ok(answer)
        }
    }
}
