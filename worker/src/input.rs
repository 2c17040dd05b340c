//! What a job names, as files of this machine.

use std::path::{Path, PathBuf};

use brightrun_trainer::demo;

use crate::job::{BaseModel, Dataset};

/// The folder of a base model and what an adapter calls it. The embedded one is written into `folder`.
pub(crate) fn base_model(model: &BaseModel, folder: &Path) -> anyhow::Result<(PathBuf, String)> {
    match model {
        BaseModel::Folder(folder) => Ok((folder.clone(), folder.display().to_string())),
        BaseModel::Demo => {
            let folder = folder.join("base");
            demo::write_model(&folder)?;
            Ok((folder, demo::BASE_MODEL.to_owned()))
        }
    }
}

/// The file of a dataset. What is no file of this machine yet becomes one in `folder`, which must exist.
pub(crate) fn dataset(dataset: &Dataset, folder: &Path) -> anyhow::Result<PathBuf> {
    match dataset {
        Dataset::File(path) => Ok(path.clone()),
        Dataset::Demo => {
            let path = folder.join("conversations.jsonl");
            demo::write_dataset(&path)?;
            Ok(path)
        }
    }
}
