//! Writing a store: a folder of one's own, fsync, rename.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use sha2::{Digest, Sha256};

use super::{DOCUMENTS, FACTS, Key, Lookup, MANIFEST, TOKENS, TokenStore, documents::record, manifest};
use crate::{
    Error, Result,
    artifacts::atomic::sync_folder,
    dataset::facts::{Document, FileFacts},
    file_sum::Sum,
};

/// Tells the folders of one process apart.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// How often a finished store tries to take its place while others take it too.
const ATTEMPTS: usize = 8;

/// A temporary folder in which nothing was written for so long has no writer any more.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// The end of every temporary folder's name.
const TEMPORARY: &str = ".tmp";

/// A store in the making. Dropped without [`StoreWriter::finish`] it leaves nothing.
pub struct StoreWriter {
    cache: PathBuf,
    folder: PathBuf,
    tokens: Summed,
    documents: Summed,
    offset: u64,
}

/// A file that is summed while it is written.
struct Summed {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
    sha256: Sha256,
}

// === impl StoreWriter ===

impl StoreWriter {
    /// Begins a store in a cache folder, which is made if need be, and clears away what dead writers left.
    pub fn begin(cache: &Path) -> Result<Self> {
        fs::create_dir_all(cache).map_err(Error::io("cannot create", cache))?;
        let folder = temporary_folder(cache)?;
        fs::create_dir(&folder).map_err(Error::io("cannot create", &folder))?;
        let files = Summed::create(folder.join(TOKENS)).and_then(|tokens| {
            let documents = Summed::create(folder.join(DOCUMENTS))?;
            Ok((tokens, documents))
        });
        let (tokens, documents) = files.inspect_err(|_| drop(fs::remove_dir_all(&folder)))?;
        remove_abandoned(cache, &folder);
        Ok(Self { cache: cache.to_owned(), folder, tokens, documents, offset: 0 })
    }

    /// Appends a document; its offset is where the last one ended, whatever `document` says.
    pub fn push(&mut self, document: Document, tokens: &[u32]) -> Result<()> {
        const WORDS: usize = 1024;
        let mut bytes = [0; 4 * WORDS];
        for chunk in tokens.chunks(WORDS) {
            for (place, token) in bytes.chunks_exact_mut(4).zip(chunk) {
                place.copy_from_slice(&token.to_le_bytes());
            }
            self.tokens.write(&bytes[..4 * chunk.len()])?;
        }
        self.documents.write(&record(&Document { offset: self.offset, ..document }))?;
        self.offset += tokens.len() as u64;
        Ok(())
    }

    /// Completes the store and puts it in its place. Where another writer was quicker, that one's is used.
    pub fn finish(mut self, key: &Key, facts: &FileFacts) -> Result<TokenStore> {
        let mut file = Summed::create(self.folder.join(FACTS))?;
        let text = serde_json::to_vec_pretty(facts)
            .map_err(|error| Error::Invalid(format!("the facts of the dataset cannot be written: {error}")))?;
        file.write(&text)?;
        let files = [(TOKENS, self.tokens.close()?), (DOCUMENTS, self.documents.close()?), (FACTS, file.close()?)];
        let mut file = Summed::create(self.folder.join(MANIFEST))?;
        file.write(manifest::text(key, &files).as_bytes())?;
        file.close()?;
        sync_folder(&self.folder)?;
        self.put_in_place(key)
    }

    /// Takes the key's place, or finds another writer's store there. A damaged one is moved away first: removing takes
    /// time, in which another process may put a good one there.
    fn put_in_place(&self, key: &Key) -> Result<TokenStore> {
        let place = self.cache.join(key.name());
        for _ in 0..ATTEMPTS {
            let renamed = match fs::rename(&self.folder, &place) {
                Ok(()) => sync_folder(&self.cache).map(|()| true)?,
                Err(error) if is_taken(&error) => false,
                Err(error) => return Err(Error::io("cannot write", &place)(error)),
            };
            match TokenStore::look_up(&self.cache, key)? {
                Lookup::Present(store, _) => return Ok(store),
                Lookup::Damaged(reason) if renamed => {
                    return Err(Error::file(&place, format!("does not read back as it was written: {reason}")));
                }
                Lookup::Damaged(_) => remove_damaged(&place, &self.cache)?,
                Lookup::Absent => {}
            }
        }
        Err(Error::file(&place, "other processes change this folder all the time; give this one a cache of its own"))
    }
}

impl Drop for StoreWriter {
    fn drop(&mut self) {
        // Gone already where it was renamed.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

// === impl Summed ===

impl Summed {
    fn create(path: PathBuf) -> Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = BufWriter::with_capacity(1 << 18, file.map_err(Error::io("cannot create", &path))?);
        Ok(Self { path, file, bytes: 0, sha256: Sha256::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.sha256.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).map_err(Error::io("cannot write", &self.path))
    }

    /// Flushes and syncs.
    fn close(&mut self) -> Result<Sum> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        synced.map_err(Error::io("cannot write", &self.path))?;
        Ok(Sum { bytes: self.bytes, sha256: std::mem::take(&mut self.sha256).finalize().into() })
    }
}

/// Renaming onto a folder that is not empty, or onto a file, is refused with one of these, depending on the file system.
fn is_taken(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
    matches!(error.kind(), DirectoryNotEmpty | AlreadyExists | NotADirectory)
}

fn remove_damaged(place: &Path, cache: &Path) -> Result<()> {
    let damaged = temporary_folder(cache)?;
    if fs::rename(place, &damaged).is_err() {
        // Another process was quicker; whoever looks again sees what is there now.
        return Ok(());
    }
    let removed = if damaged.is_dir() { fs::remove_dir_all(&damaged) } else { fs::remove_file(&damaged) };
    removed.map_err(Error::io("cannot remove", &damaged))
}

/// A name that no other writer uses. Processes of other machines may share the folder and the process number; the name is
/// taken only by creating or renaming, which one of them wins.
fn temporary_folder(cache: &Path) -> Result<PathBuf> {
    loop {
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let folder = cache.join(format!(".{}-{count}{TEMPORARY}", process::id()));
        if !folder.try_exists().map_err(Error::io("cannot look at", &folder))? {
            return Ok(folder);
        }
    }
}

/// Removes temporary folders whose last change lies far before that of `own`: by the clock of the file system, which
/// machines that share it share too. What cannot be removed stays; it is in nobody's way.
fn remove_abandoned(cache: &Path, own: &Path) {
    let Some(now) = last_change(own) else { return };
    let Ok(entries) = fs::read_dir(cache) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let temporary = path.file_name().map(OsString::from).and_then(|name| name.into_string().ok());
        if temporary.is_some_and(|name| name.starts_with('.') && name.ends_with(TEMPORARY))
            && last_change(&path).is_some_and(|then| now.duration_since(then).is_ok_and(|age| age > ABANDONED))
        {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// The latest change of a folder or of a file in it.
fn last_change(folder: &Path) -> Option<SystemTime> {
    let own = fs::metadata(folder).ok()?.modified().ok()?;
    let files = fs::read_dir(folder).ok()?.flatten();
    files.filter_map(|file| file.metadata().ok()?.modified().ok()).chain([own]).max()
}
