//! `brightrun worker`: jobs come from the platform's queue, and adapters go to its store. It is what a container runs.

use std::{
    env,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::OnceCell,
};
use tokio_util::sync::CancellationToken;

use crate::{
    failure,
    input::FetchOptions,
    life::{RUNPODS_LIFE, Settings, Training},
    net::Network,
    operator::{self, Unfit},
    runpod::{Client, ClientLimits, Endpoints, Pace, Serving},
    telling::Telling,
    work::{Answer, Ended, Job, Show, Work},
};

/// Where RunPod mounts a network volume: for endpoints, and for machines of one's own.
const VOLUMES: [&str; 2] = ["/runpod-volume", "/workspace"];
/// Where the operator says another folder.
const VOLUME_VARIABLE: &str = "BRIGHTRUN_VOLUME";
/// So long those are waited for, at the end, who are told of jobs besides the queue.
const LAST_NEWS: Duration = Duration::from_secs(20);
/// Whether the platform is to replace this worker after every job.
const REFRESH: &str = "BRIGHTRUN_REFRESH_WORKER";
/// How many jobs are done at once.
const CONCURRENCY: &str = "BRIGHTRUN_CONCURRENCY";
const MOST_AT_ONCE: usize = 16;

/// The command line of `brightrun worker`.
#[derive(Args)]
pub(crate) struct Options {
    /// Where jobs, checkpoints and tokenised datasets are kept; on RunPod the network volume, so that a job goes on at
    /// another worker [default: BRIGHTRUN_VOLUME of the environment, or /runpod-volume, or /workspace].
    #[arg(long, value_name = "DIR")]
    volume: Option<PathBuf>,
    #[command(flatten)]
    fetching: FetchOptions,
}

/// How a worker ended.
pub(crate) enum Outcome {
    /// It was told to go.
    Gone,
    /// It cannot work; a job has been told why, if there was one.
    Broken(String),
}

/// Works until a signal.
pub(crate) fn work(options: Options) -> Outcome {
    let runtime = tokio::runtime::Runtime::new().map_err(anyhow::Error::from);
    match runtime.and_then(|runtime| runtime.block_on(serve(options))) {
        Ok(None) => Outcome::Gone,
        Ok(Some(why)) => Outcome::Broken(why),
        Err(error) => Outcome::Broken(failure::told(&error)),
    }
}

/// Works until a signal; the text says why it could not.
async fn serve(options: Options) -> anyhow::Result<Option<String>> {
    let variable = |name: &str| env::var(name).ok();
    let Some(endpoints) = Endpoints::from_variables(variable)? else {
        anyhow::bail!(
            "RUNPOD_WEBHOOK_GET_JOB is not set, so this is no worker of the platform's; to train on this machine use brightrun train"
        );
    };
    let refresh = operator::switch(variable, REFRESH).map_err(anyhow::Error::msg)?;
    let side_by_side =
        operator::number(variable, CONCURRENCY, 1..=MOST_AT_ONCE).map_err(anyhow::Error::msg)?.unwrap_or(1);
    let network = Network { extra_root_certificates: options.fetching.root_certificates()?, ..Network::default() };
    let worker = endpoints.worker.clone();
    let client = Client::new(endpoints, network, ClientLimits::default()).map_err(anyhow::Error::msg)?;
    let (client, leave) = (Arc::new(client), CancellationToken::new());
    listen(leave.clone())?;
    let named = || variable(VOLUME_VARIABLE).filter(|text| !text.trim().is_empty()).map(PathBuf::from);
    let able = Arc::new(Able {
        volume: options.volume.or_else(named),
        fetching: options.fetching,
        worker,
        training: OnceCell::new(),
        telling: OnceLock::new(),
        unfit: Mutex::default(),
        leave: leave.clone(),
    });
    match able.training().await {
        Ok(_) => tracing::info!("worker {} is ready for jobs", able.worker),
        Err(unfit) => {
            tracing::error!("this worker cannot work: {unfit}; it looks again when a job comes, and tells it")
        }
    }
    let serving = Serving::new(client.clone(), able.clone(), Pace::default());
    serving.refreshing(refresh).side_by_side(side_by_side).run(&leave).await?;
    if let Some(telling) = able.telling.get() {
        telling.settle(LAST_NEWS).await;
    }
    let unfit = able.unfit.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(unfit) = &unfit {
        client.unhealthy(unfit.check, &unfit.why).await;
    }
    Ok(unfit.map(|unfit| unfit.why))
}

/// SIGTERM and Ctrl-C: no further job, and what is at hand goes on elsewhere.
fn listen(leave: CancellationToken) -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("this worker goes: it takes no further job");
        leave.cancel();
    });
    Ok(())
}

/// Trains, where everything is there that a job needs. Where it is not, one job is told why and the worker goes: otherwise
/// the platform would start such workers again and again, and the job would wait until its life ends.
struct Able {
    /// The folder that the operator names.
    volume: Option<PathBuf>,
    fetching: FetchOptions,
    worker: String,
    training: OnceCell<Training>,
    /// Whose last messages are waited for.
    telling: OnceLock<Telling>,
    /// What a job was told.
    unfit: Mutex<Option<Unfit>>,
    leave: CancellationToken,
}

// === impl Able ===

impl Able {
    /// What trains; looked at anew until everything is there.
    async fn training(&self) -> Result<&Training, Unfit> {
        let prepare = || async {
            // Looked for each time: it may be mounted late.
            let usual = || VOLUMES.map(PathBuf::from).into_iter().find(|path| path.is_dir());
            let volume = self.volume.clone().or_else(usual).unwrap_or_else(|| VOLUMES[0].into());
            let settings = operator::settings(&volume, &self.fetching, self.worker.clone())?;
            let settings = Settings { life: Some(RUNPODS_LIFE), ..settings };
            operator::check(&settings).await?;
            settings.store.warning().iter().for_each(|warning| tracing::warn!("{warning}"));
            let _ = self.telling.set(settings.telling.clone());
            Ok(Training::new(settings))
        };
        self.training.get_or_try_init(prepare).await
    }

    /// Tells everybody besides the queue, as far as that is set up.
    fn tell(&self, job: &Job, ended: &Ended) {
        let sources = self.fetching.of_strangers().map_err(|error| failure::told(&error));
        let telling = sources.and_then(|sources| Telling::from_variables(|name| env::var(name).ok(), &sources));
        if let Ok(telling) = telling {
            self.telling.get_or_init(|| telling).begin(job, job.name()).ended(ended);
        }
    }
}

impl Work for Able {
    async fn carry_out(&self, job: Job, show: Show, stop: CancellationToken, leave: CancellationToken) -> Ended {
        match self.training().await {
            Ok(training) => training.carry_out(job, show, stop, leave).await,
            Err(unfit) => {
                self.leave.cancel();
                let error = format!("the worker cannot work: {unfit}; tell the operator of the endpoint");
                *self.unfit.lock().unwrap_or_else(PoisonError::into_inner) = Some(unfit);
                let ended = Ended::Answered(Answer { error: Some(error), refresh: true, output: None });
                self.tell(&job, &ended);
                ended
            }
        }
    }
}
