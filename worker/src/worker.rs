//! `brightrun worker`: jobs come from the platform's queue, and adapters go to its store. It is what a container runs.

use std::{
    env,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use clap::Args;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

use crate::{
    failure,
    input::FetchOptions,
    life::{RUNPODS_LIFE, Settings, Training},
    net::Network,
    operator::{self, Unfit},
    runpod::{Client, ClientLimits, Endpoints, Pace, Serving},
    serve, signals,
    telling::{LAST_NEWS, Telling},
    test_input::{self, TestInput, Tested},
    work::{Answer, Ended, Job, Show, Work},
};

/// Where RunPod mounts a network volume: for endpoints, and for machines of one's own.
const VOLUMES: [&str; 2] = ["/runpod-volume", "/workspace"];
/// Where the operator says another folder.
const VOLUME_VARIABLE: &str = "BRIGHTRUN_VOLUME";
/// The folder there of jobs that come from this machine.
const LOCAL: &str = "brightrun/serve";
/// Only the platform sets it.
const QUEUE: &str = "RUNPOD_WEBHOOK_GET_JOB";
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
    /// No effect: one job at a time is done here.
    #[arg(long = "rp_api_concurrency", value_name = "NUMBER", hide = true)]
    api_concurrency: Option<u32>,
    /// No effect: it is Python's debugger.
    #[arg(long = "rp_debugger", hide = true)]
    debugger: bool,
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
        let named = || env::var(VOLUME_VARIABLE).ok().filter(|text| !text.trim().is_empty()).map(PathBuf::from);
        self.volume.clone().or_else(named)
    }

    /// The same for jobs that come from this machine.
    fn local(&self) -> PathBuf {
        self.volume().map_or_else(|| serve::DATA.into(), |volume| volume.join(LOCAL))
    }
}

/// Works until a signal, or does what the SDK's flags say. Their order is the SDK's own.
pub(crate) fn work(options: Options) -> Outcome {
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
    let tested = match test_input(&options) {
        Ok(None) => return in_runtime(options),
        Ok(Some(input)) => test(&options, input),
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
    test_input::run(input, training)
}

/// Works until a signal.
fn in_runtime(options: Options) -> Outcome {
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
            "{QUEUE} is not set, so this is no worker of the platform's, and there is no {} to run; to train on this machine use \
             brightrun train, and brightrun serve for jobs over HTTP",
            test_input::FILE
        );
    };
    let refresh = operator::switch(variable, REFRESH);
    let side_by_side = operator::number(variable, CONCURRENCY, 1..=MOST_AT_ONCE);
    let wrong = refresh.as_ref().err().or(side_by_side.as_ref().err()).cloned();
    let network = Network { extra_root_certificates: options.fetching.root_certificates()?, ..Network::default() };
    let worker = endpoints.worker.clone();
    let client = Client::new(endpoints, network, ClientLimits::default()).map_err(anyhow::Error::msg)?;
    let (client, leave) = (Arc::new(client), CancellationToken::new());
    signals::leave(leave.clone())?;
    let able = Arc::new(Able {
        volume: options.volume(),
        fetching: options.fetching,
        worker,
        wrong: wrong.map(|why| Unfit { check: "settings", why }),
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
    let serving = serving.refreshing(refresh.unwrap_or_default());
    serving.side_by_side(side_by_side.ok().flatten().unwrap_or(1)).run(&leave).await?;
    if let Some(telling) = able.telling.get() {
        telling.settle(LAST_NEWS).await;
    }
    let unfit = able.unfit.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(unfit) = &unfit {
        client.unhealthy(unfit.check, &unfit.why).await;
    }
    Ok(unfit.map(|unfit| unfit.why))
}

/// Trains, where everything is there that a job needs. Where it is not, one job is told why and the worker goes: otherwise
/// the platform would start such workers again and again, and the job would wait until its life ends.
struct Able {
    /// The folder that the operator names.
    volume: Option<PathBuf>,
    fetching: FetchOptions,
    worker: String,
    /// What is wrong with the worker's own settings.
    wrong: Option<Unfit>,
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
            self.wrong.clone().map_or(Ok(()), Err)?;
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
