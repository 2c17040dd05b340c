//! `manifest.json`: it follows from the key and the other files, so it is checked by making it again.

use std::{fs, path::Path};

use serde_json::{Map, Value, json};

use super::{DOCUMENTS, FACTS, Key, MANIFEST, TOKENS, key::FORMAT};
use crate::{
    Error, Result,
    file_sum::{Sum, sum},
};

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
