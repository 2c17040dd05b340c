//! `brightrun worker`: jobs come from the platform's queue, and adapters go to its store. It is what a container runs.

use std::{env, path::PathBuf, sync::Arc};

use anyhow::Context;
use clap::Args;
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

use crate::{
    failure,
    input::FetchOptions,
    life::{Settings, Training},
    net::Network,
    runpod::{Client, ClientLimits, Endpoints, Pace, Serving},
    serve, setup,
    test_input::{self, TestInput, Tested},
    work::{Answer, Ended, Job, Show, Work},
};

/// The folders of a volume that are the worker's.
const JOBS: &str = "brightrun/jobs";
const CACHE: &str = "brightrun/cache";
/// Where RunPod mounts a network volume.
const VOLUME: &str = "/runpod-volume";
/// Where the operator says another folder.
const VOLUME_VARIABLE: &str = "BRIGHTRUN_VOLUME";
/// The folder there of jobs that come from this machine.
const LOCAL: &str = "brightrun/serve";
/// Only the platform sets it.
const QUEUE: &str = "RUNPOD_WEBHOOK_GET_JOB";

/// The command line of `brightrun worker`.
#[derive(Args)]
pub(crate) struct Options {
    /// Where jobs, checkpoints and tokenised datasets are kept; on RunPod the network volume, so that a job goes on at
    /// another worker [default: BRIGHTRUN_VOLUME of the environment, or /runpod-volume].
    #[arg(long, value_name = "DIR")]
    volume: Option<PathBuf>,
    #[command(flatten)]
    fetching: FetchOptions,
    #[command(flatten)]
    sdk: SdkFlags,
}

/// What a worker of the official SDK's takes on its command line.
#[derive(Debug, Args)]
#[command(next_help_heading = "As in the official SDK")]
struct SdkFlags {
    /// Serves jobs over HTTP, as brightrun serve does.
    #[arg(long = "rp_serve_api")]
    serve_api: bool,
    /// The port for that.
    #[arg(long = "rp_api_port", value_name = "PORT")]
    api_port: Option<u16>,
    /// The address for that.
    #[arg(long = "rp_api_host", value_name = "HOST")]
    api_host: Option<String>,
    /// Runs one job without a queue, prints its result and ends: a file, or JSON, with "input". Outside the platform a file
    /// test_input.json of this folder is run.
    #[arg(long = "test_input", alias = "test-input", value_name = "FILE|JSON")]
    test_input: Option<String>,
    /// How much is logged: TRACE, DEBUG, INFO, WARN or ERROR.
    #[arg(long = "rp_log_level", value_name = "LEVEL")]
    log_level: Option<LevelFilter>,
}

/// How a worker ended.
pub(crate) enum Outcome {
    /// One job was run.
    Tested(Tested),
    /// It was told to go.
    Gone,
    /// It cannot work; a job has been told why, if there was one.
    Broken(String),
}

// === impl Options ===

impl Options {
    /// How much is to be logged, where the command line says so.
    pub(crate) fn log_level(&self) -> Option<LevelFilter> {
        self.sdk.log_level
    }

    /// Where jobs are kept, where that is said.
    fn volume(&self) -> Option<PathBuf> {
        self.volume.clone().or_else(|| env::var(VOLUME_VARIABLE).ok().map(PathBuf::from))
    }

    /// The same for jobs that come from this machine.
    fn local(&self) -> PathBuf {
        self.volume().map_or_else(|| serve::DATA.into(), |volume| volume.join(LOCAL))
    }
}

/// Works until a signal, or does what the SDK's flags say. Their order is the SDK's own.
pub(crate) fn work(options: &Options) -> Outcome {
    let sdk = &options.sdk;
    if sdk.serve_api {
        let (data, fetching) = (options.local(), options.fetching.clone());
        let serving = serve::Options::of_worker(data, sdk.api_host.clone(), sdk.api_port, fetching);
        return match serve::serve(&serving) {
            serve::Outcome::Broken(why) => Outcome::Broken(why),
            serve::Outcome::Tested(tested) => Outcome::Tested(tested),
            serve::Outcome::Gone => Outcome::Gone,
        };
    }
    let tested = match test_input(options) {
        Ok(None) => return in_runtime(options),
        Ok(Some(input)) => test(options, input),
        Err(error) => Err(error),
    };
    tested.map_or_else(|error| Outcome::Broken(failure::told(&error)), Outcome::Tested)
}

/// The job to run in place of those of the platform.
fn test_input(options: &Options) -> anyhow::Result<Option<TestInput>> {
    if let Some(text) = &options.sdk.test_input {
        return TestInput::read(text).map(Some);
    }
    if env::var_os(QUEUE).is_some() { Ok(None) } else { TestInput::usual() }
}

fn test(options: &Options, input: TestInput) -> anyhow::Result<Tested> {
    let variable = |name: &str| env::var(name).ok();
    let training = serve::training(&options.local(), options.fetching.of_strangers()?, variable)?;
    test_input::run(input, Training::new(training))
}

fn in_runtime(options: &Options) -> Outcome {
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
            "{QUEUE} is not set, so this is no worker of the platform's, and there is no {} to run; to train on this machine use \
             brightrun train, and brightrun serve for jobs over HTTP",
            test_input::FILE
        );
    };
    let name = endpoints.worker.clone();
    let network = Network { extra_root_certificates: options.fetching.root_certificates()?, ..Network::default() };
    let client = Client::new(endpoints, network, ClientLimits::default()).map_err(anyhow::Error::msg)?;
    let (client, leave) = (Arc::new(client), CancellationToken::new());
    setup::listen(leave.clone())?;
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
    let volume = std::path::absolute(options.volume().unwrap_or_else(|| VOLUME.into()))?;
    anyhow::ensure!(
        volume.is_dir(),
        "there is no folder {}; attach a network volume to the endpoint, or name another folder with {VOLUME_VARIABLE}",
        volume.display()
    );
    let (jobs, cache) = (volume.join(JOBS), volume.join(CACHE));
    for folder in [&jobs, &cache] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    setup::training(jobs, cache, options.fetching.of_strangers()?, worker, variable)
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
