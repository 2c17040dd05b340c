//! A file on its way: `<name>.part` with the bytes so far, `<name>.part.json` with what they are.
//!
//! The note is written after the bytes are synced, says how many there are and what they hash to, and is read back
//! through that hash. So a fetch that was cut off by anything, a power failure included, goes on from bytes that are
//! known to be right, or from the beginning.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use brightrun_trainer::artifacts::atomic;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::gzip::{self, Decoded};

/// A note is written after so many bytes.
const NOTE_EVERY: u64 = 32 << 20;
/// Longest note that is read.
const MAX_NOTE_BYTES: u64 = 16 << 10;
const BUFFER: usize = 1 << 20;
/// A file that is compressed, sent compressed: more layers than these have no reason.
const MAX_LAYERS: usize = 2;

/// What tells one content from another at the same address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Validator {
    /// A strong entity tag.
    ETag(String),
    /// A date, where there is no tag.
    LastModified(String),
}

impl Validator {
    /// The header's value.
    pub(super) fn value(&self) -> &str {
        match self {
            Self::ETag(value) | Self::LastModified(value) => value,
        }
    }
}

/// What a server says about the content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) validator: Option<Validator>,
    /// Length of all of it, as it comes over the wire.
    pub(super) total: Option<u64>,
    /// The header says gzip.
    pub(super) gzip: bool,
}

#[derive(Serialize, Deserialize)]
struct Note {
    /// SHA-256 of the address without what changes from link to link.
    place: String,
    validator: Validator,
    total: Option<u64>,
    gzip: bool,
    bytes: u64,
    sha256: String,
}

/// A file on its way.
pub(super) struct Partial {
    target: PathBuf,
    place: String,
    file: File,
    hasher: Sha256,
    bytes: u64,
    noted: u64,
    pub(super) content: Content,
    done: bool,
}

/// How a file arrived.
pub(super) enum Finished {
    /// It is at its target.
    Whole { bytes: u64, sha256: [u8; 32] },
    /// Decompressed, it is larger than allowed.
    TooLarge,
    /// It cannot be decompressed.
    Damaged(String),
    /// The caller wanted to stop.
    Stopped,
}

// === impl Partial ===

impl Partial {
    /// Opens the file beside `target`, with what an earlier fetch of the same place left there. `None`: another process
    /// has it open.
    pub(super) fn open(target: &Path, place: &str) -> io::Result<Option<Self>> {
        let part = beside(target, ".part")?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&part)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Whoever held the lock before may have renamed or removed the file in between.
        if !is_at(&file, &part)? {
            return Ok(None);
        }
        let place = hex::encode(Sha256::digest(place.as_bytes()));
        let mut partial = Self {
            target: target.to_owned(),
            place,
            file,
            hasher: Sha256::new(),
            bytes: 0,
            noted: 0,
            content: Content::default(),
            done: false,
        };
        if !partial.take_up()? {
            partial.restart(Content::default())?;
        }
        Ok(Some(partial))
    }

    /// Goes on from a note, if there is one and the bytes are what it says.
    fn take_up(&mut self) -> io::Result<bool> {
        let Some(note) = read_note(&beside(&self.target, ".part.json")?) else { return Ok(false) };
        if note.place != self.place || note.bytes == 0 || note.bytes > self.file.metadata()?.len() {
            return Ok(false);
        }
        let (mut hasher, mut buffer, mut left) = (Sha256::new(), vec![0; BUFFER], note.bytes);
        while left > 0 {
            let count = self.file.read(&mut buffer[..BUFFER.min(left as usize)])?;
            if count == 0 {
                return Ok(false);
            }
            hasher.update(&buffer[..count]);
            left -= count as u64;
        }
        if hex::encode(hasher.clone().finalize()) != note.sha256 {
            return Ok(false);
        }
        self.file.set_len(note.bytes)?;
        (self.bytes, self.noted, self.hasher) = (note.bytes, note.bytes, hasher);
        self.content = Content { validator: Some(note.validator), total: note.total, gzip: note.gzip };
        Ok(true)
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Begins anew, with other content.
    pub(super) fn restart(&mut self, content: Content) -> io::Result<()> {
        remove_if_there(&beside(&self.target, ".part.json")?)?;
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.bytes, self.noted, self.hasher, self.content) = (0, 0, Sha256::new(), content);
        Ok(())
    }

    /// Adds bytes.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        if self.bytes - self.noted >= NOTE_EVERY { self.note() } else { Ok(()) }
    }

    /// Makes what is there durable and says what it is, so that a later fetch can go on from it.
    fn note(&mut self) -> io::Result<()> {
        let Some(validator) = self.content.validator.clone().filter(|_| self.bytes > 0) else { return Ok(()) };
        self.file.sync_data()?;
        let note = Note {
            place: self.place.clone(),
            validator,
            total: self.content.total,
            gzip: self.content.gzip,
            bytes: self.bytes,
            sha256: hex::encode(self.hasher.clone().finalize()),
        };
        let text = serde_json::to_vec(&note)?;
        atomic::write(&beside(&self.target, ".part.json")?, &text).map_err(io::Error::other)?;
        self.noted = self.bytes;
        Ok(())
    }

    /// Leaves the file for a later fetch, if one could go on from it.
    pub(super) fn keep(mut self) -> io::Result<()> {
        self.note()
    }

    /// Leaves nothing.
    pub(super) fn discard(mut self) -> io::Result<()> {
        (self.done, self.noted) = (true, 0);
        remove_if_there(&beside(&self.target, ".part.json")?)?;
        remove_if_there(&beside(&self.target, ".part")?)
    }

    /// Decompresses if need be, syncs, and gives the file its name.
    pub(super) fn finish(mut self, most: u64, stop: &dyn Fn() -> bool) -> io::Result<Finished> {
        let part = beside(&self.target, ".part")?;
        // Whatever happens now, a later fetch begins anew.
        self.noted = 0;
        self.file.seek(SeekFrom::Start(0))?;
        let compressed = gzip::is_gzip(&mut self.file)?;
        if !compressed && self.content.gzip {
            return Ok(Finished::Damaged("the server says gzip, and it is none".into()));
        }
        if !compressed {
            self.file.sync_all()?;
            let sha256 = self.hasher.clone().finalize().into();
            self.arrive(&part)?;
            return Ok(Finished::Whole { bytes: self.bytes, sha256 });
        }
        self.decompress(most, stop)
    }

    fn decompress(mut self, most: u64, stop: &dyn Fn() -> bool) -> io::Result<Finished> {
        let (mut file, mut layer) = (self.file.try_clone()?, 0);
        loop {
            // The lock goes with the first file, which stays open; these are only seen by whoever holds it.
            let path = beside(&self.target, &format!(".part.{layer}"))?;
            let guard = RemoveOnDrop(path.clone());
            let mut output = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
            file.seek(SeekFrom::Start(0))?;
            let (bytes, hasher) = match gzip::decode(file, &mut output, most, stop)? {
                Decoded::Whole(bytes, hasher) => (bytes, hasher),
                Decoded::TooLarge => return Ok(Finished::TooLarge),
                Decoded::Damaged(why) => return Ok(Finished::Damaged(why)),
                Decoded::Stopped => return Ok(Finished::Stopped),
            };
            output.seek(SeekFrom::Start(0))?;
            layer += 1;
            if !gzip::is_gzip(&mut output)? {
                output.sync_all()?;
                self.arrive(&path)?;
                return Ok(Finished::Whole { bytes, sha256: hasher.finalize().into() });
            }
            if layer == MAX_LAYERS {
                return Ok(Finished::Damaged("it is compressed more than twice".into()));
            }
            // The layer before is read through its open file; its name may go now.
            drop(guard);
            file = output;
        }
    }

    fn arrive(&mut self, from: &Path) -> io::Result<()> {
        fs::rename(from, &self.target)?;
        remove_if_there(&beside(&self.target, ".part.json")?)?;
        let part = beside(&self.target, ".part")?;
        if from != part {
            remove_if_there(&part)?;
        }
        self.done = true;
        atomic::sync_folder_of(&self.target).map_err(io::Error::other)
    }
}

/// What is of no use to a later fetch is not left behind.
impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done && self.noted == 0 {
            for suffix in [".part.json", ".part"] {
                // There is nobody to tell; the next fetch of this file begins by clearing it.
                let _ = beside(&self.target, suffix).and_then(|path| remove_if_there(&path));
            }
        }
    }
}

struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = remove_if_there(&self.0);
    }
}

fn beside(target: &Path, suffix: &str) -> io::Result<PathBuf> {
    let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "is not the name of a file");
    let mut name = target.file_name().ok_or_else(no_name)?.to_owned();
    name.push(suffix);
    Ok(target.with_file_name(name))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A note that cannot be read is as good as none.
fn read_note(path: &Path) -> Option<Note> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(MAX_NOTE_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let open = file.metadata()?;
    Ok(fs::metadata(path).is_ok_and(|named| (named.dev(), named.ino()) == (open.dev(), open.ino())))
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> io::Result<bool> {
    Ok(path.exists())
}

#[cfg(test)]
mod tests;
