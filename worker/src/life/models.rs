//! Where base models are: what the operator says outranks what a job asks for.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use brightrun_trainer::demo;
use serde_json::Value;

use crate::job::BaseModel;

/// One folder for all jobs.
const MODEL_PATH: &str = "MODEL_PATH";
/// Folders by name, as a JSON object.
const MODEL_PATHS: &str = "MODEL_PATHS";
/// What a folder is called in adapters, where its path says nothing.
const MODEL_NAME: &str = "MODEL_NAME";

/// Base models by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Models {
    outranking: Option<PathBuf>,
    name: Option<String>,
    by_name: BTreeMap<String, PathBuf>,
}

/// A base model that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) folder: PathBuf,
    /// What adapters call it.
    pub(super) name: String,
    /// What the job asked for, where that is another one.
    pub(super) asked: Option<String>,
    /// What the job's owner is told about that.
    pub(super) warning: Option<String>,
}

// === impl Models ===

impl Models {
    /// What the operator says in these variables.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let value = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let by_name = match value(MODEL_PATHS) {
            None => BTreeMap::new(),
            Some(text) => paths(&text).ok_or_else(|| {
                format!("{MODEL_PATHS} must be a JSON object of names and folders, as in {{\"Qwen/Qwen3-30B-A3B\": \"/models/a\"}}")
            })?,
        };
        Ok(Self { outranking: value(MODEL_PATH).map(PathBuf::from), name: value(MODEL_NAME), by_name })
    }

    /// The base model of a job. The embedded one is written into `folder`.
    pub(super) fn find(&self, asked: &BaseModel, folder: &Path) -> Result<Found, String> {
        let asked = match asked {
            BaseModel::Demo => demo::BASE_MODEL.to_owned(),
            BaseModel::Folder(path) => path.display().to_string(),
        };
        if let Some(outranking) = &self.outranking {
            let name = self.name.clone().unwrap_or_else(|| outranking.display().to_string());
            let differs = name != asked;
            let warning = format!("the job asked for {asked}, and this endpoint trains {name}");
            return self.there(Found {
                folder: outranking.clone(),
                name,
                warning: differs.then_some(warning),
                asked: differs.then_some(asked),
            });
        }
        if let Some(path) = self.by_name.get(&asked) {
            return self.there(Found { folder: path.clone(), name: asked, asked: None, warning: None });
        }
        if asked == demo::BASE_MODEL {
            let folder = folder.join(".demo-base");
            demo::write_model(&folder).map_err(|error| error.to_string())?;
            return Ok(Found { folder, name: asked, asked: None, warning: None });
        }
        let known: Vec<&str> = self.by_name.keys().map(String::as_str).chain([demo::BASE_MODEL]).collect();
        Err(format!(
            "hyperparameters.base_model: this endpoint has no model {asked:?}; it has {}. The operator adds models with \
             {MODEL_PATH} or {MODEL_PATHS}",
            known.join(", ")
        ))
    }

    fn there(&self, found: Found) -> Result<Found, String> {
        if found.folder.join("config.json").is_file() {
            return Ok(found);
        }
        Err(format!(
            "there is no config.json in {}; the operator checks {MODEL_PATH} and that the volume is mounted there",
            found.folder.display()
        ))
    }
}

fn paths(text: &str) -> Option<BTreeMap<String, PathBuf>> {
    let Ok(Value::Object(all)) = serde_json::from_str(text) else { return None };
    all.into_iter().map(|(name, path)| Some((name, PathBuf::from(path.as_str()?)))).collect()
}

#[cfg(test)]
mod tests {
    use tempfile::tempdir;

    use super::*;

    fn models(variables: &[(&str, &str)]) -> Result<Models, String> {
        Models::from_variables(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn asked(name: &str) -> BaseModel {
        BaseModel::Folder(name.into())
    }

    #[test]
    fn the_operators_model_outranks_the_jobs_and_that_is_said() {
        let folder = tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        let path = folder.path().to_str().unwrap();
        let models = models(&[(MODEL_PATH, path), (MODEL_NAME, "Qwen/Qwen3-Next-80B-A3B-Instruct")]).unwrap();
        let found = models.find(&asked("mistralai/Mistral-7B"), folder.path()).unwrap();
        assert_eq!(found.folder, folder.path());
        assert_eq!(found.asked.as_deref(), Some("mistralai/Mistral-7B"));
        assert!(found.warning.unwrap().contains("this endpoint trains Qwen/Qwen3-Next-80B-A3B-Instruct"));
        let same = models.find(&asked("Qwen/Qwen3-Next-80B-A3B-Instruct"), folder.path()).unwrap();
        assert_eq!((same.asked, same.warning), (None, None));
    }

    #[test]
    fn models_are_found_by_name_and_never_by_a_path_of_the_jobs() {
        let folder = tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        let path = folder.path().to_str().unwrap();
        let models = models(&[(MODEL_PATHS, &format!("{{\"a/b\": {path:?}}}"))]).unwrap();
        assert_eq!(models.find(&asked("a/b"), folder.path()).unwrap().name, "a/b");
        let error = models.find(&asked(path), folder.path()).unwrap_err();
        assert!(error.contains("it has a/b, brightrun/demo-moe"), "{error}");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let models = models(&[(MODEL_PATH, "/nowhere")]).unwrap();
        assert!(models.find(&asked("x"), Path::new("/")).unwrap_err().contains("no config.json in /nowhere"));
        for text in ["[]", "{\"a\": 1}", "x"] {
            assert!(super::Models::from_variables(|name| (name == MODEL_PATHS).then(|| text.to_owned())).is_err());
        }
    }
}
