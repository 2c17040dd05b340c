//! A run of a leased job: it ends when another worker has taken the job over, and writes no checkpoint from then on.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use brightrun_trainer::{
    checkpoint::{self, FileSystem, Output, Storage},
    events::{Event, EventSink},
};

use super::{
    lease::Lease,
    task::{Reason, Task},
};
use crate::progress::Progress;

/// What hears a run's events: whoever asks how far the job is, and the log.
pub(super) struct Watched<'a> {
    task: &'a Task,
    lease: &'a Lease,
    checkpoints: PathBuf,
    log: Progress,
}

// === impl Watched ===

impl<'a> Watched<'a> {
    pub(super) fn new(task: &'a Task, lease: &'a Lease, checkpoints: &Path) -> Self {
        let log = Progress::in_lines();
        Self { task, lease, checkpoints: checkpoints.to_owned(), log }
    }

    /// A job that would take much longer than it may is refused before it is paid for.
    fn check_time(&self, steps: u64, seconds: f64) {
        let saved = checkpoint::newest_step(&self.checkpoints, &FileSystem).unwrap_or(0);
        let left = if steps == 0 { 0.0 } else { 1.0 - saved.min(steps) as f64 / steps as f64 };
        if self.task.is_too_long(seconds * left) {
            self.task.end(Reason::TooLong);
        }
    }
}

impl EventSink for Watched<'_> {
    fn emit(&self, event: &Event) {
        self.log.emit(event);
        self.task.note(event);
        // The volume is looked at where something begins; what the lease's own beat has seen is enough otherwise.
        let held = if matches!(event, Event::Stage { .. }) { self.lease.holds() } else { self.lease.is_held() };
        if !held {
            self.task.end(Reason::Lost);
        }
        if let Event::Planned { steps, seconds, .. } = event {
            self.check_time(*steps, *seconds);
        }
    }
}

/// The file system, as long as the job is this worker's.
#[derive(Debug)]
pub(super) struct FencedFiles {
    lease: Arc<Lease>,
    files: FileSystem,
}

// === impl FencedFiles ===

impl FencedFiles {
    pub(super) fn new(lease: Arc<Lease>) -> Self {
        Self { lease, files: FileSystem }
    }

    fn check(&self) -> io::Result<()> {
        let gone = || io::Error::other("another worker has taken this job over");
        if self.lease.holds() { Ok(()) } else { Err(gone()) }
    }
}

impl Storage for FencedFiles {
    fn prepare(&self, folder: &Path) -> io::Result<()> {
        self.files.prepare(folder)
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        self.check()?;
        self.files.create_folder(folder)
    }

    fn create_file(&self, file: &Path) -> io::Result<Box<dyn Output>> {
        self.files.create_file(file)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.files.sync_folder(folder)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check()?;
        self.files.rename(from, to)
    }

    fn remove_folder(&self, folder: &Path) -> io::Result<()> {
        self.check()?;
        self.files.remove_folder(folder)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.files.list(folder)
    }

    fn open(&self, file: &Path) -> io::Result<Box<dyn Read>> {
        self.files.open(file)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::life::LeaseTimes;

    #[test]
    fn whoever_lost_a_job_writes_nothing_that_counts() {
        let folder = tempfile::tempdir().unwrap();
        let lease = Arc::new(Lease::claim(folder.path(), "first", &LeaseTimes::default(), &|| false).unwrap());
        let files = FencedFiles::new(lease);
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        files.create_folder(&from).unwrap();
        fs::write(folder.path().join("lease-0000000002"), "{}").unwrap();
        for ended in [files.rename(&from, &to), files.remove_folder(&from), files.create_folder(&to)] {
            assert!(ended.unwrap_err().to_string().contains("another worker"));
        }
        assert!(from.is_dir() && !to.exists());
    }
}
