//! `manifest.json`: it follows from the key and the other files, so it is checked by making it again.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{DOCUMENTS, FACTS, Key, MANIFEST, TOKENS, key::FORMAT};
use crate::{Error, Result};

/// Size and SHA-256 of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sum {
    /// Bytes.
    pub bytes: u64,
    /// SHA-256.
    pub sha256: [u8; 32],
}

/// The manifest of a store with these files.
pub(super) fn text(key: &Key, files: &[(&str, Sum)]) -> String {
    let entry = |(name, sum): &(&str, Sum)| {
        ((*name).to_owned(), json!({ "bytes": sum.bytes, "sha256": hex::encode(sum.sha256) }))
    };
    let files: Map<String, Value> = files.iter().map(entry).collect();
    format!("{:#}\n", json!({ "format": FORMAT, "key": key.parts(), "files": files }))
}

/// Reads all files of a store and compares them with its manifest.
pub(super) fn verify(folder: &Path, key: &Key) -> Result<()> {
    let path = folder.join(MANIFEST);
    let found = fs::read(&path).map_err(Error::io("cannot read", &path))?;
    let files = [TOKENS, DOCUMENTS, FACTS].map(|name| Ok((name, sum(&folder.join(name))?)));
    let files = files.into_iter().collect::<Result<Vec<_>>>()?;
    if found == text(key, &files).as_bytes() {
        return Ok(());
    }
    Err(Error::file(folder.join(culprit(&found, key, &files)), "is not the file that the store was made with"))
}

/// The file whose entry differs; the manifest where none does or it cannot be read.
fn culprit(manifest: &[u8], key: &Key, files: &[(&'static str, Sum)]) -> &'static str {
    let (Ok(found), Ok(expected)) =
        (serde_json::from_slice::<Value>(manifest), serde_json::from_str::<Value>(&text(key, files)))
    else {
        return MANIFEST;
    };
    let differs = |(name, _): &&(&str, Sum)| found["files"][name] != expected["files"][name];
    files.iter().find(differs).map_or(MANIFEST, |(name, _)| name)
}

/// Size and SHA-256 of a file, read in pieces.
pub(super) fn sum(path: &Path) -> Result<Sum> {
    let mut file = File::open(path).map_err(Error::io("cannot read", path))?;
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Sum { bytes, sha256: sha256.finalize().into() }),
            Ok(count) => {
                sha256.update(&buffer[..count]);
                bytes += count as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("cannot read", path)(error)),
        }
    }
}
