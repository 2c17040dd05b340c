//! What a model's folder holds beside its weights.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde_json::Value;

use crate::config::CheckpointFormat;
use crate::config::json::read_object;
use crate::{Error, Result};

const CONFIG: &str = "config.json";
/// The part of it that describes quantised weights.
const QUANTISATION: &str = "quantization_config";
/// Bytes of a `config.json`.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// What goes along, where the base has it: how text becomes tokens and back, how conversations are written, how answers
/// are drawn, and what the licence demands.
const FILES: [&str; 16] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "NOTICE.txt",
    "USE_POLICY.md",
];

/// Takes the files over, byte for byte; of a quantised base's `config.json` all but the quantisation. Gives their names
/// and what is to be said.
pub(super) fn copy(base: &Path, folder: &Path, format: CheckpointFormat) -> Result<(Vec<String>, Vec<String>)> {
    let mut names = vec![CONFIG.to_owned()];
    let mut notes = Vec::new();
    let source = base.join(CONFIG);
    if format == CheckpointFormat::Plain {
        copy_file(&source, &folder.join(CONFIG))?;
    } else {
        let mut object = read_object(&source, MAX_CONFIG_BYTES)?;
        // Not `remove`, which would change the order of what is left.
        object.shift_remove(QUANTISATION);
        write(&folder.join(CONFIG), format!("{:#}\n", Value::Object(object)).as_bytes())?;
        notes.push(format!("{QUANTISATION} was taken out of {CONFIG}: the merged weights are plain."));
    }
    for name in FILES {
        let source = base.join(name);
        if source.is_file() {
            copy_file(&source, &folder.join(name))?;
            names.push(name.to_owned());
        }
    }
    Ok((names, notes))
}

/// The type that `config.json` says the weights have.
pub(super) fn stated_dtype(base: &Path) -> Result<Option<String>> {
    let object = read_object(&base.join(CONFIG), MAX_CONFIG_BYTES)?;
    let stated = object.get("dtype").or_else(|| object.get("torch_dtype"));
    Ok(stated.and_then(Value::as_str).map(str::to_owned))
}

/// A file with these bytes, on disk. Its folder is nobody's yet, so it needs no other name first.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = File::create_new(path).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(Error::io("cannot write", path))
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).map_err(Error::io("cannot read", from))?;
    let copied = File::create_new(to).and_then(|mut file| io::copy(&mut source, &mut file).and(file.sync_all()));
    copied.map_err(Error::io("cannot write", to))?;
    // The size tells a copy that was cut short; a base that changes meanwhile is no base.
    let [read, written] = [from, to].map(|path| fs::metadata(path).map(|file| file.len()));
    match (read, written) {
        (Ok(read), Ok(written)) if read == written => Ok(()),
        _ => Err(Error::file(from, "changed while it was copied; run again")),
    }
}
