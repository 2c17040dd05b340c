//! What a job names, as files of this machine.

use std::path::{Path, PathBuf};

use brightrun_trainer::{
    demo,
    events::{Event, EventSink},
};
use tokio_util::sync::CancellationToken;

use crate::{
    job::{BaseModel, Dataset},
    progress::Progress,
    storage::{self, FetchLimits, FetchProgress, S3Settings, Source, SourcePolicy},
};

/// Longest part of a link that becomes a part of a file's name.
const MAX_NAME: usize = 80;

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

/// The file of a dataset. What is no file of this machine yet becomes one in `folder`, which must exist; where it is
/// fetched, its name begins with `purpose`.
pub(crate) fn dataset(dataset: &Dataset, purpose: &str, folder: &Path, progress: &Progress) -> anyhow::Result<PathBuf> {
    match dataset {
        Dataset::File(path) => Ok(path.clone()),
        Dataset::Demo => {
            let path = folder.join("conversations.jsonl");
            demo::write_dataset(&path)?;
            Ok(path)
        }
        Dataset::Remote(source) => fetch(source, &folder.join(file_name(purpose, source)), progress),
    }
}

/// Brings a dataset to this machine, for a person at the command line.
fn fetch(source: &Source, target: &Path, progress: &Progress) -> anyhow::Result<PathBuf> {
    let s3 = S3Settings::from_environment().map_err(anyhow::Error::msg)?;
    let policy = SourcePolicy { s3, ..SourcePolicy::local() };
    tracing::info!("fetching {source}");
    let show = |now: FetchProgress| {
        let total = now.total.unwrap_or(now.bytes);
        progress.emit(&Event::Reading { bytes: now.bytes, total });
    };
    let limits = FetchLimits::default();
    let fetched = storage::fetch_blocking(source, target, &policy, &limits, &show, &CancellationToken::new());
    progress.close();
    tracing::info!("fetched {} bytes", fetched?.bytes);
    Ok(target.to_owned())
}

/// A name by which a person recognises the file, out of letters that no file system minds.
fn file_name(purpose: &str, source: &Source) -> String {
    let place = source.to_string();
    let last = place.split(['?', '#']).next().and_then(|place| place.rsplit('/').next()).unwrap_or_default();
    let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let last: String = last.chars().filter(plain).take(MAX_NAME).collect();
    if last.is_empty() { purpose.to_owned() } else { format!("{purpose}-{last}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetched_file_is_named_after_its_link_without_its_secrets() {
        let name = |text: &str| file_name("dataset", &Source::parse(text).unwrap());
        assert_eq!(name("https://host/a/b.jsonl?token=secret"), "dataset-b.jsonl");
        assert_eq!(name("s3://bucket/folder/x y.jsonl"), "dataset-xy.jsonl");
        assert_eq!(name("https://host/"), "dataset");
        assert!(name(&format!("https://host/{}", "x".repeat(500))).len() < 100);
    }
}
