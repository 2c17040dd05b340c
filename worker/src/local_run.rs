//! A run on this machine, for `brightrun train` and `brightrun resume`: all that it needs is noted beside its checkpoints
//! before it begins, so that it can go on without the command that began it.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use brightrun_trainer::{
    Error,
    artifacts::{atomic, result::RESULT_FILE},
    checkpoint::{self, FileSystem},
    events::{Event, EventSink},
    run::{ADAPTER_DIR, RunEnd, RunSpec, RunSummary, Surroundings},
    stop::Stop,
};
use serde::{Deserialize, Serialize};

use crate::{
    computer::{Computer, Wanted},
    input::BASE,
    job::JobSpec,
    progress::Progress,
    signals,
    this_machine::{self, SystemClock},
};

/// The folder of the checkpoints in that of the job.
const CHECKPOINTS: &str = "checkpoints";
/// What is noted.
const FILE: &str = "run.json";
/// Held by the process that works in a folder.
const LOCK: &str = ".lock";

/// Where everything of a run is.
pub(crate) struct Places {
    pub(crate) model_dir: PathBuf,
    pub(crate) base_model_name: String,
    pub(crate) base_model_asked: Option<String>,
    pub(crate) base_model_revision: Option<String>,
    pub(crate) dataset: PathBuf,
    pub(crate) validation_dataset: Option<PathBuf>,
    pub(crate) output_dir: PathBuf,
    pub(crate) cache_dir: PathBuf,
}

/// The run of a job. What it runs on is not said yet.
pub(crate) fn spec(job: &JobSpec, places: Places, usd_per_hour: Option<f64>, warnings: Vec<String>) -> RunSpec {
    RunSpec {
        job_id: job.job_id.clone(),
        checkpoint_dir: checkpoints(&places.output_dir),
        model_dir: places.model_dir,
        base_model_name: places.base_model_name,
        base_model_asked: places.base_model_asked,
        base_model_revision: places.base_model_revision,
        dataset: places.dataset,
        validation_dataset: places.validation_dataset,
        output_dir: places.output_dir,
        cache_dir: places.cache_dir,
        machine: None,
        usd_per_hour,
        warnings,
        parameters: job.parameters.clone(),
    }
}

/// A run of this machine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LocalRun(pub(crate) RunSpec);

/// How a run ended.
pub(crate) enum Outcome {
    /// The adapter is there.
    Done {
        /// Name of the job.
        job_id: String,
        /// What came out.
        summary: Box<RunSummary>,
        /// How long it took.
        time: Duration,
    },
    /// It was interrupted, and can go on.
    Paused {
        /// Name of the job.
        job_id: String,
        /// Steps that are taken and saved.
        step: u64,
        /// The job's folder.
        folder: PathBuf,
        /// `brightrun resume` would go on with this run, and not with the one that was there before.
        noted: bool,
    },
    /// The job cannot be run as it is.
    Refused(Vec<String>),
    /// This machine has too little memory for it.
    DoesNotFit(String),
    /// The run failed.
    Failed(String),
}

/// The only process at work in a folder, as long as this lives.
pub(crate) struct Sole {
    _lock: File,
}

// === impl Outcome ===

impl Outcome {
    /// 0: done; 1: failed; 2: refused; 3: does not fit; 75: interrupted, and can go on.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Done { .. } => 0,
            Self::Failed(_) => 1,
            Self::Refused(_) => 2,
            Self::DoesNotFit(_) => 3,
            Self::Paused { .. } => 75,
        }
    }
}

// === impl LocalRun ===

impl LocalRun {
    /// The run that was begun in a job's folder and is not over.
    pub(crate) fn of_folder(folder: &Path) -> anyhow::Result<Self> {
        let path = checkpoints(folder).join(FILE);
        if !path.exists() {
            if folder.join(RESULT_FILE).exists() {
                bail!("the run in {} is over; {RESULT_FILE} there says how it ended", folder.display());
            }
            bail!(no_run(folder));
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let why = || format!("{} is no note of a run of this version; run its job again", path.display());
        let Self(mut spec) = serde_json::from_slice(&bytes).with_context(why)?;
        // The folder may have been moved, or be another machine's view of the same volume.
        let folder = std::path::absolute(folder).with_context(|| format!("{}", folder.display()))?;
        let moved = |path: &Path| match path.strip_prefix(&spec.output_dir) {
            Ok(rest) => folder.join(rest),
            Err(_) => path.to_owned(),
        };
        let validation_dataset = spec.validation_dataset.as_deref().map(moved);
        let (model_dir, dataset) = (moved(&spec.model_dir), moved(&spec.dataset));
        spec = RunSpec { model_dir, dataset, validation_dataset, checkpoint_dir: checkpoints(&folder), ..spec };
        Ok(Self(RunSpec { output_dir: folder, ..spec }))
    }

    /// Runs it, or goes on with it.
    pub(crate) fn carry_out(mut self, _sole: &Sole, progress: &Progress, device: Wanted) -> anyhow::Result<Outcome> {
        let begin = Instant::now();
        let computer = Computer::choose(device)?;
        let noting = Noting { progress, waiting: Mutex::new(self.note()?) };
        let stop = Stop::default();
        signals::listen(&stop).context("cannot listen for signals")?;
        let clock = SystemClock::new();
        let around =
            Surroundings { peak_memory: &this_machine::peak_memory, ..Surroundings::new(&noting, &clock, &stop) };
        let ended = computer.run(&mut self.0, around);
        progress.close();
        let job_id = self.0.job_id;
        Ok(match ended {
            Ok(RunEnd::Finished(summary)) => Outcome::Done { job_id, summary, time: begin.elapsed() },
            Ok(RunEnd::Paused { step, .. }) => {
                Outcome::Paused { job_id, step, folder: self.0.output_dir, noted: !noting.is_waiting() }
            }
            Err(error @ Error::DoesNotFit(_)) => Outcome::DoesNotFit(error.to_string()),
            Err(error) => Outcome::Failed(error.to_string()),
        })
    }

    /// Notes the run, so that it can go on. Where there are checkpoints of a run that was another one in any way, the note
    /// is given back: it is to be written once the checkpoints have turned out to be of this one too, for the other run
    /// must be able to go on if they are not.
    fn note(&self) -> anyhow::Result<Option<Note>> {
        let folder = &self.0.checkpoint_dir;
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let note = Note { path: folder.join(FILE), text: serde_json::to_vec_pretty(self)? };
        let known = fs::read(&note.path).ok();
        if known.as_ref() == Some(&note.text) {
            return Ok(None);
        }
        if known.is_some() && checkpoint::newest_step(folder, &FileSystem).is_some() {
            return Ok(Some(note));
        }
        atomic::write(&note.path, &note.text)?;
        Ok(None)
    }
}

/// What is to be noted of a run, and where.
struct Note {
    path: PathBuf,
    text: Vec<u8>,
}

/// Writes a note that was waiting when the run has begun to train: by then its checkpoints are accepted.
struct Noting<'a> {
    progress: &'a Progress,
    waiting: Mutex<Option<Note>>,
}

// === impl Noting ===

impl Noting<'_> {
    fn waiting(&self) -> MutexGuard<'_, Option<Note>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_waiting(&self) -> bool {
        self.waiting().is_some()
    }
}

impl EventSink for Noting<'_> {
    fn emit(&self, event: &Event) {
        self.progress.emit(event);
        if !matches!(event, Event::Started { .. }) {
            return;
        }
        if let Some(note) = self.waiting().take()
            && let Err(error) = atomic::write(&note.path, &note.text)
        {
            tracing::warn!("{error}; brightrun resume would go on with the settings of before");
        }
    }
}

// === impl Sole ===

impl Sole {
    /// Claims a folder, which is made if need be. What killed processes left there half written goes.
    pub(crate) fn claim(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join(LOCK);
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {
                tidy(folder);
                Ok(Self { _lock: file })
            }
            Err(TryLockError::WouldBlock) => {
                bail!("another brightrun is at work in {}; wait for it, or choose another --output", folder.display())
            }
            // Some network file systems know no locks; their users have one process a folder.
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
                Ok(Self { _lock: file })
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

/// Removes what killed processes left. It is in nobody's way, so it is no error where that cannot be.
fn tidy(folder: &Path) {
    let parts = [folder.to_owned(), folder.join(BASE), folder.join(ADAPTER_DIR), checkpoints(folder)];
    let left = parts.iter().flat_map(|part| atomic::leftovers(part).unwrap_or_default());
    for path in left {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let removed = match path.is_dir() {
            // Other programs' folders may be in the making beside those of the run.
            true if !name.starts_with(&format!(".{CHECKPOINTS}.")) => continue,
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        if let Err(error) = removed {
            tracing::warn!("{} was left by an interrupted run and cannot be removed: {error}", path.display());
        }
    }
}

/// What there is to say about a folder without an interrupted run.
pub(crate) fn no_run(folder: &Path) -> String {
    format!("there is no interrupted run in {}; name the folder that brightrun train has named", folder.display())
}

/// Whether a job was ever begun in a folder.
pub(crate) fn is_of_job(folder: &Path) -> bool {
    [folder.join(LOCK), folder.join(RESULT_FILE), checkpoints(folder).join(FILE)].iter().any(|path| path.exists())
}

/// The folder of a job's checkpoints.
pub(crate) fn checkpoints(folder: &Path) -> PathBuf {
    folder.join(CHECKPOINTS)
}
