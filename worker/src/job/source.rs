//! Where a job's base model and dataset come from.

use std::path::{Path, PathBuf};

use brightrun_trainer::demo;
use serde_json::Value;

use super::fields::{Field, Findings, Problem, shown};

/// A base model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BaseModel {
    /// The embedded one.
    Demo,
    /// A folder with `config.json` and safetensors files.
    Folder(PathBuf),
}

/// A dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dataset {
    /// The embedded one.
    Demo,
    /// A file of this machine.
    File(PathBuf),
}

impl BaseModel {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            demo::BASE_MODEL => Ok(Self::Demo),
            folder => Ok(Self::Folder(PathBuf::from(folder))),
        }
    }

    /// Whether the model is there.
    pub(crate) fn check(&self) -> Option<Problem> {
        let Self::Folder(folder) = self else { return None };
        let missing = !folder.join("config.json").is_file();
        missing.then(|| {
            let message = format!(
                "there is no config.json in {:?}; a base model is a folder with config.json and safetensors files, or {:?}",
                folder.display().to_string(),
                demo::BASE_MODEL
            );
            Problem::new("hyperparameters.base_model", message)
        })
    }
}

impl Dataset {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text == demo::DATASET {
            return Ok(Self::Demo);
        }
        if let Some(rest) = text.strip_prefix("file://") {
            let path = rest.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(rest);
            if !path.starts_with('/') {
                return Err(
                    "a file:// URL must name an absolute path of this machine, as in file:///data/x.jsonl".into()
                );
            }
            return Ok(Self::File(percent_decoded(path)?.into()));
        }
        match text.split_once("://") {
            // The URL may be signed, so it is not repeated.
            Some(_) => Err("only local files are read: give a path, a file:// URL or \"demo:conversations\"".into()),
            None => Ok(Self::File(Path::new(text).to_owned())),
        }
    }

    /// Whether the file that a field names is there.
    pub(crate) fn check(&self, field: &str) -> Option<Problem> {
        let Self::File(path) = self else { return None };
        let missing = !path.is_file();
        missing.then(|| Problem::new(field, format!("there is no file {:?}", path.display().to_string())))
    }
}

/// A field that must be there and be a text.
pub(super) fn required<T>(
    field: Option<Field<'_>>,
    name: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
    findings: &mut Findings,
) -> Option<T> {
    let parsed = match &field {
        None => Err("is missing".to_owned()),
        Some((_, Value::String(text))) if !text.trim().is_empty() && !text.contains('\0') => parse(text),
        Some((_, value)) => Err(format!("must be a text that is not empty, not {}", shown(value))),
    };
    let path = field.map_or(name.to_owned(), |(path, _)| path);
    parsed.map_err(|message| findings.problem(path, message)).ok()
}

fn percent_decoded(path: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = after;
            continue;
        }
        let digits = after.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let code = code.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|code| *code != 0);
        bytes.push(code.ok_or("has a '%' that two hexadecimal digits do not follow")?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 once its %-codes are decoded".to_owned())
}
