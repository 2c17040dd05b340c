//! `brightrun worker`: jobs come from the platform's queue, and adapters go to its store. It is what a container runs.

use std::{env, path::PathBuf, sync::Arc};

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    failure,
    input::FetchOptions,
    life::{LeaseTimes, Models, Settings, TimeLimit, Training},
    net::Network,
    runpod::{Client, ClientLimits, Endpoints, Pace, Serving},
    storage::upload::Store,
    work::{Answer, Ended, Job, Show, Work},
};

/// The folders of a volume that are the worker's.
const JOBS: &str = "brightrun/jobs";
const CACHE: &str = "brightrun/cache";
/// Where RunPod mounts a network volume.
const VOLUME: &str = "/runpod-volume";
/// Where the operator says another folder.
const VOLUME_VARIABLE: &str = "BRIGHTRUN_VOLUME";

/// The command line of `brightrun worker`.
#[derive(Args)]
pub(crate) struct Options {
    /// Where jobs, checkpoints and tokenised datasets are kept; on RunPod the network volume, so that a job goes on at
    /// another worker [default: BRIGHTRUN_VOLUME of the environment, or /runpod-volume].
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
pub(crate) fn work(options: &Options) -> Outcome {
    let runtime = tokio::runtime::Runtime::new().map_err(anyhow::Error::from);
    match runtime.and_then(|runtime| runtime.block_on(serve(options))) {
        Ok(None) => Outcome::Gone,
        Ok(Some(why)) => Outcome::Broken(why),
        Err(error) => Outcome::Broken(failure::told(&error)),
    }
}

/// Works until a signal; the text says why it could not.
async fn serve(options: &Options) -> anyhow::Result<Option<String>> {
    let variable = |name: &str| env::var(name).ok();
    let Some(endpoints) = Endpoints::from_variables(variable)? else {
        anyhow::bail!(
            "RUNPOD_WEBHOOK_GET_JOB is not set, so this is no worker of the platform's; to train on this machine use brightrun train"
        );
    };
    let name = endpoints.worker.clone();
    let network = Network { extra_root_certificates: options.fetching.root_certificates()?, ..Network::default() };
    let client = Client::new(endpoints, network, ClientLimits::default()).map_err(anyhow::Error::msg)?;
    let (client, leave) = (Arc::new(client), CancellationToken::new());
    listen(leave.clone())?;
    match settings(options, name) {
        Ok(settings) => {
            tracing::info!("worker {} is ready for jobs", settings.worker);
            Serving::new(client, Training::new(settings), Pace::default()).run(&leave).await?;
            Ok(None)
        }
        Err(error) => {
            let why = failure::told(&error);
            tracing::error!("this worker cannot work: {why}; the next job is told so");
            let broken = Broken { why: why.clone(), leave: leave.clone() };
            Serving::new(client, broken, Pace::default()).run(&leave).await?;
            Ok(Some(why))
        }
    }
}

/// What the operator has set up, as far as it works.
fn settings(options: &Options, worker: String) -> anyhow::Result<Settings> {
    let variable = |name: &str| env::var(name).ok();
    let told = options.volume.clone().or_else(|| variable(VOLUME_VARIABLE).map(PathBuf::from));
    let volume = std::path::absolute(told.unwrap_or_else(|| VOLUME.into()))?;
    anyhow::ensure!(
        volume.is_dir(),
        "there is no folder {}; attach a network volume to the endpoint, or name another folder with {VOLUME_VARIABLE}",
        volume.display()
    );
    let (jobs, cache) = (volume.join(JOBS), volume.join(CACHE));
    for folder in [&jobs, &cache] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    Ok(Settings {
        jobs,
        cache,
        models: Models::from_variables(variable).map_err(anyhow::Error::msg)?,
        sources: options.fetching.of_strangers()?,
        store: Store::from_variables(variable).map_err(anyhow::Error::msg)?,
        worker,
        execution: TimeLimit::of_operator(variable).map_err(anyhow::Error::msg)?,
        lease: LeaseTimes::default(),
    })
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

/// Tells one job why nothing works here, and goes: the platform would otherwise start such workers again and again, and the
/// job would wait until its life ends.
struct Broken {
    why: String,
    leave: CancellationToken,
}

impl Work for Broken {
    async fn carry_out(&self, _: Job, _: Show, _: CancellationToken, _: CancellationToken) -> Ended {
        self.leave.cancel();
        let error = format!("the worker cannot work: {}; tell the operator of the endpoint", self.why);
        Ended::Answered(Answer { error: Some(error), refresh: true, output: None })
    }
}
