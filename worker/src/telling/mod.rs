//! Everybody besides the queue who is told of a job: its callback, and the operator's Supabase project. Nobody here can
//! slow a job down or make it fail: messages are sent aside, the newest only, a few times, and then no more.
//!
//! `docs/callbacks.md` is written for those who listen.

mod archive;
mod callback;
mod channel;
pub mod limits;
mod news;
mod notes;
mod request;
mod supabase;
mod underway;

use std::{
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{runtime::Handle, task::spawn_blocking, time::timeout};
use tokio_util::sync::CancellationToken;
use url::Url;

pub use limits::TellingLimits;

use crate::{
    job,
    redacted::Redacted,
    storage::SourcePolicy,
    work::{Answer, Ended, Job},
};
use archive::Archive;
use callback::{Callback, Events};
use channel::Channel;
use news::Last;
use notes::Notes;
use request::Line;
use supabase::{Row, Supabase};
use underway::Underway;

/// What callbacks are signed with.
const SECRET: &str = "BRIGHTRUN_CALLBACK_SECRET";
/// So long those are waited for, before a process goes, who have not heard of an end.
pub(crate) const LAST_NEWS: Duration = Duration::from_secs(20);
/// Longest name of a job that is told.
const MAX_NAME: usize = 256;

/// Whom the operator allows to be told, and how.
#[derive(Clone)]
pub struct Telling(Arc<Setup>);

struct Setup {
    limits: TellingLimits,
    line: Arc<Line>,
    plain_http: bool,
    secret: Option<Redacted<String>>,
    supabase: Option<Supabase>,
    underway: Underway,
}

/// Tells of one job. Where it goes without [`Told::ended`], the job is told to have failed.
pub struct Told {
    setup: Arc<Setup>,
    job_id: String,
    runtime: Handle,
    notes: Notes,
    callback: Option<Channel<Callback>>,
    row: Option<Channel<Row>>,
    /// What became of the adapter's archive.
    archive: Mutex<Option<Result<String, String>>>,
    over: AtomicBool,
}

// === impl Telling ===

impl Telling {
    /// Reads the operator's settings: `BRIGHTRUN_CALLBACK_SECRET`, `SUPABASE_URL` and `SUPABASE_SERVICE_ROLE_KEY`. `policy`
    /// says which servers a callback may lead to. The error says what is missing or wrong.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>, policy: &SourcePolicy) -> Result<Self, String> {
        Self::with_limits(variable, policy, TellingLimits::default())
    }

    /// The same with other limits.
    pub fn with_limits(
        variable: impl Fn(&str) -> Option<String>,
        policy: &SourcePolicy,
        limits: TellingLimits,
    ) -> Result<Self, String> {
        let value = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let line = Arc::new(Line::new(policy.network.clone(), &limits)?);
        Ok(Self(Arc::new(Setup {
            supabase: Supabase::from_variables(&value, policy.plain_http, &line)?,
            secret: value(SECRET).map(Redacted::hidden),
            plain_http: policy.plain_http,
            line,
            limits,
            underway: Underway::new(),
        })))
    }

    /// Begins to tell of a job, also to the callback that its input names, whatever else is wrong with that. `job_id` is the
    /// job's name at its owner. It never waits, and panics without an asynchronous runtime.
    pub fn begin(&self, job: &Job, job_id: &str) -> Told {
        let (setup, notes, callback) = (self.0.clone(), Notes::default(), job::callback_of(&job.input));
        let told = Told {
            callback: callback.and_then(|url| setup.callback(job, job_id, &url, &notes)),
            row: setup.supabase.as_ref().and_then(|project| setup.row(project, job_id, &notes)),
            setup,
            job_id: job_id.to_owned(),
            runtime: Handle::current(),
            notes,
            archive: Mutex::new(None),
            over: AtomicBool::new(false),
        };
        told.progress(&json!({
            "status": "running", "stage": "fetching", "progress": 0.0, "current_epoch": 0, "current_step": 0,
            "error_message": null,
        }));
        told
    }

    /// Waits for what is still on its way, at most so long: before a process goes.
    pub async fn settle(&self, most: Duration) {
        let left = self.0.underway.settle(most).await;
        if left > 0 {
            tracing::warn!("{left} of those who are told of jobs have not heard of an end, and are not waited for");
        }
    }
}

impl fmt::Debug for Telling {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (signed, supabase) = (self.0.secret.is_some(), self.0.supabase.is_some());
        formatter.debug_struct("Telling").field("signed", &signed).field("supabase", &supabase).finish()
    }
}

// === impl Setup ===

impl Setup {
    fn callback(&self, job: &Job, job_id: &str, url: &Redacted<Url>, notes: &Notes) -> Option<Channel<Callback>> {
        if url.expose().scheme() != "https" && !self.plain_http {
            notes.take(format!("callback_url {url} is not encrypted, and is not told; use an https:// link"));
            return None;
        }
        let callback = Callback {
            line: self.line.clone(),
            url: url.clone(),
            secret: self.secret.clone(),
            id: job.id.clone(),
            job_id: job_id.chars().take(MAX_NAME).collect(),
            events: Events::begin(),
        };
        Some(Channel::begin(callback, &self.limits, notes))
    }

    fn row(&self, project: &Supabase, job_id: &str, notes: &Notes) -> Option<Channel<Row>> {
        if !job::is_job_id(job_id) {
            notes.take("the job_id is no id of a row, so the operator's table does not hear of the job".into());
            return None;
        }
        Some(Channel::begin(Row::of(project, job_id, notes), &self.limits, notes))
    }
}

// === impl Told ===

impl Told {
    /// How far the job is, as `/status` shows it. It never waits.
    pub fn progress(&self, output: &Value) {
        self.callback.iter().for_each(|channel| channel.progress(output));
        self.row.iter().for_each(|channel| channel.progress(output));
    }

    /// Brings the adapter's folder into the operator's project as one archive, and says where that is; nothing where there is
    /// no project. It ends within two seconds after `cancel`. An error is a warning for the job's owner, no failure.
    pub async fn adapter(&self, folder: &Path, cancel: &CancellationToken) -> Result<Option<String>, String> {
        let (Some(project), Some(_)) = (&self.setup.supabase, &self.row) else { return Ok(None) };
        let work = timeout(self.setup.limits.archive, self.archive(project, folder, cancel));
        let stored = match cancel.run_until_cancelled(work).await {
            None => Err("it was cancelled".to_owned()),
            Some(Err(_)) => Err(format!("it took longer than {:?}", self.setup.limits.archive)),
            Some(Ok(stored)) => stored,
        };
        let stored = stored.map_err(|why| format!("the adapter's archive is not in lora-models: {why}"));
        *self.archive.lock().unwrap_or_else(PoisonError::into_inner) = Some(stored.clone());
        stored.map(Some)
    }

    async fn archive(&self, project: &Supabase, folder: &Path, cancel: &CancellationToken) -> Result<String, String> {
        let (path, cancel) = (folder.to_owned(), cancel.clone());
        let archive = spawn_blocking(move || Archive::of(&path, &cancel)).await;
        let archive = archive.map_err(std::io::Error::other).and_then(|archive| archive);
        let archive = archive.map_err(|error| format!("cannot archive {}: {error}", folder.display()))?;
        project.store(&archive, &self.job_id, &self.setup.limits).await
    }

    /// What the job's owner should know of those who could not be told so far.
    pub fn warnings(&self) -> Vec<String> {
        let unheard = self.callback.as_ref().and_then(Channel::unheard);
        self.notes.all().into_iter().chain(unheard).collect()
    }

    /// How the job ended; after it nothing is told any more. It never waits: [`Telling::settle`] does.
    pub fn ended(&self, ended: &Ended) {
        if self.over.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut last = Last::of(ended);
        if let Some(last) = &mut last {
            match self.archive.lock().unwrap_or_else(PoisonError::into_inner).take() {
                Some(Ok(path)) => last.archive = Some(path),
                Some(Err(why)) => last.no_archive = Some(why),
                None => {}
            }
        }
        let (underway, runtime) = (&self.setup.underway, &self.runtime);
        self.callback.iter().for_each(|channel| channel.end(last.clone(), underway, runtime));
        self.row.iter().for_each(|channel| channel.end(last.clone(), underway, runtime));
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // Whoever carried it out has a fault; the queue hears of that from others.
        let error =
            "The worker has a fault, and the job ended with it. Send it again; if it ends so again, tell the operator.";
        self.ended(&Ended::Answered(Answer { error: Some(error.into()), ..Answer::default() }));
    }
}
