//! Reading checkpoints: every byte is compared with the manifest's hashes before any of it is believed.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::{
    Fingerprint, MAX_FINGERPRINT_BYTES, MAX_METRICS_BYTES, MAX_PROGRESS_BYTES,
    captured::{adapter_shapes, optimizer_places},
    folder::{Entry, Folder},
    manifest::{
        self, ADAPTER, FILES, FINGERPRINT, FORMAT, MANIFEST, METRICS, Manifest, OPTIMIZER, PROGRESS, Refusal, Sum,
    },
    storage::Storage,
    tensors::{Shape, Unexpected, expect_header, read_array},
};
use crate::{
    Error, Result,
    adapters::{Adapters, Parameter},
    error::listed,
    optim::{OptimizerState, StatePart, StateValues},
};

/// Bytes that are hashed at a time.
const PIECE: usize = 1 << 16;

/// A checkpoint that is whole. Adapter and optimiser are still on disk; [`Restored::restore`] reads them an array at a
/// time, before the next checkpoint is saved.
#[derive(Debug)]
pub struct Restored {
    /// The optimiser steps that were taken.
    pub step: u64,
    /// It was marked as the best one when it was saved.
    pub best: bool,
    /// What was measured until then.
    pub metrics: Vec<u8>,
    progress: Vec<u8>,
    folder: PathBuf,
    manifest: Manifest,
    storage: Arc<dyn Storage>,
}

/// Why a checkpoint is not used.
pub(super) enum Trouble {
    /// It is not what was written; it will be removed once there is a newer one.
    Damaged(Error),
    /// The file system could not read it.
    Unreadable(Error),
    /// It is whole, and of a run with other settings.
    OtherRun(Vec<String>),
}

type Examined<T> = std::result::Result<T, Trouble>;

// === impl Folder ===

impl Folder {
    pub(super) fn manifest(&self, entry: &Entry) -> Examined<Manifest> {
        let path = self.place(entry).join(MANIFEST);
        let text = self.content(&path, manifest::MAX_BYTES)?;
        let damaged = |reason: String| Trouble::Damaged(Error::file(&path, format!("damaged: {reason}")));
        match Manifest::parse(&text) {
            Ok(manifest) if manifest.step == entry.step => Ok(manifest),
            Ok(manifest) => Err(damaged(format!("it is that of step {}", manifest.step))),
            Err(Refusal::Damaged(reason)) => Err(damaged(reason)),
            Err(Refusal::OtherFormat(format)) => {
                Err(Trouble::OtherRun(vec![format!("checkpoint format: {format} then, {FORMAT} now")]))
            }
        }
    }

    /// Reads all of a checkpoint and compares it with its manifest; whether it belongs to this run is asked first.
    pub(super) fn examine(&self, entry: &Entry, now: &Fingerprint) -> Examined<Restored> {
        let manifest = self.manifest(entry)?;
        let folder = self.place(entry);
        let (mut progress, mut metrics) = (Vec::new(), Vec::new());
        for (name, sum) in FILES.into_iter().zip(&manifest.sums) {
            let path = folder.join(name);
            match name {
                FINGERPRINT => {
                    let differences =
                        fingerprint(&path, &self.whole(&path, sum, MAX_FINGERPRINT_BYTES)?)?.difference(now);
                    if !differences.is_empty() {
                        return Err(Trouble::OtherRun(differences));
                    }
                }
                PROGRESS => progress = self.whole(&path, sum, MAX_PROGRESS_BYTES)?,
                METRICS => metrics = self.whole(&path, sum, MAX_METRICS_BYTES)?,
                _ => self.verify(&path, sum)?,
            }
        }
        let (step, best, storage) = (manifest.step, manifest.best, self.storage.clone());
        Ok(Restored { step, best, metrics, progress, folder, manifest, storage })
    }

    /// A file that is not larger than it may be.
    fn content(&self, path: &Path, most: u64) -> Examined<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.storage.open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
        read.map_err(|error| trouble(path, error))?;
        if bytes.len() as u64 > most {
            return Err(Trouble::Damaged(Error::file(path, format!("damaged: more than {most} bytes"))));
        }
        Ok(bytes)
    }

    /// A file that is what the manifest says.
    fn whole(&self, path: &Path, sum: &Sum, most: u64) -> Examined<Vec<u8>> {
        let bytes = self.content(path, most)?;
        let found = Sum { bytes: bytes.len() as u64, sha256: hex::encode(Sha256::digest(&bytes)) };
        same(path, &found, sum).map(|()| bytes)
    }

    /// The same for a file that is not kept in memory.
    fn verify(&self, path: &Path, sum: &Sum) -> Examined<()> {
        let hashed = self.storage.open(path).and_then(|file| {
            let mut file = Hashed::new(file);
            file.read_on(sum.bytes)?;
            Ok(file.sum())
        });
        same(path, &hashed.map_err(|error| trouble(path, error))?, sum)
    }
}

fn fingerprint(path: &Path, bytes: &[u8]) -> Examined<Fingerprint> {
    serde_json::from_slice(bytes).map_err(|error| Trouble::Damaged(Error::file(path, format!("damaged: {error}"))))
}

fn same(path: &Path, found: &Sum, expected: &Sum) -> Examined<()> {
    let reason = if found.bytes != expected.bytes {
        format!("damaged: the manifest says {} bytes, found {}", expected.bytes, found.bytes)
    } else if found.sha256 != expected.sha256 {
        "damaged: its SHA-256 is not the manifest's".to_owned()
    } else {
        return Ok(());
    };
    Err(Trouble::Damaged(Error::file(path, reason)))
}

/// A file that is missing is damage; anything else may pass.
fn trouble(path: &Path, error: io::Error) -> Trouble {
    let missing = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let error = Error::io("cannot read", path)(error);
    if missing { Trouble::Damaged(error) } else { Trouble::Unreadable(error) }
}

// === impl Restored ===

impl Restored {
    /// What the caller noted about where the run stands.
    pub fn progress<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.progress)
            .map_err(|error| Error::file(self.folder.join(PROGRESS), format!("is not the progress of a run: {error}")))
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Puts adapter and optimiser back as they were, bit by bit. Names, types and shapes of both are compared before
    /// anything is changed. An error after that means that a file changed while it was read; then neither is of use.
    pub fn restore(&self, adapters: &Adapters, optimizer: &mut dyn OptimizerState) -> Result<()> {
        let parameters = adapters.parameters();
        let (places, shapes): (Vec<(usize, StatePart)>, Vec<Shape>) =
            optimizer_places(&parameters, optimizer).map(|(index, part, shape)| ((index, part), shape)).unzip();
        let mut state = Source::open(self, OPTIMIZER, &shapes)?;
        let adapter = Source::open(self, ADAPTER, &adapter_shapes(&parameters))?;
        for ((index, part), shape) in places.into_iter().zip(&shapes) {
            let values = state.next(shape)?;
            self.check_updates(shape, &values)?;
            optimizer.set_part(index, part, &values)?;
        }
        state.finish()?;
        set(&parameters, adapter)
    }

    /// Puts only the adapter back.
    pub fn restore_adapters(&self, adapters: &Adapters) -> Result<()> {
        let parameters = adapters.parameters();
        set(&parameters, Source::open(self, ADAPTER, &adapter_shapes(&parameters))?)
    }

    /// A step updates a parameter once at most.
    fn check_updates(&self, shape: &Shape, values: &StateValues) -> Result<()> {
        let StateValues::Counts(counts) = values else { return Ok(()) };
        match counts.iter().find(|count| **count > self.step) {
            None => Ok(()),
            Some(count) => Err(Error::file(
                self.folder.join(OPTIMIZER),
                format!("{}: {count} updates in {} steps", shape.name, self.step),
            )),
        }
    }
}

fn set(parameters: &[Parameter], mut adapter: Source) -> Result<()> {
    for (parameter, shape) in parameters.iter().zip(&adapter_shapes(parameters)) {
        let StateValues::Floats(values) = adapter.next(shape)? else { continue };
        parameter.set_values(&values)?;
    }
    adapter.finish()
}

/// A file of arrays whose header is the expected one.
struct Source {
    path: PathBuf,
    file: Hashed,
    expected: Sum,
}

// === impl Source ===

impl Source {
    fn open(restored: &Restored, name: &str, shapes: &[Shape]) -> Result<Self> {
        let path = restored.folder.join(name);
        let Some(expected) = restored.manifest.sum(name).cloned() else {
            return Err(Error::file(path, "is not in the manifest"));
        };
        let file = restored.storage.open(&path).map_err(Error::io("cannot read", &path))?;
        let mut file = Hashed::new(file);
        match expect_header(&mut file, expected.bytes, shapes) {
            Ok(()) => Ok(Self { path, file, expected }),
            Err(Unexpected::Io(error)) => Err(Error::io("cannot read", path)(error)),
            Err(Unexpected::Content(reason)) => Err(Error::file(path, reason)),
        }
    }

    fn next(&mut self, shape: &Shape) -> Result<StateValues> {
        read_array(&mut self.file, shape).map_err(Error::io("cannot read", &self.path))
    }

    /// All of it was what was hashed before.
    fn finish(mut self) -> Result<()> {
        self.file.read_on(self.expected.bytes).map_err(Error::io("cannot read", &self.path))?;
        if self.file.sum() == self.expected {
            return Ok(());
        }
        Err(Error::file(self.path, "changed while it was read; run again"))
    }
}

/// A file that is hashed while it is read.
struct Hashed {
    file: Box<dyn Read>,
    bytes: u64,
    sha256: Sha256,
}

// === impl Hashed ===

impl Hashed {
    fn new(file: Box<dyn Read>) -> Self {
        Self { file, bytes: 0, sha256: Sha256::new() }
    }

    /// Reads on until the file ends or has more than `most` bytes.
    fn read_on(&mut self, most: u64) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        while self.bytes <= most {
            match self.read(&mut piece) {
                Ok(0) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => drop(read?),
            }
        }
        Ok(())
    }

    fn sum(&mut self) -> Sum {
        Sum { bytes: self.bytes, sha256: hex::encode(std::mem::take(&mut self.sha256).finalize()) }
    }
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.sha256.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

// === impl Trouble ===

impl Trouble {
    /// What is to be told about a checkpoint that is passed over; `None` for one that ends the search.
    pub(super) fn note(&self) -> Option<String> {
        match self {
            Self::Damaged(error) | Self::Unreadable(error) => Some(format!("{error}; this checkpoint is passed over")),
            Self::OtherRun(_) => None,
        }
    }

    /// The refusal to go on from a folder of checkpoints.
    pub(super) fn refusal(folder: &Path, differences: &[String]) -> Error {
        Error::file(
            folder,
            format!(
                "the checkpoints here are of a run with other settings: {}\nTo go on with that run, give its settings. \
                 To start a new one, give it another job id, or remove this folder.",
                listed(differences)
            ),
        )
    }
}
