//! The states of a job, each a type of its own: what may be done with it is what its state offers, and whatever is done gives
//! the next one.
//!
//! ```text
//! Received ── understand ──> Understood ── claim ──> Claimed ── fetch ──> Fetched ── run ──> Finished ── deliver ──> Answer
//!                                             └────────── it was done before ──────────────────^
//! ```
//!
//! Every arrow may end in [`Ending`] in place of the next state; then the job is over here.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use brightrun_trainer::{
    Error,
    artifacts::{
        atomic,
        result::{RESULT_FILE, RunResult, RunStatus},
    },
    events::Stage,
    run::{ADAPTER_DIR, RunEnd, RunSpec, Surroundings},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{task::spawn_blocking, time::sleep};
use tracing::Span;
use url::Url;

use super::{
    ending,
    fenced::{FencedFiles, Watched},
    lease::{Lease, LeaseError},
    models::{self, Found},
    task::{Reason, Task},
};
use crate::{
    computer::Computer,
    input,
    job::{self, Dataset, JobSpec, Overrides},
    local_run::{self, Places},
    redacted::Redacted,
    storage::{
        self, FetchLimits, Source,
        upload::{self, Artifact, Store, UploadLimits},
    },
    this_machine::{self, SystemClock},
    work::{Answer, Job},
};

/// What a folder's job was asked for, as a hash: another job of the same name is another job.
const REQUEST: &str = "request.sha256";
/// Between two attempts to get a job that another worker has.
const WAIT: Duration = Duration::from_secs(5);
/// Without it a job has no result.
const ADAPTER: &str = "adapter_model.safetensors";
/// Name of a job that has none that could be a folder's.
const FALLBACK_ID: &str = "job";

/// Why a job does not go on.
#[derive(Debug)]
pub(super) enum Ending {
    /// It failed; its owner reads why.
    Failed(String),
    /// It was broken off, with so many steps saved.
    BrokenOff { steps: u64 },
}

/// It has arrived.
pub(super) struct Received {
    pub(super) task: Arc<Task>,
    pub(super) job: Job,
}

/// All that it says makes sense, and its base model is there.
pub(super) struct Understood {
    task: Arc<Task>,
    spec: JobSpec,
    store: Store,
    /// Whether the store came with the job.
    brought: bool,
    base: Found,
    /// What it asks for, as a hash.
    request: String,
}

/// Nobody else has it.
pub(super) struct Claimed {
    understood: Understood,
    folder: PathBuf,
    lease: Arc<Lease>,
}

/// Whose turn it is, once a job is claimed.
pub(super) enum Begun {
    /// It is to be done.
    ToDo(Box<Claimed>),
    /// It was done before.
    Done(Box<Finished>),
}

/// Its data are here.
pub(super) struct Fetched {
    claimed: Claimed,
    run: RunSpec,
}

/// Its files lie in its folder.
pub(super) struct Finished {
    claimed: Claimed,
    result: RunResult,
}

type Next<State> = Result<State, Ending>;

impl From<String> for Ending {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

// === impl Received ===

impl Received {
    /// Reads it, and finds its base model.
    pub(super) async fn understand(self) -> Next<Understood> {
        on_disk(move || self.read()).await
    }

    fn read(self) -> Next<Understood> {
        let Self { task, job } = self;
        let request = json!({ "input": job.input }).to_string();
        let fallback = if job::is_job_id(&job.id) { &job.id } else { FALLBACK_ID };
        let spec = job::parse(&request, &Overrides::default(), fallback).map_err(|problems| {
            let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
            format!("the job cannot be run: {}", all.join("; "))
        })?;
        let settings = &task.settings;
        if spec.parameters.init_adapter.is_some() && !settings.sources.local_files {
            let why = "hyperparameters.init_adapter: a job from a queue cannot name a folder of the machine that it runs on; leave it out";
            return Err(Ending::Failed(why.to_owned()));
        }
        let store = match &job.store {
            Some(config) => Store::of_job(config.expose(), settings.sources.plain_http)?,
            None => settings.store.clone(),
        };
        deliverable(&spec.uploads, &store, settings.sources.plain_http)?;
        let base = settings.models.find(&spec.base_model, &settings.jobs)?;
        base.check()?;
        let request = digest(&spec);
        let brought = job.store.is_some();
        Ok(Understood { task, spec, store, brought, base, request })
    }
}

// === impl Understood ===

impl Understood {
    /// Gets the right to work on it. Where another worker has it, waits for that one's end, and then finds its result.
    pub(super) async fn claim(self) -> Next<Begun> {
        let folder = self.task.settings.jobs.join(&self.spec.job_id);
        fs::create_dir_all(&folder).map_err(on_volume(&folder))?;
        let lease = Arc::new(self.lease(&folder).await?);
        let stored = self.stored(&folder)?;
        let claimed = Claimed { understood: self, folder, lease };
        Ok(match stored {
            Some(result) => Begun::Done(Box::new(Finished { claimed, result })),
            None => Begun::ToDo(Box::new(claimed)),
        })
    }

    async fn lease(&self, folder: &Path) -> Result<Lease, String> {
        loop {
            let (task, folder) = (self.task.clone(), folder.to_owned());
            let claimed = on_disk(move || {
                let settings = &task.settings;
                Lease::claim(&folder, &settings.worker, &settings.lease, &|| task.over.is_cancelled())
            });
            match claimed.await {
                Ok(lease) => return Ok(lease),
                Err(LeaseError::Taken { holder }) => {
                    tracing::info!("worker {holder} is at work on this job; waiting for it");
                    if self.task.over.run_until_cancelled(sleep(WAIT)).await.is_none() {
                        return Err(LeaseError::Cancelled.to_string());
                    }
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// The result of a job that is done already. A folder of another request is nobody's to overwrite.
    fn stored(&self, folder: &Path) -> Result<Option<RunResult>, String> {
        let known = match fs::read_to_string(folder.join(REQUEST)) {
            Ok(known) => known,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(on_volume(folder)(error)),
        };
        let result = fs::read(folder.join(RESULT_FILE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let result: Option<RunResult> = result.filter(|result: &RunResult| result.status == RunStatus::Success);
        if result.is_some() && known != self.request {
            return Err(
                "a job with this job_id is done, and had another dataset, base model or settings; give this one \
                        another job_id"
                    .to_owned(),
            );
        }
        Ok(result)
    }
}

// === impl Claimed ===

impl Claimed {
    /// Brings its data here.
    pub(super) async fn fetch(self) -> Next<Fetched> {
        let Understood { task, spec, base, request, .. } = &self.understood;
        self.look_at_store().await?;
        atomic::write(&self.folder.join(REQUEST), request.as_bytes()).map_err(|error| error.to_string())?;
        let mut warnings = spec.warnings.clone();
        warnings.extend(base.warning.clone());
        warnings.extend(spec.gpu.check(this_machine::gpus()).map_err(|problem| problem.to_string())?);
        let dataset = task.fetch(&spec.dataset, "dataset", &self.folder).await?;
        let validation_dataset = match &spec.validation {
            Some(validation) => Some(task.fetch(validation, "validation", &self.folder).await?),
            None => None,
        };
        let places = Places {
            base_model_revision: models::revision(&base.folder),
            model_dir: base.folder.clone(),
            base_model_name: base.name.clone(),
            base_model_asked: base.asked.clone(),
            dataset,
            validation_dataset,
            output_dir: self.folder.clone(),
            cache_dir: task.settings.cache.clone(),
        };
        let price = spec.gpu.usd_per_hour.or(task.settings.usd_per_hour).or_else(|| spec.gpu.usual_price());
        let run = local_run::spec(spec, places, price, warnings);
        Ok(Fetched { claimed: self, run })
    }

    /// Whether a store that came with the job takes results: found out before it is trained. The operator's was looked at when
    /// this worker began.
    async fn look_at_store(&self) -> Result<(), String> {
        let Understood { task, store, brought, .. } = &self.understood;
        if !brought {
            return Ok(());
        }
        let (network, limits) = (&task.settings.sources.network, UploadLimits::of_a_look());
        let looked = task.over.run_until_cancelled(upload::look(store, network, &limits)).await;
        looked.unwrap_or(Ok(())).map_err(|error| format!("s3Config: results could not be delivered: {error}"))
    }

    /// Whether it is still this worker's; otherwise it is over here.
    fn still_held(&self) -> Next<()> {
        if self.lease.holds() {
            return Ok(());
        }
        self.understood.task.end(Reason::Lost);
        Err(Ending::BrokenOff { steps: 0 })
    }
}

// === impl Fetched ===

impl Fetched {
    /// Runs it.
    pub(super) async fn run(self) -> Next<Finished> {
        let Self { claimed, mut run } = self;
        let (task, lease, begin) = (claimed.understood.task.clone(), claimed.lease.clone(), Instant::now());
        let ended = on_disk(move || {
            let computer = Computer::choose(task.settings.device)?;
            let sink = Watched::new(&task, &lease, &run.checkpoint_dir);
            let clock = SystemClock::new();
            let around = Surroundings {
                peak_memory: &this_machine::peak_memory,
                storage: Arc::new(FencedFiles::new(lease.clone())),
                ..Surroundings::new(&sink, &clock, &task.stop)
            };
            computer.run(&mut run, around)
        });
        match ended.await {
            Ok(RunEnd::Finished(_)) => {}
            Ok(RunEnd::Paused { step, .. }) => return Err(Ending::BrokenOff { steps: step }),
            Err(Error::Cancelled) => return Err(Ending::BrokenOff { steps: 0 }),
            Err(error) => return Err(error.to_string().into()),
        }
        tracing::info!("it ran for {:.0} s", begin.elapsed().as_secs_f64());
        let result = claimed.understood.stored(&claimed.folder)?;
        let result = result.ok_or_else(|| "the run left no result; send the job again".to_owned())?;
        Ok(Finished { claimed, result })
    }
}

// === impl Finished ===

impl Finished {
    /// Brings its files to where their owner can fetch them.
    pub(super) async fn deliver(self) -> Next<Answer> {
        let Self { claimed, result } = self;
        let (Understood { task, spec, store, .. }, folder) = (&claimed.understood, &claimed.folder);
        claimed.still_held()?;
        task.stage(Stage::Uploading);
        let names = result.files.iter().map(|file| file.name.as_str()).chain([RESULT_FILE]);
        let files: Vec<Artifact> =
            names.map(|name| Artifact { name: ending::told_name(name).to_owned(), path: folder.join(name) }).collect();
        let (sources, limits) = (&task.settings.sources, UploadLimits::default());
        let delivered =
            upload::deliver(store, &spec.job_id, &files, &spec.uploads, sources, &limits, &|_| {}, &task.over);
        let mut delivered = delivered.await.map_err(|error| error.to_string())?;
        let archived = task.told.adapter(&folder.join(ADAPTER_DIR), &task.over).await;
        delivered.warnings.extend(archived.err());
        delivered.warnings.extend(task.told.warnings());
        Ok(ending::succeeded(&json!(result), &delivered))
    }
}

impl Task {
    async fn fetch(&self, dataset: &Dataset, purpose: &str, folder: &Path) -> Result<PathBuf, String> {
        let source = match dataset {
            Dataset::Demo => {
                let path = folder.join("conversations.jsonl");
                brightrun_trainer::demo::write_dataset(&path).map_err(|error| error.to_string())?;
                return Ok(path);
            }
            Dataset::File(path) => Source::File(path.clone()),
            Dataset::Remote(source) => source.clone(),
        };
        let target = folder.join(input::file_name(purpose, &source));
        if target.is_file() {
            // A run that was interrupted has it; its link may have expired meanwhile.
            return Ok(target);
        }
        let limits = FetchLimits::default();
        let fetched = storage::fetch(&source, &target, &self.settings.sources, &limits, &|_| {}, &self.over).await;
        fetched.map(|_| target).map_err(|error| error.to_string())
    }
}

/// What can be said before any work about the links by which results are to be delivered.
fn deliverable(uploads: &BTreeMap<String, Redacted<Url>>, store: &Store, plain_http: bool) -> Result<(), String> {
    for (name, link) in uploads {
        upload::check_link(link, plain_http).map_err(|error| format!("upload_urls.{name}: {error}"))?;
    }
    if !uploads.is_empty() && matches!(store, Store::Local) && !uploads.contains_key(ADAPTER) {
        return Err(format!(
            "upload_urls: there is no link for {ADAPTER}, and the worker has no bucket, so the adapter could not be delivered; \
             add one"
        ));
    }
    Ok(())
}

/// Lets a thread work that may wait for the disk, and take its time; what it says is said of the same job.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let span = Span::current();
    match spawn_blocking(move || span.in_scope(work)).await {
        Ok(done) => done,
        // The panic goes on: whoever called this answers for it.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn on_volume(folder: &Path) -> impl Fn(io::Error) -> String {
    move |error| format!("{}: {error}; the operator checks that the volume is there and has room", folder.display())
}

/// What is asked for. A link's query is only its signature, and another one each time.
fn digest(spec: &JobSpec) -> String {
    let dataset = |dataset: &Dataset| match dataset {
        Dataset::Demo => "demo".to_owned(),
        Dataset::File(path) => path.display().to_string(),
        Dataset::Remote(source) => source.to_string(),
    };
    let asked: Value = json!({
        "dataset": dataset(&spec.dataset),
        "validation": spec.validation.as_ref().map(dataset),
        "base_model": format!("{:?}", spec.base_model),
        "parameters": spec.parameters,
    });
    hex::encode(Sha256::digest(asked.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_delivered_is_not_trained() {
        let links = |links: &[(&str, &str)]| -> BTreeMap<String, Redacted<Url>> {
            links.iter().map(|(name, link)| ((*name).to_owned(), Redacted::url(link.parse().unwrap()))).collect()
        };
        let (open, config) =
            (links(&[(ADAPTER, "http://h/x?s=S3CR3T")]), links(&[("adapter_config.json", "https://h/x")]));
        let error = deliverable(&open, &Store::Local, false).unwrap_err();
        assert!(error.starts_with("upload_urls.adapter_model.safetensors: ") && !error.contains("S3CR3T"), "{error}");
        assert_eq!(deliverable(&open, &Store::Local, true), Ok(()));
        let over = "https://h/x?X-Amz-Date=20200101T000000Z&X-Amz-Expires=60&X-Amz-Signature=S3CR3T";
        let error = deliverable(&links(&[(ADAPTER, over)]), &Store::Local, false).unwrap_err();
        assert!(error.contains("expired") && !error.contains("S3CR3T"), "{error}");
        assert!(
            deliverable(&config, &Store::Local, false).unwrap_err().contains("no link for adapter_model.safetensors")
        );
        assert_eq!(deliverable(&links(&[]), &Store::Local, false), Ok(()));
        let bucket = json!({ "bucketName": "b", "accessId": "a", "accessSecret": "s", "region": "us-east-1" });
        assert_eq!(deliverable(&config, &Store::of_job(&bucket, false).unwrap(), false), Ok(()));
    }
}
