//! The folder with a run's checkpoints: which there are, how one comes into being and how the old ones go.

use std::{
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest, Sha256};

use super::{
    Captured, Saved,
    manifest::{ADAPTER, FILES, FINGERPRINT, MANIFEST, METRICS, Manifest, OPTIMIZER, PROGRESS, Sum},
    storage::{Output, Storage},
};
use crate::{Error, Result};

/// The end of the names of folders that are no checkpoints yet, or no longer.
const TEMPORARY: &str = ".tmp";
/// Names tried for a temporary folder.
const MAX_NAMES: usize = 1000;
/// Bytes that are handed to the storage at a time.
const BUFFER: usize = 1 << 18;

/// The folder of one run. One process at a time writes there.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    pub(super) storage: Arc<dyn Storage>,
    keep: usize,
    fingerprint: Vec<u8>,
    /// The oldest first.
    entries: Mutex<Vec<Entry>>,
}

/// A checkpoint in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) step: u64,
    /// Tells checkpoints after the same step apart.
    pub(super) again: u32,
    pub(super) best: bool,
    /// Found to be of no use.
    pub(super) damaged: bool,
}

// === impl Entry ===

impl Entry {
    pub(super) fn name(&self) -> String {
        match self.again {
            0 => format!("step-{:08}", self.step),
            again => format!("step-{:08}-{again}", self.step),
        }
    }

    /// The entry with this name, if a checkpoint can have it.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let numbers = name.strip_prefix("step-")?;
        let (step, again) = numbers.split_once('-').unwrap_or((numbers, "0"));
        let entry = Self { step: step.parse().ok()?, again: again.parse().ok()?, best: false, damaged: false };
        (entry.name() == name).then_some(entry)
    }
}

// === impl Folder ===

impl Folder {
    /// Makes the folder if need be, clears away what interrupted writers left and looks at what is there. What could not
    /// be cleared away is told.
    pub(super) fn open(
        path: &Path,
        keep: usize,
        fingerprint: Vec<u8>,
        storage: Arc<dyn Storage>,
    ) -> Result<(Self, Vec<String>)> {
        storage.prepare(path).map_err(Error::io("cannot create", path))?;
        let mut notes = Vec::new();
        let mut entries = Vec::new();
        for name in storage.list(path).map_err(Error::io("cannot list", path))? {
            if name.starts_with('.') && name.ends_with(TEMPORARY) {
                let left = path.join(&name);
                if let Err(error) = storage.remove_folder(&left) {
                    notes.push(format!("{}: left by an interrupted save, cannot be removed: {error}", left.display()));
                }
            }
            entries.extend(Entry::parse(&name));
        }
        entries.sort_by_key(|entry| (entry.step, entry.again));
        let folder = Self { path: path.to_owned(), storage, keep, fingerprint, entries: Mutex::new(entries) };
        folder.mark_best();
        Ok((folder, notes))
    }

    /// Notes which checkpoints say that they were the best. One whose manifest is of no use says nothing; whoever wants
    /// to read it will be told why.
    fn mark_best(&self) {
        for entry in self.entries().iter_mut() {
            entry.best = self.manifest(entry).is_ok_and(|manifest| manifest.best);
        }
    }

    pub(super) fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        // The list is whole at any moment.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn place(&self, entry: &Entry) -> PathBuf {
        self.path.join(entry.name())
    }

    pub(super) fn mark_damaged(&self, damaged: &Entry) {
        for entry in self.entries().iter_mut().filter(|entry| entry.name() == damaged.name()) {
            entry.damaged = true;
        }
    }

    /// Writes a checkpoint, gives it its name, and only when that is durable removes older ones.
    ///
    /// After an error the older ones are as they were. The new one is not there, except where only the last call failed,
    /// the one that makes its name durable: then it is whole, and may be gone after a loss of power.
    pub(super) fn save(&self, captured: &Captured) -> Result<Saved> {
        let entry = self.new_entry(captured);
        let place = self.place(&entry);
        let temporary = self
            .temporary(&entry, |folder| self.storage.create_folder(folder))
            .map_err(Error::io("cannot create a folder beside", &place))?;
        let written = self.fill(&temporary, captured).and_then(|bytes| {
            self.storage.rename(&temporary, &place).map_err(Error::io("cannot write", &place))?;
            Ok(bytes)
        });
        let bytes = written.inspect_err(|_| drop(self.storage.remove_folder(&temporary)))?;
        self.entries().push(entry);
        self.sync(&self.path)?;
        Ok(Saved { step: captured.step, bytes, notes: self.remove_superseded() })
    }

    /// A name that none of the checkpoints has.
    fn new_entry(&self, captured: &Captured) -> Entry {
        let entries = self.entries();
        let same = entries.iter().filter(|entry| entry.step == captured.step);
        let again = same.map(|entry| entry.again.saturating_add(1)).max().unwrap_or(0);
        Entry { step: captured.step, again, best: captured.best, damaged: false }
    }

    /// Hands free names for a temporary folder to `take` until it could take one. Process numbers of other machines may be
    /// the same, so the counter goes on where a name is taken.
    fn temporary(&self, entry: &Entry, take: impl Fn(&Path) -> io::Result<()>) -> io::Result<PathBuf> {
        for count in 0..MAX_NAMES {
            let folder = self.path.join(format!(".{}.{}-{count}{TEMPORARY}", entry.name(), process::id()));
            match take(&folder) {
                Ok(()) => return Ok(folder),
                Err(error) if is_taken(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other(format!("{MAX_NAMES} unfinished checkpoints stand beside it; remove them")))
    }

    /// Writes all files into the folder, the manifest last, and returns their size.
    fn fill(&self, folder: &Path, captured: &Captured) -> Result<u64> {
        let sums = FILES.iter().map(|&name| {
            self.write(&folder.join(name), |file| match name {
                ADAPTER => captured.adapter.write(file),
                OPTIMIZER => captured.optimizer.write(file),
                PROGRESS => file.write_all(&captured.progress),
                METRICS => file.write_all(&captured.metrics),
                FINGERPRINT => file.write_all(&self.fingerprint),
                other => Err(io::Error::other(format!("{other} has no content"))),
            })
        });
        let sums = sums.collect::<Result<Vec<Sum>>>()?;
        let bytes = sums.iter().map(|sum| sum.bytes).sum::<u64>();
        let path = folder.join(MANIFEST);
        let text = Manifest { step: captured.step, best: captured.best, sums }
            .text()
            .map_err(|error| Error::file(&path, format!("cannot be written: {error}")))?;
        let manifest = self.write(&path, |file| file.write_all(text.as_bytes()))?;
        self.sync(folder)?;
        Ok(bytes + manifest.bytes)
    }

    /// Writes and syncs one file.
    fn write(&self, path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Sum> {
        let written = self.storage.create_file(path).and_then(|file| {
            let mut file = BufWriter::with_capacity(BUFFER, Summed { file, bytes: 0, sha256: Sha256::new() });
            fill(&mut file)?;
            let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.file.sync()?;
            Ok(Sum { bytes: file.bytes, sha256: hex::encode(file.sha256.finalize()) })
        });
        written.map_err(Error::io("cannot write", path))
    }

    fn sync(&self, folder: &Path) -> Result<()> {
        self.storage.sync_folder(folder).map_err(Error::io("cannot sync", folder))
    }

    /// Removes what is no longer kept. What cannot be removed is told.
    fn remove_superseded(&self) -> Vec<String> {
        let superseded = superseded(&self.entries(), self.keep);
        let notes = superseded.iter().filter_map(|entry| self.remove(entry).err());
        notes.map(|error| format!("an old checkpoint: {error}")).collect()
    }

    /// Takes a checkpoint's name away first, durably: one that is half removed must never look like a damaged one. Where
    /// that fails, it is tried again after the next save; where removing fails, after the next start.
    fn remove(&self, entry: &Entry) -> Result<()> {
        let place = self.place(entry);
        let failed = |error| Error::io("cannot remove", &place)(error);
        let temporary = self.temporary(entry, |folder| self.storage.rename(&place, folder)).map_err(failed)?;
        self.entries().retain(|other| other != entry);
        self.sync(&self.path)?;
        self.storage.remove_folder(&temporary).map_err(failed)
    }
}

/// Making a folder, or renaming one onto another that is not empty, is refused with one of these.
fn is_taken(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty};
    matches!(error.kind(), AlreadyExists | DirectoryNotEmpty)
}

/// What goes, given the oldest first: all but the newest `keep` and the last one marked as best. Damaged ones do not
/// count, and go.
fn superseded(entries: &[Entry], keep: usize) -> Vec<Entry> {
    let whole: Vec<&Entry> = entries.iter().filter(|entry| !entry.damaged).collect();
    let best = whole.iter().rev().find(|entry| entry.best);
    let newest = &whole[whole.len().saturating_sub(keep)..];
    let stays = |entry: &Entry| newest.contains(&entry) || best.is_some_and(|best| *best == entry);
    entries.iter().filter(|entry| entry.damaged || !stays(entry)).cloned().collect()
}

/// A file that is summed while it is written.
struct Summed {
    file: Box<dyn Output>,
    bytes: u64,
    sha256: Sha256,
}

// === impl Summed ===

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.sha256.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
