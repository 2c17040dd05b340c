//! What a job names, as files of this machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use brightrun_trainer::{
    demo,
    events::{Event, EventSink},
};
use clap::Args;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

use crate::{
    job::{BaseModel, Dataset},
    net::{self, Network},
    progress::Progress,
    storage::{self, FetchLimits, FetchProgress, S3Settings, Source, SourcePolicy},
};

/// What a person at the command line allows beside files and `https://` links to public addresses.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Fetching")]
pub(crate) struct FetchOptions {
    /// Largest dataset that is fetched, also once it is decompressed.
    #[arg(long, value_name = "BYTES", default_value_t = storage::MAX_BYTES)]
    max_dataset_bytes: u64,
    /// Allows links that are not encrypted.
    #[arg(long)]
    allow_http: bool,
    /// Allows links to this machine and to private networks.
    #[arg(long)]
    allow_private_addresses: bool,
    /// Trusts the authorities of this file as well.
    #[arg(long, value_name = "FILE.pem")]
    root_certificates: Option<PathBuf>,
}

// === impl FetchOptions ===

impl FetchOptions {
    /// What jobs of strangers may name: no files of this machine.
    pub(crate) fn of_strangers(&self) -> anyhow::Result<SourcePolicy> {
        let policy = self.policy()?;
        let s3 = policy.s3.filter(S3Settings::is_named);
        Ok(SourcePolicy { local_files: false, s3, ..policy })
    }

    /// The certificates of the authorities that are trusted as well.
    pub(crate) fn root_certificates(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let Some(path) = &self.root_certificates else { return Ok(Vec::new()) };
        let certificates = fs::read(path).and_then(|pem| net::certificates_from_pem(&pem));
        certificates.with_context(|| format!("--root-certificates {}", path.display()))
    }

    fn policy(&self) -> anyhow::Result<SourcePolicy> {
        Ok(SourcePolicy {
            plain_http: self.allow_http,
            network: Network {
                private_addresses: self.allow_private_addresses,
                extra_root_certificates: self.root_certificates()?,
                ..Network::default()
            },
            max_bytes: self.max_dataset_bytes,
            s3: Some(S3Settings::from_environment().map_err(anyhow::Error::msg)?),
            ..SourcePolicy::local()
        })
    }
}

/// The folder of the embedded base model in that of the job.
pub(crate) const BASE: &str = "base";

/// Longest part of a link that becomes a part of a file's name.
const MAX_NAME: usize = 80;

/// The folder of a base model and what an adapter calls it. The embedded one is written into `folder`.
pub(crate) fn base_model(model: &BaseModel, folder: &Path) -> anyhow::Result<(PathBuf, String)> {
    match model {
        BaseModel::Folder(folder) => Ok((folder.clone(), folder.display().to_string())),
        BaseModel::Demo => {
            let folder = folder.join(BASE);
            demo::write_model(&folder)?;
            Ok((folder, demo::BASE_MODEL.to_owned()))
        }
    }
}

/// The file of a dataset. What is no file of this machine yet becomes one in `folder`, which must exist; where it is
/// fetched or decompressed, its name begins with `purpose`.
pub(crate) fn dataset(
    dataset: &Dataset,
    purpose: &str,
    folder: &Path,
    options: &FetchOptions,
    progress: &Progress,
) -> anyhow::Result<PathBuf> {
    match dataset {
        Dataset::File(path) if is_compressed(path)? => {
            let source = Source::File(path.clone());
            fetch(&source, &folder.join(file_name(purpose, &source)), options, progress)
        }
        Dataset::File(path) => Ok(path.clone()),
        Dataset::Demo => {
            let path = folder.join("conversations.jsonl");
            demo::write_dataset(&path)?;
            Ok(path)
        }
        Dataset::Remote(source) => fetch(source, &folder.join(file_name(purpose, source)), options, progress),
    }
}

fn is_compressed(path: &Path) -> anyhow::Result<bool> {
    storage::is_compressed(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Brings a dataset to this machine, for a person at the command line.
fn fetch(source: &Source, target: &Path, options: &FetchOptions, progress: &Progress) -> anyhow::Result<PathBuf> {
    let policy = options.policy()?;
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
pub(crate) fn file_name(purpose: &str, source: &Source) -> String {
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
