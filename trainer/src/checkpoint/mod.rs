//! Checkpoints: a run that was killed goes on as if nothing had happened.
//!
//! One folder belongs to one run, and every checkpoint is a folder in it:
//!
//! | file | content |
//! |---|---|
//! | `adapter.safetensors` | every trainable parameter in `f32`, bit by bit |
//! | `optimizer.safetensors` | moments (with their scales where they have 8 bits) and update counts |
//! | `progress.json` | where the run stands, in its caller's words |
//! | `metrics.jsonl` | what was measured so far |
//! | `fingerprint.json` | what the run is: settings, dataset, base model |
//! | `manifest.json` | format, step, size and SHA-256 of the others, and its own SHA-256 |
//!
//! ```text
//! save    .step-00000040.<process>-0.tmp/   each file: write, fsync; the manifest last; fsync the folder
//!         -> step-00000040/                 rename, fsync the folder above
//!         older ones                        rename to .….tmp, fsync, remove: all but the newest few and the best
//! read    newest first: manifest, fingerprint, every hash; a damaged one is named and the one before it is taken
//! ```
//!
//! So at every moment the newest complete checkpoint is the old or the new one. A save that fails leaves the older ones
//! alone and removes what it wrote; it is told as a [`SaveError`], and the run can go on. There must be room for one
//! checkpoint more than are kept.
//!
//! One process at a time may use the folder: whoever opens it removes what unfinished saves left there.

mod captured;
mod fingerprint;
mod folder;
mod manifest;
mod restore;
mod storage;
mod tensors;
#[cfg(test)]
pub(crate) mod tests;

use std::{io, mem, path::Path, sync::Arc, thread};

pub use captured::Captured;
pub use fingerprint::Fingerprint;
pub use restore::Restored;
pub use storage::{FileSystem, Output, Storage};

use self::{
    folder::{Entry, Folder},
    restore::Trouble,
};
use crate::{Error, Result};

/// Bytes of `fingerprint.json`: some hundred facts.
const MAX_FINGERPRINT_BYTES: u64 = 1 << 20;
/// Bytes of `progress.json`.
const MAX_PROGRESS_BYTES: u64 = 64 << 20;
/// Bytes of `metrics.jsonl`: a million steps of a kilobyte each.
const MAX_METRICS_BYTES: u64 = 1 << 30;

/// The checkpoints of a run.
#[derive(Debug)]
pub struct Checkpoints {
    folder: Arc<Folder>,
    fingerprint: Fingerprint,
    writing: Option<Writing>,
    ended: Vec<Ended>,
}

/// A save that has not ended.
#[derive(Debug)]
struct Writing {
    step: u64,
    thread: thread::JoinHandle<Result<Saved>>,
}

/// A checkpoint that is complete and durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// After so many steps.
    pub step: u64,
    /// Size of all its files.
    pub bytes: u64,
    /// Older checkpoints that could not be removed.
    pub notes: Vec<String>,
}

/// A checkpoint that could not be saved. Those before it are as they were.
#[derive(Debug, thiserror::Error)]
#[error("the checkpoint of step {step} was not saved: {error}{}", self.advice())]
pub struct SaveError {
    /// After so many steps.
    pub step: u64,
    /// Why.
    #[source]
    pub error: Error,
}

/// What became of a save.
pub type Ended = std::result::Result<Saved, SaveError>;

/// What a search for a checkpoint found.
#[derive(Debug)]
pub struct Found {
    /// The checkpoint. `None` without notes: there is none yet. `None` with notes: there are some, and none is of use.
    pub checkpoint: Option<Restored>,
    /// Every checkpoint that was passed over, and why.
    pub notes: Vec<String>,
}

/// The step of the newest checkpoint in a folder, by its name: nothing of it is read. `None` where there is none.
pub fn newest_step(dir: &Path, storage: &dyn Storage) -> Option<u64> {
    // A folder that is not there has no checkpoints, and whoever needs those of one that cannot be read will say so.
    let names = storage.list(dir).unwrap_or_default();
    names.iter().filter_map(|name| Entry::parse(name)).map(|entry| entry.step).max()
}

// === impl Checkpoints ===

impl Checkpoints {
    /// Opens the folder of a run, which is made if need be, and removes what unfinished saves left there. What could not
    /// be removed is told. `keep`: so many of the newest checkpoints stay, besides the best one.
    pub fn open(
        dir: &Path,
        keep: usize,
        fingerprint: Fingerprint,
        storage: Arc<dyn Storage>,
    ) -> Result<(Self, Vec<String>)> {
        if keep == 0 {
            return Err(Error::Invalid("checkpoints: at least one has to be kept".to_owned()));
        }
        let text = serde_json::to_vec_pretty(&fingerprint)
            .map_err(|error| Error::Invalid(format!("the settings of the run cannot be noted: {error}")))?;
        if text.len() as u64 > MAX_FINGERPRINT_BYTES {
            return Err(Error::Invalid(format!(
                "the settings of the run take {} bytes; a checkpoint notes at most {MAX_FINGERPRINT_BYTES}",
                text.len()
            )));
        }
        let (folder, notes) = Folder::open(dir, keep, text, storage)?;
        Ok((Self { folder: Arc::new(folder), fingerprint, writing: None, ended: Vec::new() }, notes))
    }

    /// Hands a checkpoint to a thread that writes it, after waiting for the one before. Returns what ended since this was
    /// last asked.
    pub fn save(&mut self, captured: Captured) -> Vec<Ended> {
        self.wait();
        let step = captured.step;
        let folder = Arc::clone(&self.folder);
        let thread = thread::Builder::new().name("checkpoint".to_owned()).spawn(move || folder.save(&captured));
        match thread {
            Ok(thread) => self.writing = Some(Writing { step, thread }),
            Err(error) => {
                let error = Error::io("cannot start a thread to write", &self.folder.path)(error);
                self.ended.push(Err(SaveError { step, error }));
            }
        }
        mem::take(&mut self.ended)
    }

    /// What ended since this was last asked, without waiting.
    pub fn poll(&mut self) -> Vec<Ended> {
        if self.writing.as_ref().is_some_and(|writing| writing.thread.is_finished()) {
            self.wait();
        }
        mem::take(&mut self.ended)
    }

    /// What ended since this was last asked; a save that has not ended is waited for.
    pub fn finish(&mut self) -> Vec<Ended> {
        self.wait();
        mem::take(&mut self.ended)
    }

    /// The newest checkpoint that is whole. One of a run with other settings is an error that names every difference.
    pub fn latest(&mut self) -> Result<Found> {
        self.search(|_| true)
    }

    /// The last checkpoint that was saved as the best one.
    pub fn best(&mut self) -> Result<Found> {
        self.search(|entry| entry.best)
    }

    fn search(&mut self, wanted: impl Fn(&Entry) -> bool) -> Result<Found> {
        self.wait();
        let mut notes = Vec::new();
        let entries = self.folder.entries().clone();
        for entry in entries.iter().rev().filter(|entry| wanted(entry)) {
            let trouble = match self.folder.examine(entry, &self.fingerprint) {
                Ok(checkpoint) => return Ok(Found { checkpoint: Some(checkpoint), notes }),
                Err(trouble) => trouble,
            };
            match trouble {
                Trouble::OtherRun(differences) => return Err(Trouble::refusal(&self.folder.path, &differences)),
                Trouble::Damaged(_) => self.folder.mark_damaged(entry),
                Trouble::Unreadable(_) => {}
            }
            notes.extend(trouble.note());
        }
        Ok(Found { checkpoint: None, notes })
    }

    fn wait(&mut self) {
        let Some(Writing { step, thread }) = self.writing.take() else { return };
        let saved =
            thread.join().unwrap_or_else(|_| Err(Error::Invalid("the thread that wrote it ended early".into())));
        self.ended.push(saved.map_err(|error| SaveError { step, error }));
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        // The process may end next, and what is half written would be lost.
        self.wait();
    }
}

// === impl SaveError ===

impl SaveError {
    /// There was no room for it.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match &self.error {
            Error::Io { source, .. } => matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge),
            _ => false,
        }
    }

    fn advice(&self) -> &'static str {
        if self.is_full() { ". Make room there, or keep fewer checkpoints" } else { "" }
    }
}
