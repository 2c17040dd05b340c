//! Where base models are: what the operator says outranks what a job asks for.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use brightrun_trainer::{config::ModelConfig, demo, weights::Checkpoint};
use serde_json::Value;

use crate::job::BaseModel;

/// One folder for all jobs.
const MODEL_PATH: &str = "MODEL_PATH";
/// Folders by name, as a JSON object.
const MODEL_PATHS: &str = "MODEL_PATHS";
/// What the model of all jobs is called; without a folder, it is looked for by this name.
const MODEL_NAME: &str = "MODEL_NAME";
/// Where RunPod keeps the models that an endpoint names, on the volume: a cache of the Hugging Face Hub.
const HUB: &str = "huggingface-cache/hub";

/// Base models by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Models {
    outranking: Option<PathBuf>,
    name: Option<String>,
    by_name: BTreeMap<String, PathBuf>,
    hub: Option<PathBuf>,
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
        Ok(Self { outranking: value(MODEL_PATH).map(PathBuf::from), name: value(MODEL_NAME), by_name, hub: None })
    }

    /// Also those that RunPod keeps on a volume.
    pub fn with_volume(self, volume: &Path) -> Self {
        Self { hub: Some(volume.join(HUB)), ..self }
    }

    /// What is wrong with the models that the operator names, as far as it shows without reading weights: a folder that is not
    /// there, a kind of model that cannot be trained, files that are missing or cut off. With one model for all jobs it is
    /// an error; with several, the others work.
    pub fn check(&self) -> Result<Vec<String>, String> {
        match (&self.outranking, &self.name) {
            (None, None) => {
                let check =
                    |(name, path): (&String, &PathBuf)| is_whole(path).err().map(|why| format!("{name}: {why}"));
                Ok(self.by_name.iter().filter_map(check).collect())
            }
            (path, name) => {
                let folder = match path {
                    Some(path) => there(path.clone())?,
                    None => self.named(name.as_deref().unwrap_or_default())?,
                };
                is_whole(&folder).map(|()| Vec::new())
            }
        }
    }

    /// The base model of a job. The embedded one is written into `folder`.
    pub(super) fn find(&self, asked: &BaseModel, folder: &Path) -> Result<Found, String> {
        let asked = match asked {
            BaseModel::Demo => demo::BASE_MODEL.to_owned(),
            BaseModel::Folder(path) => path.display().to_string(),
        };
        let outranking = match (&self.outranking, &self.name) {
            (Some(path), name) => {
                let name = name.clone().unwrap_or_else(|| path.display().to_string());
                Some((there(path.clone())?, name))
            }
            (None, Some(name)) => Some((self.named(name)?, name.clone())),
            (None, None) => None,
        };
        if let Some((folder, name)) = outranking {
            let differs = name != asked;
            let warning = format!("the job asked for {asked}, and this endpoint trains {name}");
            let warning = differs.then_some(warning);
            return Ok(Found { folder, name, warning, asked: differs.then_some(asked) });
        }
        if asked == demo::BASE_MODEL && !self.by_name.contains_key(&asked) {
            let folder = folder.join(".demo-base");
            demo::write_model(&folder).map_err(|error| error.to_string())?;
            return Ok(Found { folder, name: asked, asked: None, warning: None });
        }
        let folder = self.named(&asked).map_err(|error| format!("hyperparameters.base_model: {error}"))?;
        Ok(Found { folder, name: asked, asked: None, warning: None })
    }

    /// The folder of a model that the operator has, by its name.
    fn named(&self, name: &str) -> Result<PathBuf, String> {
        if let Some(path) = self.by_name.get(name) {
            return there(path.clone());
        }
        if let Some(folder) = self.hub.as_deref().and_then(|hub| in_hub(hub, name)) {
            return there(folder);
        }
        let cached = self.hub.as_deref().map(names_in_hub).unwrap_or_default();
        let own = self.by_name.keys().cloned();
        let known: Vec<String> = own.chain(cached).chain([demo::BASE_MODEL.to_owned()]).collect();
        Err(format!(
            "this endpoint has no model {name:?}; it has {}. The operator adds models with {MODEL_PATH} or {MODEL_PATHS}",
            known.join(", ")
        ))
    }
}

/// The revision of a model's folder, where the Hub's tools have left it: in the folder's name, or in their notes of what they
/// fetched.
pub(crate) fn revision(folder: &Path) -> Option<String> {
    let is_commit = |text: &str| text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let canonical = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let in_cache = canonical.parent().and_then(Path::file_name).is_some_and(|parent| parent == "snapshots");
    let name = canonical.file_name().and_then(|name| name.to_str()).filter(|name| in_cache && is_commit(name));
    let note = || fs::read_to_string(folder.join(".cache/huggingface/download/config.json.metadata")).ok();
    let noted = || note()?.lines().next().map(|line| line.trim().to_owned()).filter(|line| is_commit(line));
    name.map(str::to_owned).or_else(noted)
}

/// The folder of a model in a cache of the Hub's: its newest snapshot.
fn in_hub(hub: &Path, name: &str) -> Option<PathBuf> {
    let plain = |part: &str| {
        let letters = part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        letters && !part.is_empty() && !part.starts_with('.')
    };
    let (owner, model) = name.split_once('/').filter(|(owner, model)| plain(owner) && plain(model))?;
    let repository = hub.join(format!("models--{owner}--{model}"));
    repository.is_dir().then_some(repository)
}

fn names_in_hub(hub: &Path) -> Vec<String> {
    let entries = fs::read_dir(hub).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| Some(entry.file_name().to_str()?.strip_prefix("models--")?.replacen("--", "/", 1));
    let mut names: Vec<String> = entries.filter_map(name).collect();
    names.sort();
    names
}

/// A folder with a model in it: the one that is named, or, where that is a repository in a cache of the Hub's, its snapshot.
fn there(folder: PathBuf) -> Result<PathBuf, String> {
    if folder.join("config.json").is_file() {
        return Ok(folder);
    }
    let head = fs::read_to_string(folder.join("refs/main")).ok();
    let snapshot = head.map(|head| folder.join("snapshots").join(head.trim()));
    if let Some(snapshot) = snapshot.filter(|snapshot| snapshot.join("config.json").is_file()) {
        return Ok(snapshot);
    }
    Err(format!(
        "there is no config.json in {}; the operator checks {MODEL_PATH} and that the volume is mounted there",
        folder.display()
    ))
}

// === impl Found ===

impl Found {
    /// An error where it cannot be trained: it is found before anything is fetched or paid for.
    pub(super) fn check(&self) -> Result<(), String> {
        is_whole(&self.folder)
    }
}

/// Whether all of a model's tensors are there and of the right kind; weights are not read.
fn is_whole(folder: &Path) -> Result<(), String> {
    let folder = there(folder.to_owned())?;
    let opened = ModelConfig::read(&folder).and_then(|config| Checkpoint::open(&folder, &config));
    opened.map(|_| ()).map_err(|error| error.to_string())
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
    fn models_in_the_platforms_cache_are_found_by_their_names() {
        const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
        let volume = tempdir().unwrap();
        let repository = volume.path().join(HUB).join("models--Qwen--Qwen3-30B-A3B");
        let snapshot = repository.join("snapshots").join(COMMIT);
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs/main"), format!("{COMMIT}\n")).unwrap();
        fs::write(snapshot.join("config.json"), "{}").unwrap();
        let models = models(&[]).unwrap().with_volume(volume.path());
        let found = models.find(&asked("Qwen/Qwen3-30B-A3B"), volume.path()).unwrap();
        assert_eq!((&found.folder, found.warning), (&snapshot, None));
        assert_eq!(revision(&found.folder).as_deref(), Some(COMMIT));
        let error = models.find(&asked("mistralai/Mistral-7B"), volume.path()).unwrap_err();
        assert!(error.contains("it has Qwen/Qwen3-30B-A3B, brightrun/demo-moe"), "{error}");
        for outside in ["../x", "a/../b", "a/b/c", "/etc", ".a/b"] {
            assert!(models.find(&asked(outside), volume.path()).is_err(), "{outside}");
        }
        // One name for all jobs, and a folder that names the repository.
        let named = super::Models { name: Some("Qwen/Qwen3-30B-A3B".into()), ..models.clone() };
        assert_eq!(named.find(&asked("mistralai/Mistral-7B"), volume.path()).unwrap().folder, snapshot);
        let whole = super::Models { outranking: Some(repository), ..super::Models::default() };
        assert_eq!(whole.find(&asked("x"), volume.path()).unwrap().folder, snapshot);
    }

    #[test]
    fn a_revision_is_found_in_the_notes_of_whoever_fetched_a_model() {
        let folder = tempdir().unwrap();
        assert_eq!(revision(folder.path()), None);
        let notes = folder.path().join(".cache/huggingface/download");
        fs::create_dir_all(&notes).unwrap();
        let commit = "a".repeat(40);
        fs::write(notes.join("config.json.metadata"), format!("{commit}\netag\n1.0\n")).unwrap();
        assert_eq!(revision(folder.path()), Some(commit));
    }

    #[test]
    fn a_model_that_cannot_be_trained_is_found_before_any_job() {
        let folder = tempdir().unwrap();
        demo::write_model(folder.path()).unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(models(&[(MODEL_PATH, path)]).unwrap().check(), Ok(vec![]));
        let two = format!("{{\"good\": {path:?}, \"gone\": \"/nowhere\"}}");
        let warnings = models(&[(MODEL_PATHS, &two)]).unwrap().check().unwrap();
        assert!(warnings.len() == 1 && warnings[0].starts_with("gone: there is no config.json"), "{warnings:?}");
        let weights = fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.path());
        let weights =
            weights.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "safetensors")).unwrap();
        let bytes = fs::read(&weights).unwrap();
        fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
        let error = models(&[(MODEL_PATH, path)]).unwrap().check().unwrap_err();
        assert!(error.contains("safetensors"), "{error}");
        fs::write(
            folder.path().join("config.json"),
            r#"{"model_type": "mistral", "architectures": ["MistralForCausalLM"]}"#,
        )
        .unwrap();
        assert!(models(&[(MODEL_PATH, path)]).unwrap().check().unwrap_err().contains("mistral"));
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
