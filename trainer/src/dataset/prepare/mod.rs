//! From a dataset file to tokens on disk.
//!
//! The file is hashed; if the cache has a store of that hash, the model's files and the options, nothing else is done.
//! Otherwise one thread reads records, as many as there are processors parse and tokenise them ([`pipeline`]), and the
//! calling thread puts the results into the store in the order of the file ([`collect`]). What comes out does not depend
//! on the number of threads.

mod collect;
mod pipeline;
#[cfg(test)]
mod tests;

use std::{fs::File, io::Read, ops::ControlFlow, path::Path, thread::available_parallelism, time::SystemTime};

use sha2::{Digest, Sha256};

pub use super::encode::{PrepareOptions, TextModel};
use super::{
    encode::{Encoder, TextTokenizer},
    facts::FileFacts,
    finding::{Finding, FindingKind, Severity},
    records::Records,
    store::{Key, Lookup, StoreWriter, TokenStore},
    template::ChatTemplate,
};
use crate::{Error, Result};

/// Most threads that tokenise; more of them would wait for the one that reads.
const MAX_THREADS: usize = 16;

/// Called now and then with the bytes read and the bytes in all, on the thread that called [`prepare`]; `Break` ends the
/// work with [`Error::Cancelled`].
pub type Progress<'a> = &'a dyn Fn(u64, u64) -> ControlFlow<()>;

/// A dataset that was read to its end.
#[derive(Debug)]
pub struct Prepared {
    /// Its documents; none where it cannot be used.
    pub store: TokenStore,
    /// What is known of it, for the report and the plan.
    pub facts: FileFacts,
    /// Nothing was tokenised: the store was there.
    pub reused: bool,
    /// What is worth saying about the cache, one sentence each.
    pub notes: Vec<String>,
}

/// A file's identity.
struct Identity {
    sha256: [u8; 32],
    bytes: u64,
    version: Version,
}

/// Size and last change of a file: what tells that somebody wrote to it.
type Version = (u64, Option<SystemTime>);

/// Tokenises a dataset file for a model, or finds that this was done before.
pub fn prepare(
    file: &Path,
    model: &TextModel,
    options: &PrepareOptions,
    cache: &Path,
    progress: Progress,
) -> Result<Prepared> {
    let threads = available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    prepare_with_threads(file, model, options, cache, progress, threads)
}

fn prepare_with_threads(
    file: &Path,
    model: &TextModel,
    options: &PrepareOptions,
    cache: &Path,
    progress: Progress,
    threads: usize,
) -> Result<Prepared> {
    if options.max_length < 2 {
        return Err(Error::Invalid("max_seq_length must be at least 2: one token to see and one to learn".into()));
    }
    let identity = identify(file, progress)?;
    let TextModel { tokenizer, template } = model;
    let key = Key {
        dataset: identity.sha256,
        tokenizer: tokenizer.digest(),
        end_of_text: tokenizer.end_of_text(),
        template: template.digest(),
        options: *options,
    };
    let mut notes = Vec::new();
    match TokenStore::look_up(cache, &key)? {
        Lookup::Present(store, facts) => return Ok(Prepared { store, facts: *facts, reused: true, notes }),
        Lookup::Absent => {}
        Lookup::Damaged(reason) => notes.push(format!("the tokenised dataset in the cache was made anew: {reason}")),
    }
    let encoder = Encoder::new(template, tokenizer, *options);
    let mut collector = collect::Collector::new(StoreWriter::begin(cache)?);
    let records = Records::open(file)?;
    let read = pipeline::run(records, &encoder, threads, identity.bytes, progress, &mut collector)?;
    if version(file)? != identity.version {
        return Err(Error::file(file, "the file was changed while it was read; start again once it is complete"));
    }
    let (writer, mut facts) = collector.into_parts();
    describe_file(&mut facts, &identity, &read, template, tokenizer);
    let store =
        if facts.findings.count_of(Severity::Fatal) == 0 { writer.finish(&key, &facts)? } else { TokenStore::empty() };
    Ok(Prepared { store, facts, reused: false, notes })
}

/// What the facts say about the file and the model, and that nothing is left if that is so.
fn describe_file(
    facts: &mut FileFacts,
    identity: &Identity,
    read: &pipeline::Read,
    template: &ChatTemplate,
    tokenizer: &TextTokenizer,
) {
    facts.sha256 = hex::encode(identity.sha256);
    facts.bytes = identity.bytes;
    facts.format = read.format.map_or("unknown", |format| format.name()).to_owned();
    facts.lines = read.lines;
    facts.template = template.source_name().to_owned();
    facts.template_notes = template.notes().to_vec();
    if read.format == Some(super::records::Format::Text) && tokenizer.end_of_text().is_none() {
        facts.template_notes.push("the model's tokenizer names no end-of-text token; texts end without one".to_owned());
    }
    if facts.examples == 0 && facts.findings.count_of(Severity::Fatal) == 0 {
        let skipped = facts.findings.iter().filter(|finding| finding.severity() == Severity::Skipped);
        let message = match skipped.min_by_key(|finding| finding.line) {
            None => "the file has no example".to_owned(),
            Some(first) => {
                format!("every example was left out, the first, on line {}, because: {}", first.line, first.message)
            }
        };
        facts.findings.push(Finding::new(FindingKind::NothingToTrainOn, 1, message));
    }
}

/// Hashes the file. That takes a small part of the time of all else, so it does not count as progress.
fn identify(path: &Path, progress: Progress) -> Result<Identity> {
    let cannot_read = || Error::io("cannot read", path);
    let mut file = File::open(path).map_err(cannot_read())?;
    let version = version(path)?;
    let total = version.0;
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Identity { sha256: sha256.finalize().into(), bytes, version }),
            Ok(count) => {
                sha256.update(&buffer[..count]);
                bytes += count as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(cannot_read()(error)),
        }
        if progress(0, total).is_break() {
            return Err(Error::Cancelled);
        }
    }
}

fn version(path: &Path) -> Result<Version> {
    let metadata = std::fs::metadata(path).map_err(Error::io("cannot read", path))?;
    Ok((metadata.len(), metadata.modified().ok()))
}
