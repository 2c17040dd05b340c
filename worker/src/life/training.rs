//! What this worker does with a job: it is read, claimed, run and delivered, or goes on where it was left.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use brightrun_trainer::{
    Error,
    artifacts::{
        atomic,
        result::{RESULT_FILE, RunResult, RunStatus},
    },
    events::{Event, EventSink, Stage},
    run::{self, RunEnd, RunSpec, Surroundings},
    stop::{Stop, StopKind},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    ending,
    lease::{Lease, LeaseError, LeaseTimes},
    limits::TimeLimit,
    models::Models,
    shown::Shown,
};
use crate::{
    input,
    job::{self, Dataset, JobSpec, Overrides},
    local_run::{self, Places},
    storage::{
        self, FetchLimits, Source, SourcePolicy,
        upload::{self, Artifact, Store, UploadLimits},
    },
    this_machine::{self, SystemClock},
    work::{Answer, Ended, Job, Show, Work},
};

/// What a folder's job was asked for, as a hash: another job of the same name is another job.
const REQUEST: &str = "request.sha256";
/// Between two attempts to get a job that another worker has.
const WAIT: Duration = Duration::from_secs(5);

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
    /// How jobs are kept from others.
    pub lease: LeaseTimes,
}

/// Trains.
#[derive(Debug, Clone)]
pub struct Training {
    settings: Arc<Settings>,
}

/// Why a job is to end before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// The platform has stopped it.
    Stopped,
    /// This worker goes.
    Leaving,
    /// Its time is over.
    OutOfTime,
    /// Another worker has taken it over.
    Lost,
}

/// One job under way.
struct Task {
    settings: Arc<Settings>,
    show: Show,
    shown: Mutex<Shown>,
    /// For what waits in the network.
    over: CancellationToken,
    /// For the run.
    stop: Stop,
    reason: OnceLock<Reason>,
}

/// How a job ended that was not broken off.
enum Closed {
    Answered(Answer),
    BrokenOff { steps: u64 },
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
        let limit = TimeLimit::of(&job.policy, self.settings.execution, job.waited);
        let task = Arc::new(Task {
            settings: self.settings.clone(),
            show,
            shown: Mutex::default(),
            over: CancellationToken::new(),
            stop: Stop::default(),
            reason: OnceLock::new(),
        });
        task.present();
        let closed = tokio::select! {
            closed = task.clone().whole(&job) => closed,
            never = task.watch(&stop, &leave, limit) => match never {},
        };
        let name = job.input.get("job_id").and_then(Value::as_str).unwrap_or(&job.id);
        let failed = |why: &str| Ended::Answered(ending::failed(name, &task.shown(), why));
        match (closed, task.reason.get()) {
            (Ok(Closed::Answered(answer)), _) => Ended::Answered(answer),
            (_, Some(Reason::Stopped)) => Ended::Stopped,
            (_, Some(Reason::Leaving | Reason::Lost)) => Ended::HandedBack,
            (Ok(Closed::BrokenOff { steps }), Some(Reason::OutOfTime)) => failed(&out_of_time(limit, Some(steps))),
            (Err(_), Some(Reason::OutOfTime)) => failed(&out_of_time(limit, None)),
            (Ok(Closed::BrokenOff { .. }), None) => failed("the job was broken off for no known reason; send it again"),
            (Err(why), None) => failed(&why),
        }
    }
}

fn out_of_time(limit: TimeLimit, steps: Option<u64>) -> String {
    let minutes = limit.whole().unwrap_or_default().as_secs().div_ceil(60);
    let saved = match steps {
        Some(steps) if steps > 0 => format!("{steps} steps are saved"),
        _ => "nothing is trained yet".to_owned(),
    };
    format!(
        "the job may take {minutes} minutes, and they are nearly over; {saved}. Send it again with the same job_id and a longer \
         policy.executionTimeout, and it goes on from there"
    )
}

// === impl Task ===

impl Task {
    /// Ends the job when one of these ends.
    async fn watch(
        self: &Arc<Self>,
        stop: &CancellationToken,
        leave: &CancellationToken,
        limit: TimeLimit,
    ) -> std::convert::Infallible {
        let time = async {
            match limit.to_work() {
                Some(time) => sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let reason = tokio::select! {
            () = stop.cancelled() => Reason::Stopped,
            () = leave.cancelled() => Reason::Leaving,
            () = time => Reason::OutOfTime,
        };
        self.end(reason);
        // Whoever goes may still be stopped.
        stop.cancelled().await;
        self.end(Reason::Stopped);
        std::future::pending().await
    }

    fn end(&self, reason: Reason) {
        let reason = *self.reason.get_or_init(|| reason);
        self.stop.ask(match reason {
            Reason::Stopped | Reason::Lost => StopKind::Cancel,
            Reason::Leaving | Reason::OutOfTime => StopKind::Pause,
        });
        self.over.cancel();
    }

    async fn whole(self: Arc<Self>, job: &Job) -> Result<Closed, String> {
        let begin = Instant::now();
        let spec = self.understand(job)?;
        let base = self.settings.models.find(&spec.base_model, &self.settings.jobs)?;
        let folder = self.settings.jobs.join(&spec.job_id);
        fs::create_dir_all(&folder).map_err(on_volume(&folder))?;
        let lease = Arc::new(self.claim(&folder).await?);
        let request = digest(&spec);
        if let Some(result) = self.stored(&folder, &request)? {
            return self.deliver(&spec, &folder, result).await.map(Closed::Answered);
        }
        atomic::write(&folder.join(REQUEST), request.as_bytes()).map_err(|error| error.to_string())?;
        let mut warnings = spec.warnings.clone();
        warnings.extend(base.warning.clone());
        warnings.extend(spec.gpu.check(this_machine::gpus()).map_err(|problem| problem.to_string())?);
        let dataset = self.fetch(&spec.dataset, "dataset", &folder).await?;
        let validation = match &spec.validation {
            Some(validation) => Some(self.fetch(validation, "validation", &folder).await?),
            None => None,
        };
        let places = Places {
            model_dir: base.folder,
            base_model_name: base.name,
            base_model_asked: base.asked,
            dataset,
            validation_dataset: validation,
            output_dir: folder.clone(),
            cache_dir: self.settings.cache.clone(),
        };
        let run = local_run::spec(&spec, places, spec.gpu.usd_per_hour, warnings);
        let ended = self.clone().run(run, lease.clone()).await?;
        tracing::info!("job {} ran for {:.0} s", spec.job_id, begin.elapsed().as_secs_f64());
        match ended {
            RunEnd::Paused { step, .. } => Ok(Closed::BrokenOff { steps: step }),
            RunEnd::Finished(_) => {
                let result = self.stored(&folder, &request)?.ok_or("the run left no result; send the job again")?;
                self.deliver(&spec, &folder, result).await.map(Closed::Answered)
            }
        }
    }

    fn understand(&self, job: &Job) -> Result<JobSpec, String> {
        let request = json!({ "input": job.input }).to_string();
        let fallback = if job::is_job_id(&job.id) { &job.id } else { "job" };
        let spec = job::parse(&request, &Overrides::default(), fallback);
        spec.map_err(|problems| {
            let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
            format!("the job cannot be run: {}", all.join("; "))
        })
    }

    /// The right to work on a job. Where another worker has it, waits for that one's end, and then finds its result.
    async fn claim(self: &Arc<Self>, folder: &Path) -> Result<Lease, String> {
        loop {
            let (task, folder) = (self.clone(), folder.to_owned());
            let claimed = spawn_blocking(move || {
                let (settings, over) = (&task.settings, &task.over);
                Lease::claim(&folder, &settings.worker, &settings.lease, &|| over.is_cancelled())
            });
            match claimed.await.map_err(|error| error.to_string())? {
                Ok(lease) => return Ok(lease),
                Err(LeaseError::Taken { holder }) => {
                    tracing::info!("worker {holder} is at work on this job; waiting for it");
                    if self.over.run_until_cancelled(sleep(WAIT)).await.is_none() {
                        return Err(LeaseError::Cancelled.to_string());
                    }
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// The result of a job that is done already. A folder of another request is nobody's to overwrite.
    fn stored(&self, folder: &Path, request: &str) -> Result<Option<RunResult>, String> {
        let known = match fs::read_to_string(folder.join(REQUEST)) {
            Ok(known) => known,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(on_volume(folder)(error)),
        };
        let result = fs::read(folder.join(RESULT_FILE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let result: Option<RunResult> = result.filter(|result: &RunResult| result.status == RunStatus::Success);
        if result.is_some() && known != request {
            return Err(
                "a job with this job_id is done, and had another dataset, base model or settings; give this one \
                        another job_id"
                    .to_owned(),
            );
        }
        Ok(result)
    }

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

    async fn run(self: Arc<Self>, mut spec: RunSpec, lease: Arc<Lease>) -> Result<RunEnd, String> {
        let ended = spawn_blocking(move || {
            spec.machine = this_machine::processor();
            let sink = Fenced { task: &self, lease: &lease };
            let clock = SystemClock::new();
            let around = Surroundings {
                peak_memory: &this_machine::peak_memory,
                ..Surroundings::new(&sink, &clock, &self.stop)
            };
            run::run(&spec, &around)
        });
        match ended.await {
            Ok(Ok(ended)) => Ok(ended),
            Ok(Err(Error::Cancelled)) => Ok(RunEnd::Paused { step: 0, checkpoint_dir: PathBuf::new() }),
            Ok(Err(error)) => Err(error.to_string()),
            // The panic goes on: whoever called this answers for it.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn deliver(&self, spec: &JobSpec, folder: &Path, result: RunResult) -> Result<Answer, String> {
        self.stage(Stage::Uploading);
        let names = result.files.iter().map(|file| file.name.as_str()).chain([RESULT_FILE]);
        let files: Vec<Artifact> =
            names.map(|name| Artifact { name: ending::told_name(name).to_owned(), path: folder.join(name) }).collect();
        let (settings, limits) = (&self.settings, UploadLimits::default());
        let delivered = upload::deliver(
            &settings.store,
            &spec.job_id,
            &files,
            &spec.uploads,
            &settings.sources,
            &limits,
            &|_| {},
            &self.over,
        );
        let delivered = delivered.await.map_err(|error| error.to_string())?;
        Ok(ending::succeeded(&json!(result), &delivered))
    }

    fn stage(&self, stage: Stage) {
        self.note(&Event::Stage { stage });
    }

    fn note(&self, event: &Event) {
        if self.lock().note(event) {
            self.present();
        }
    }

    fn present(&self) {
        self.show.progress(json!(*self.lock()));
    }

    fn shown(&self) -> Shown {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shows a run's events, and ends a run whose job was taken over.
struct Fenced<'a> {
    task: &'a Task,
    lease: &'a Lease,
}

impl EventSink for Fenced<'_> {
    fn emit(&self, event: &Event) {
        self.task.note(event);
        if !self.lease.is_held() {
            self.task.end(Reason::Lost);
        }
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
    let asked = json!({
        "dataset": dataset(&spec.dataset),
        "validation": spec.validation.as_ref().map(dataset),
        "base_model": format!("{:?}", spec.base_model),
        "parameters": spec.parameters,
    });
    hex::encode(Sha256::digest(asked.to_string()))
}
