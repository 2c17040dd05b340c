//! The base model's tokenizer beside the adapter, so that the adapter's folder is all that loading it needs.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

use super::{atomic, result::FileFact};
use crate::{Error, Result};

/// What belongs to a tokenizer or says how to generate, where the base has it.
pub const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "generation_config.json",
];
/// Largest of these files; Qwen's tokenizer has 11 MB.
const MAX_FILE_BYTES: u64 = 128 * 1024 * 1024;

/// Copies what is there; `folder` is what the files' names in the result begin with.
pub fn copy(model_dir: &Path, adapter_dir: &Path, folder: &str) -> Result<Vec<FileFact>> {
    let mut facts = Vec::new();
    for name in TOKENIZER_FILES {
        let source = model_dir.join(name);
        if let Some(bytes) = read(&source)? {
            atomic::write(&adapter_dir.join(name), &bytes)?;
            facts.push(FileFact::of(super::within(folder, name), &bytes));
        }
    }
    Ok(facts)
}

/// A whole file, or nothing where there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    // Asked before it is opened: opening a pipe of that name would wait for ever.
    let facts = match fs::metadata(path) {
        Ok(facts) => facts,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("cannot read", path)(error)),
    };
    if !facts.is_file() {
        return Err(Error::file(path, "is not a file; a base model's tokenizer is"));
    }
    let too_large = || Error::file(path, format!("larger than the {MAX_FILE_BYTES} bytes a tokenizer's file may have"));
    if facts.len() > MAX_FILE_BYTES {
        return Err(too_large());
    }
    let file = File::open(path).map_err(Error::io("cannot open", path))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io("cannot read", path))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(too_large());
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_copied_and_nothing_else() {
        let (base, adapter) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in ["tokenizer.json", "chat_template.jinja", "model.safetensors", "config.json"] {
            std::fs::write(base.path().join(name), name).unwrap();
        }
        let facts = copy(base.path(), adapter.path(), "adapter").unwrap();
        assert_eq!(
            facts,
            ["tokenizer.json", "chat_template.jinja"]
                .map(|name| FileFact::of(format!("adapter/{name}"), name.as_bytes()))
        );
        assert_eq!(std::fs::read_dir(adapter.path()).unwrap().count(), 2);
        assert_eq!(std::fs::read(adapter.path().join("tokenizer.json")).unwrap(), b"tokenizer.json");
    }

    #[test]
    fn what_is_no_file_or_too_large_is_refused_by_name() {
        let (base, adapter) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(base.path().join("vocab.json")).unwrap();
        let error = copy(base.path(), adapter.path(), ".").unwrap_err().to_string();
        assert!(error.contains("vocab.json: is not a file"), "{error}");
        std::fs::remove_dir(base.path().join("vocab.json")).unwrap();
        // Sparse: it takes no room.
        File::create(base.path().join("vocab.json")).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        let error = copy(base.path(), adapter.path(), ".").unwrap_err().to_string();
        assert!(error.contains("vocab.json: larger than"), "{error}");
        assert_eq!(std::fs::read_dir(adapter.path()).unwrap().count(), 0);
    }
}
