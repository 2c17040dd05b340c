//! A run on this machine, for `brightrun train` and `brightrun resume`: all that it needs is noted beside its checkpoints
//! before it begins, so that it can go on without the command that began it.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use brightrun_trainer::{
    Error,
    artifacts::{atomic, result::RESULT_FILE},
    events::{Event, EventSink},
    run::{self, RunEnd, RunSpec, RunSummary, Surroundings},
    stop::Stop,
};
use serde::{Deserialize, Serialize};

use crate::{
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
            bail!(
                "there is no interrupted run in {}; name the folder that brightrun train has named",
                folder.display()
            );
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
    pub(crate) fn carry_out(mut self, _sole: &Sole, progress: &Progress) -> anyhow::Result<Outcome> {
        let begin = Instant::now();
        self.0.machine = this_machine::processor();
        let note = self.0.checkpoint_dir.join(FILE);
        // Another run's note stays until it is clear that this one may take its place.
        if !note.exists() {
            self.note(&note)?;
        }
        let stop = Stop::default();
        signals::listen(&stop).context("cannot listen for signals")?;
        let clock = SystemClock::new();
        let sink = NotingSink { run: &self, note: &note, next: progress };
        let around =
            Surroundings { peak_memory: &this_machine::peak_memory, ..Surroundings::new(&sink, &clock, &stop) };
        let ended = run::run(&self.0, &around);
        progress.close();
        let job_id = self.0.job_id;
        Ok(match ended {
            Ok(RunEnd::Finished(summary)) => Outcome::Done { job_id, summary, time: begin.elapsed() },
            Ok(RunEnd::Paused { step, .. }) => Outcome::Paused { job_id, step, folder: self.0.output_dir },
            Err(error @ Error::DoesNotFit(_)) => Outcome::DoesNotFit(error.to_string()),
            Err(error) => Outcome::Failed(error.to_string()),
        })
    }

    fn note(&self, path: &Path) -> anyhow::Result<()> {
        let folder = &self.0.checkpoint_dir;
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(atomic::write(path, &serde_json::to_vec_pretty(self)?)?)
    }
}

/// Hands events on, and notes the run as soon as its checkpoints are known to be its own.
struct NotingSink<'a> {
    run: &'a LocalRun,
    note: &'a Path,
    next: &'a Progress,
}

impl EventSink for NotingSink<'_> {
    fn emit(&self, event: &Event) {
        if matches!(event, Event::Started { .. })
            && let Err(error) = self.run.note(self.note)
        {
            tracing::warn!("should the run be interrupted, brightrun resume will not know it: {error:#}");
        }
        self.next.emit(event);
    }
}

// === impl Sole ===

impl Sole {
    /// Claims a folder, which is made if need be.
    pub(crate) fn claim(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join(LOCK);
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _lock: file }),
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

/// The folder of a job's checkpoints.
pub(crate) fn checkpoints(folder: &Path) -> PathBuf {
    folder.join(CHECKPOINTS)
}
