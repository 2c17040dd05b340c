//! Files of a finished job to where their user can fetch them.
//!
//! [`deliver`] sends files by name to links that the job gave, or into the operator's bucket, where each gets a signed
//! link; without a bucket they stay on this machine. What is sent is hashed before, signed with that hash, and compared
//! with what lies in the store afterwards. Every way in which it fails is an [`UploadError`] that says what to do next
//! and nothing of keys and links. `docs/delivery.md` lists settings and faults.

mod bucket;
mod endpoint;
mod error;
mod given;
mod held;
pub mod limits;
mod measured;
mod multipart;
mod names;
mod refusal;
mod sending;
mod settings;
mod signed_links;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use tokio_util::sync::CancellationToken;
use url::Url;

pub use error::UploadError;
pub use limits::UploadLimits;
pub use names::MAX_NAME_BYTES;
pub(crate) use names::problem as name_problem;
pub use settings::{BucketSettings, LINK_LIFETIME, LONGEST_LINK_LIFETIME, SHORTEST_LINK_LIFETIME, Store};

use super::{SourceError, SourcePolicy, StoreKey, source};
use crate::{net::Network, redacted::Redacted};
use bucket::Bucket;
use measured::Measured;
use sending::Sending;

/// A file to deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Its name for its user: ASCII letters, digits, `.`, `_`, `-` and `/`.
    pub name: String,
    /// Where it is on this machine. Nothing may write to it any more.
    pub path: PathBuf,
}

/// How far a delivery is. Bytes of a request count once it is answered; a part that fails is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadProgress {
    /// Files that are there.
    pub files: usize,
    /// Files in all.
    pub of_files: usize,
    /// Bytes that are there.
    pub bytes: u64,
    /// Bytes in all.
    pub of_bytes: u64,
}

/// Where a delivered file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the operator's bucket; the link answers a plain GET for as long as the settings say.
    Link(Redacted<Url>),
    /// Behind the link that the job gave. Here without its query, so it opens only what is public.
    Given(Url),
    /// On the disk of this machine.
    File(Url),
}

/// A file that was delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveredFile {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its content.
    pub sha256: [u8; 32],
    /// Where it is.
    pub place: Place,
    /// Whether it had to be sent: not, if the bucket had it already, or if it stays here.
    pub sent: bool,
}

/// What became of the files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delivered {
    /// The files that are where their user can fetch them, in the order given.
    pub files: Vec<DeliveredFile>,
    /// Names of the files that have no link and for which there is no bucket.
    pub not_delivered: Vec<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

// === impl Delivered ===

impl Delivered {
    /// Names and addresses, as a result shows them to the user. The addresses open the files: they are no text for logs.
    pub fn addresses(&self) -> BTreeMap<String, String> {
        let address = |file: &DeliveredFile| match &file.place {
            Place::Link(link) => link.expose().to_string(),
            Place::Given(url) | Place::File(url) => url.to_string(),
        };
        self.files.iter().map(|file| (file.name.clone(), address(file))).collect()
    }
}

/// Reads a link that a job gives for an upload.
pub fn upload_link(text: &str) -> Result<Redacted<Url>, SourceError> {
    if text.chars().any(char::is_control) {
        return Err(SourceError::ControlCharacter);
    }
    if text.len() > super::MAX_SOURCE_BYTES {
        return Err(SourceError::TooLong { bytes: text.len() });
    }
    source::link(text).map(Redacted::url)
}

/// Delivers the files of a job: those with a link in `upload_links` there, the others into the bucket, or, where there
/// are neither links nor a bucket, nowhere.
///
/// `policy` says which servers the links may lead to; its `network` also names the authorities that the store's
/// certificate may come from. After `cancel` it ends within two seconds. A file is whole where it should be or not there
/// at all, and no parts of it are left behind, as far as the store answers. The same delivery again overwrites, and sends
/// nothing that is there already.
pub async fn deliver(
    store: &Store,
    job_id: &str,
    files: &[Artifact],
    upload_links: &BTreeMap<String, Redacted<Url>>,
    policy: &SourcePolicy,
    limits: &UploadLimits,
    progress: &(dyn Fn(UploadProgress) + Send + Sync),
    cancel: &CancellationToken,
) -> Result<Delivered, UploadError> {
    check(job_id, files)?;
    let sending = Sending::new(&policy.network, limits, cancel)?;
    // Before any work: links that are over are over.
    for link in files.iter().filter_map(|file| upload_links.get(&file.name)) {
        check_link(link, policy.plain_http)?;
    }
    let measured = measure(&sending, files, store, upload_links).await?;
    let delivery = Delivery { store, job_id, policy, sending: &sending, upload_links };
    delivery.run(&measured, progress).await
}

/// What can be said about a link of a job's before any packet is sent: that it is over, or not encrypted. `plain_http`: that
/// is allowed.
pub(crate) fn check_link(link: &Redacted<Url>, plain_http: bool) -> Result<(), UploadError> {
    given::check(link.expose(), &link.to_string(), plain_http)
}

/// Finds out whether results could be delivered to this store, as far as it shows without sending any.
pub async fn look(store: &Store, network: &Network, limits: &UploadLimits) -> Result<(), UploadError> {
    let Store::Bucket(settings) = store else { return Ok(()) };
    let sending = Sending::new(network, limits, &CancellationToken::new())?;
    Bucket::new(&sending, settings, "").await?.look().await
}

fn check(job_id: &str, files: &[Artifact]) -> Result<(), UploadError> {
    if files.is_empty() {
        return Err(UploadError::Nothing);
    }
    names::check_job(job_id)?;
    let mut seen = BTreeSet::new();
    for file in files {
        names::check(&file.name)?;
        if !seen.insert(&file.name) {
            return Err(UploadError::Name { name: file.name.clone(), why: "two files have it" });
        }
    }
    Ok(())
}

/// Reads every file once, before anything is sent.
async fn measure(
    sending: &Sending,
    files: &[Artifact],
    store: &Store,
    upload_links: &BTreeMap<String, Redacted<Url>>,
) -> Result<Vec<Measured>, UploadError> {
    let mut all = Vec::with_capacity(files.len());
    for Artifact { name, path } in files {
        let in_parts = matches!(store, Store::Bucket(_)) && !upload_links.contains_key(name);
        let (name, path, limits) = (name.clone(), path.clone(), sending.limits.clone());
        let part_bytes = move |bytes| if in_parts { limits.part_bytes_for(bytes) } else { u64::MAX };
        all.push(sending.on_disk(move |cancel| Measured::of(&name, &path, part_bytes, cancel)).await?);
    }
    Ok(all)
}

struct Delivery<'a> {
    store: &'a Store,
    job_id: &'a str,
    policy: &'a SourcePolicy,
    sending: &'a Sending,
    upload_links: &'a BTreeMap<String, Redacted<Url>>,
}

// === impl Delivery ===

impl Delivery<'_> {
    async fn run(
        &self,
        measured: &[Measured],
        progress: &(dyn Fn(UploadProgress) + Send + Sync),
    ) -> Result<Delivered, UploadError> {
        let bucket = match self.store {
            Store::Bucket(settings) if measured.iter().any(|file| !self.is_given(file)) => {
                Some(Bucket::new(self.sending, settings, self.job_id).await?)
            }
            _ => None,
        };
        if let Some(bucket) = &bucket {
            bucket.look().await?;
        }
        let (mut delivered, mut ends) = (Delivered::default(), None);
        let of_bytes = measured.iter().map(|file| file.whole.bytes).sum();
        let (there, mut checked) = (AtomicU64::new(0), false);
        for (number, file) in measured.iter().enumerate() {
            let sent = |bytes| {
                let bytes = there.fetch_add(bytes, Ordering::Relaxed) + bytes;
                progress(UploadProgress { files: number, of_files: measured.len(), bytes, of_bytes });
            };
            match self.one(file, bucket.as_ref(), &sent).await? {
                Some((place, sent)) => {
                    ends = ends.into_iter().chain(self.store.key_ends()).min();
                    if let (Place::Link(link), Some(bucket), false) = (&place, &bucket, checked) {
                        bucket.opens(link).await?;
                        checked = true;
                    }
                    let (name, bytes, sha256) = (file.name.clone(), file.whole.bytes, file.whole.sha256);
                    delivered.files.push(DeliveredFile { name, bytes, sha256, place, sent });
                }
                None => delivered.not_delivered.push(file.name.clone()),
            }
            let bytes = there.load(Ordering::Relaxed);
            progress(UploadProgress { files: number + 1, of_files: measured.len(), bytes, of_bytes });
        }
        delivered.warnings = self.warnings(measured, ends);
        Ok(delivered)
    }

    /// Where a file is now, and whether it had to be sent; nothing if it has nowhere to go.
    async fn one(
        &self,
        file: &Measured,
        bucket: Option<&Bucket<'_>>,
        sent: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Option<(Place, bool)>, UploadError> {
        if let Some(link) = self.upload_links.get(&file.name) {
            given::put(self.sending, file, link, self.policy.plain_http).await?;
            sent(file.whole.bytes);
            let mut shown = link.expose().clone();
            shown.set_query(None);
            return Ok(Some((Place::Given(shown), true)));
        }
        match bucket {
            Some(bucket) => {
                let anew = bucket.deliver(file, sent).await?;
                Ok(Some((Place::Link(bucket.link(&file.name).await?), anew)))
            }
            None if self.upload_links.is_empty() => {
                let path = file.path.clone();
                let whole = self
                    .sending
                    .on_disk(move |_| path.canonicalize().map_err(|error| UploadError::Disk { path, error }));
                let url = Url::from_file_path(whole.await?);
                let url = url.map_err(|()| UploadError::Configuration("a path is no file:// address".into()))?;
                sent(file.whole.bytes);
                Ok(Some((Place::File(url), false)))
            }
            None => Ok(None),
        }
    }

    fn is_given(&self, file: &Measured) -> bool {
        self.upload_links.contains_key(&file.name)
    }

    /// `ends`: when the first link ends with the key that signed it.
    fn warnings(&self, measured: &[Measured], ends: Option<SystemTime>) -> Vec<String> {
        let known: BTreeSet<&str> = measured.iter().map(|file| file.name.as_str()).collect();
        let unknown = self.upload_links.keys().filter(|name| !known.contains(name.as_str()));
        let mut warnings: Vec<String> = unknown
            .map(|name| format!("upload_urls has a link for {}, which is no file of this job", names::shown(name)))
            .collect();
        match self.store {
            Store::Local if self.upload_links.is_empty() => warnings.extend(self.store.warning()),
            Store::Local if measured.iter().any(|file| !self.is_given(file)) => warnings
                .push("files without a link in upload_urls are not delivered, because the worker has no bucket".into()),
            Store::Local => {}
            Store::Bucket(settings) => match settings.s3.key {
                StoreKey::Given { .. } => warnings.extend(self.store.warning()),
                StoreKey::Chain(_) => warnings.extend(ends.and_then(|end| settings.warning_of(end))),
            },
        }
        warnings
    }
}
