//! `brightrun serve`: the same jobs over HTTP on one machine.

use std::{
    env, fs,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use serde_json::{Map, Value};
use tokio::net::{TcpListener, lookup_host};
use tokio_util::sync::CancellationToken;

use crate::{
    failure,
    input::FetchOptions,
    life::{self, Training},
    operator,
    service::{self, Key, Limits, Service, may_listen},
    signals,
    storage::SourcePolicy,
    telling::LAST_NEWS,
    test_input::{self, TestInput},
};

/// Where jobs are unless the operator says so.
pub(crate) const DATA: &str = "brightrun-serve";
/// Only this machine can reach it.
pub(crate) const HOST: &str = "127.0.0.1";
/// That of the official SDK's local server.
pub(crate) const PORT: u16 = 8000;
/// Threads that answer requests; training has its own.
const THREADS: usize = 2;
const MODEL_PATH: &str = "MODEL_PATH";
const MODEL_PATHS: &str = "MODEL_PATHS";

/// The command line of `brightrun serve`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where queue, history, jobs and tokenised datasets are kept.
    #[arg(long, value_name = "DIR", default_value = DATA)]
    data: PathBuf,
    /// The address that it listens on; beyond this machine only with a key in BRIGHTRUN_API_KEY.
    #[arg(long, default_value = HOST, alias = "rp_api_host")]
    host: String,
    /// The port that it listens on; 0 takes a free one.
    #[arg(long, default_value_t = PORT, alias = "rp_api_port")]
    port: u16,
    /// The base model of all jobs (as MODEL_PATH), or one under its name (as MODEL_PATHS); can be given several times.
    #[arg(long = "model", value_name = "DIR|NAME=DIR")]
    models: Vec<String>,
    /// Runs one job without a server, prints its result and ends: a file, or JSON, with "input".
    #[arg(long = "test_input", alias = "test-input", value_name = "FILE|JSON")]
    test_input: Option<String>,
    #[command(flatten)]
    amounts: Amounts,
    #[command(flatten)]
    pub(crate) fetching: FetchOptions,
    /// Allows datasets that are files of this machine.
    #[arg(long, help_heading = "Fetching")]
    allow_local_files: bool,
}

/// How much is kept.
#[derive(Debug, Args)]
#[command(next_help_heading = "Amounts")]
struct Amounts {
    /// Jobs that may wait.
    #[arg(long, value_name = "JOBS", default_value_t = Limits::default().queue)]
    max_queue: usize,
    /// Jobs that are over and remembered; their files stay in any case.
    #[arg(long, value_name = "JOBS", default_value_t = Limits::default().history)]
    keep_jobs: usize,
    /// So long they are remembered.
    #[arg(long, value_name = "DAYS", default_value_t = Limits::default().keep.as_secs() / 86_400)]
    keep_days: u64,
}

/// How serving ended.
pub(crate) enum Outcome {
    /// It was told to go.
    Gone,
    /// It cannot serve.
    Broken(String),
    /// One job was run.
    Tested(test_input::Tested),
}

// === impl Options ===

impl Options {
    /// As `brightrun worker --rp_serve_api` means it.
    pub(crate) fn of_worker(data: PathBuf, host: Option<String>, port: Option<u16>, fetching: FetchOptions) -> Self {
        let limits = Limits::default();
        Self {
            data,
            host: host.unwrap_or_else(|| HOST.to_owned()),
            port: port.unwrap_or(PORT),
            models: Vec::new(),
            test_input: None,
            amounts: Amounts {
                max_queue: limits.queue,
                keep_jobs: limits.history,
                keep_days: limits.keep.as_secs() / 86_400,
            },
            fetching,
            allow_local_files: false,
        }
    }

    fn sources(&self) -> anyhow::Result<SourcePolicy> {
        Ok(SourcePolicy { local_files: self.allow_local_files, ..self.fetching.of_strangers()? })
    }

    /// What jobs are carried out with.
    fn training(&self) -> anyhow::Result<life::Settings> {
        let models = Named::read(&self.models)?;
        let variable = |name: &str| models.variable(name).or_else(|| env::var(name).ok());
        training(&self.data, self.sources()?, variable)
    }

    fn settings(&self, training: &life::Settings) -> anyhow::Result<service::Settings> {
        let limits = Limits {
            queue: self.amounts.max_queue,
            history: self.amounts.keep_jobs,
            keep: Duration::from_secs(self.amounts.keep_days.saturating_mul(86_400)),
            ..Limits::default()
        };
        Ok(service::Settings {
            folder: std::path::absolute(&self.data)?,
            worker: training.worker.clone(),
            key: Key::from_variables(|name| env::var(name).ok()).map_err(anyhow::Error::msg)?,
            network: training.sources.network.clone(),
            plain_http: training.sources.plain_http,
            execution: training.execution,
            limits,
        })
    }
}

/// What jobs are carried out with in a folder of this machine's own.
pub(crate) fn training(
    data: &Path,
    sources: SourcePolicy,
    variable: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<life::Settings> {
    let data = std::path::absolute(data)?;
    // Datasets are nobody else's.
    let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(&data);
    created.with_context(|| format!("cannot create {}", data.display()))?;
    let (jobs, cache) = (data.join("jobs"), data.join("cache"));
    for folder in [&jobs, &cache] {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let settings = operator::settings_in((jobs, cache), sources, name_of_machine(), variable);
    // Whoever watches here sees every step.
    Ok(life::Settings { hold: Duration::ZERO, ..settings.map_err(anyhow::Error::msg)? })
}

fn name_of_machine() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = name.trim().chars().filter(plain).take(64).collect();
    if name.is_empty() { "local".to_owned() } else { name }
}

/// Serves until a signal, or runs one job.
pub(crate) fn serve(options: &Options) -> Outcome {
    let served = match &options.test_input {
        Some(text) => TestInput::read(text).and_then(|input| {
            let training = options.training()?;
            Ok(Outcome::Tested(test_input::run(input, training)?))
        }),
        None => listen(options).map(|()| Outcome::Gone),
    };
    served.unwrap_or_else(|error| Outcome::Broken(failure::told(&error)))
}

fn listen(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    runtime.block_on(async {
        let training = options.training()?;
        operator::check(&training).await.map_err(|unfit| anyhow::anyhow!("{unfit}"))?;
        training.store.warning().iter().for_each(|warning| tracing::warn!("{warning}"));
        let settings = options.settings(&training)?;
        let listener = bind(options, settings.key.as_ref()).await?;
        let (address, open) = (listener.local_addr()?, settings.key.is_none());
        let leave = CancellationToken::new();
        signals::leave(leave.clone())?;
        let telling = training.telling.clone();
        let service = Service::open(settings, Training::new(training), leave).await?;
        let who = if open { "to programs of this machine" } else { "to whoever has the key" };
        tracing::info!("answering at http://{address} {who}; jobs are in {}", options.data.display());
        service.run(listener).await?;
        telling.settle(LAST_NEWS).await;
        Ok(())
    })
}

async fn bind(options: &Options, key: Option<&Key>) -> anyhow::Result<TcpListener> {
    let place = format!("{} port {}", options.host, options.port);
    let addresses: Vec<_> = lookup_host((options.host.as_str(), options.port))
        .await
        .with_context(|| format!("--host {}: this name has no address", options.host))?
        .collect();
    let ips: Vec<IpAddr> = addresses.iter().map(|address| address.ip()).collect();
    may_listen(&ips, key).map_err(anyhow::Error::msg)?;
    let bound = TcpListener::bind(&addresses[..]).await;
    bound.with_context(|| format!("cannot listen on {place}; choose another --port, or end what has it"))
}

/// Base models of the command line, as the variables in whose place they are.
struct Named {
    one: Option<String>,
    by_name: Map<String, Value>,
}

// === impl Named ===

impl Named {
    fn read(models: &[String]) -> anyhow::Result<Self> {
        let mut named = Self { one: None, by_name: Map::new() };
        for model in models {
            match model.split_once('=') {
                Some((name, folder)) if !name.is_empty() && !folder.is_empty() => {
                    named.by_name.insert(name.to_owned(), folder.into());
                }
                None if named.one.is_none() && !model.is_empty() => named.one = Some(model.clone()),
                None if named.one.is_some() => {
                    anyhow::bail!("--model {model}: there is one already; give several names, as in --model NAME=DIR")
                }
                _ => anyhow::bail!("--model {model:?}: name a folder, or NAME=DIR"),
            }
        }
        Ok(named)
    }

    /// What the command line says outranks both variables.
    fn variable(&self, name: &str) -> Option<String> {
        let given = self.one.is_some() || !self.by_name.is_empty();
        match name {
            MODEL_PATH if given => Some(self.one.clone().unwrap_or_default()),
            MODEL_PATHS if given && !self.by_name.is_empty() => Some(Value::Object(self.by_name.clone()).to_string()),
            MODEL_PATHS if given => Some(String::new()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(models: &[&str]) -> anyhow::Result<Named> {
        Named::read(&models.iter().map(|model| (*model).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn models_of_the_command_line_outrank_the_environment() {
        let one = named(&["/models/a"]).unwrap();
        assert_eq!(one.variable(MODEL_PATH).as_deref(), Some("/models/a"));
        assert_eq!(one.variable(MODEL_PATHS).as_deref(), Some(""));
        let two = named(&["a/b=/x", "c=/y=z"]).unwrap();
        assert_eq!(two.variable(MODEL_PATH).as_deref(), Some(""));
        assert_eq!(two.variable(MODEL_PATHS).as_deref(), Some(r#"{"a/b":"/x","c":"/y=z"}"#));
        let none = named(&[]).unwrap();
        assert_eq!((none.variable(MODEL_PATH), none.variable(MODEL_PATHS)), (None, None));
        assert_eq!(one.variable("MODEL_NAME"), None);
    }

    #[test]
    fn wrong_models_are_refused() {
        for wrong in [&["a", "b"][..], &["=x"], &["x="], &[""]] {
            assert!(named(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_machine_has_a_name_without_surprises() {
        let name = name_of_machine();
        assert!(!name.is_empty() && name.is_ascii() && !name.contains(char::is_whitespace), "{name}");
    }
}
