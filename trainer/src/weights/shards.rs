//! The safetensors files of a checkpoint: headers checked once, data read by position, one tensor at a time.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::config::json::{read_object, shown};
use crate::{Error, Result};

/// Bytes of a header; the format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes of an index; the 80B in NF4 has half a million tensors of about 120 bytes each.
const MAX_INDEX_BYTES: u64 = 256 * 1024 * 1024;
/// Files of a checkpoint.
const MAX_SHARDS: usize = 10_000;
/// The file of a checkpoint that is not split.
const SINGLE: &str = "model.safetensors";
/// The list of the files of one that is.
const INDEX: &str = "model.safetensors.index.json";

/// A safetensors file whose header was read and found to describe exactly the bytes that follow it.
#[derive(Debug)]
pub(crate) struct SafetensorsFile {
    path: PathBuf,
    file: File,
    data_start: u64,
    metadata: Metadata,
}

// === impl SafetensorsFile ===

impl SafetensorsFile {
    /// Opens a file and checks its header against its length.
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).map_err(Error::io("cannot open", &path))?;
        let length = file.metadata().map_err(Error::io("cannot read", &path))?.len();
        let mut prefix = [0; 8];
        if length < prefix.len() as u64 {
            return Err(Error::file(path, format!("found {length} bytes, expected a safetensors file of at least 8")));
        }
        file.read_exact_at(&mut prefix, 0).map_err(Error::io("cannot read", &path))?;
        let header_bytes = u64::from_le_bytes(prefix);
        let room = (length - 8).min(MAX_HEADER_BYTES);
        if header_bytes > room {
            return Err(Error::file(
                path,
                format!("header: found a length of {header_bytes} bytes, expected at most {room}"),
            ));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact_at(&mut header, 8).map_err(Error::io("cannot read", &path))?;
        // The crate checks that offsets are in order, without holes or overlaps, and fit dtype and shape.
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| Error::file(&path, format!("header: not a valid safetensors header: {error}")))?;
        let data_start = 8 + header_bytes;
        if data_start.checked_add(metadata.data_len() as u64) != Some(length) {
            return Err(Error::file(
                path,
                format!(
                    "truncated or followed by foreign bytes: the header describes {} bytes of tensors, found {}",
                    metadata.data_len(),
                    length - data_start
                ),
            ));
        }
        Ok(Self { path, file, data_start, metadata })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor, in no particular order.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (String, Stored)> + '_ {
        self.metadata.tensors().into_iter().map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let stored = Stored {
                file: 0,
                dtype: info.dtype,
                shape: info.shape.clone(),
                start: self.data_start + start as u64,
                bytes: end - start,
            };
            (name, stored)
        })
    }

    /// Fills `buffer` from `offset` bytes into the tensor.
    pub(crate) fn read_at(&self, name: &str, stored: &Stored, offset: usize, buffer: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(buffer, stored.start + offset as u64)
            .map_err(|error| Error::file(&self.path, format!("{name}: cannot be read: {error}")))
    }
}

/// Where a tensor lies, as its file's header says.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// Which of the checkpoint's files.
    pub(crate) file: usize,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    start: u64,
    pub(crate) bytes: usize,
}

/// All files of a checkpoint.
#[derive(Debug)]
pub(super) struct Shards {
    pub(super) files: Vec<SafetensorsFile>,
    pub(super) tensors: HashMap<String, Stored>,
}

// === impl Shards ===

impl Shards {
    /// Opens `model.safetensors`, or else every file that `model.safetensors.index.json` names.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let single = dir.join(SINGLE);
        if single.exists() {
            return Self::gather(dir, vec![SafetensorsFile::open(single)?]);
        }
        let index = dir.join(INDEX);
        if !index.exists() {
            return Err(Error::file(dir, format!("no weights: expected {SINGLE} or {INDEX}")));
        }
        let placed = read_index(&index)?;
        let mut names: Vec<&str> = placed.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        if names.len() > MAX_SHARDS {
            return Err(Error::file(index, format!("found {} shards, expected at most {MAX_SHARDS}", names.len())));
        }
        let mut problems = Vec::new();
        let mut files = Vec::new();
        for name in names {
            match SafetensorsFile::open(dir.join(name)) {
                Ok(file) => files.push(file),
                Err(error) => problems.push(error.to_string()),
            }
        }
        if !problems.is_empty() {
            return Err(Error::problems(index, &problems));
        }
        let shards = Self::gather(dir, files)?;
        shards.check_against(&index, &placed)?;
        Ok(shards)
    }

    fn gather(dir: &Path, files: Vec<SafetensorsFile>) -> Result<Self> {
        let mut tensors = HashMap::<String, Stored>::new();
        let mut problems = Vec::new();
        for (number, file) in files.iter().enumerate() {
            for (name, stored) in file.tensors() {
                if let Some(other) = tensors.get(&name) {
                    let (first, second) = (files[other.file].path().display(), file.path().display());
                    problems.push(format!("{name}: found in both {first} and {second}, expected in one"));
                }
                tensors.insert(name, Stored { file: number, ..stored });
            }
        }
        problems.sort();
        if problems.is_empty() { Ok(Self { files, tensors }) } else { Err(Error::problems(dir, &problems)) }
    }

    /// Every tensor of the index lies in the shard it names.
    fn check_against(&self, index: &Path, placed: &HashMap<String, String>) -> Result<()> {
        let mut problems = Vec::new();
        for (name, shard) in placed {
            match self.tensors.get(name).map(|stored| self.files[stored.file].path()) {
                Some(path) if path.ends_with(shard) => {}
                Some(path) => problems.push(format!("{name}: expected in {shard}, found in {}", path.display())),
                None => problems.push(format!("{name}: expected in {shard}, found in no shard")),
            }
        }
        problems.sort();
        if problems.is_empty() { Ok(()) } else { Err(Error::problems(index, &problems)) }
    }
}

/// `weight_map`: the file of each tensor, checked to lie in the checkpoint's own folder.
fn read_index(path: &Path) -> Result<HashMap<String, String>> {
    let object = read_object(path, MAX_INDEX_BYTES)?;
    let Some(map) = object.get("weight_map").and_then(|value| value.as_object()).filter(|map| !map.is_empty()) else {
        let found = object.get("weight_map").map_or_else(|| "nothing".to_owned(), shown);
        return Err(Error::file(path, format!("weight_map: found {found}, expected an object from tensor to file")));
    };
    let mut placed = HashMap::with_capacity(map.len());
    let mut problems = Vec::new();
    for (name, value) in map {
        match value.as_str().filter(|file| is_plain_name(file)) {
            Some(file) => {
                placed.insert(name.clone(), file.to_owned());
            }
            None => problems.push(format!(
                "weight_map.{name}: found {}, expected the name of a .safetensors file in this folder",
                shown(value)
            )),
        }
    }
    if problems.is_empty() { Ok(placed) } else { Err(Error::problems(path, &problems)) }
}

/// Names a file of this folder and nothing else, whatever the platform's separators.
fn is_plain_name(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.contains(['/', '\\', ':', '\0']) && !name.starts_with('.')
}
