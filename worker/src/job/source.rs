//! Where a job's base model and dataset come from.

use std::path::PathBuf;

use brightrun_trainer::demo;
use serde_json::Value;

use super::fields::{Field, Findings, Problem, shown};
use crate::{redacted::shown_file, storage::Source};

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
    /// A link, or an object of an S3 store; it is fetched.
    Remote(Source),
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
        match Source::parse(text) {
            Ok(Source::File(path)) => Ok(Self::File(path)),
            Ok(remote) => Ok(Self::Remote(remote)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Whether the file that a field names is there.
    pub(crate) fn check(&self, field: &str) -> Option<Problem> {
        let Self::File(path) = self else { return None };
        let missing = !path.is_file();
        missing.then(|| Problem::new(field, format!("there is no file {:?}", shown_file(path))))
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
