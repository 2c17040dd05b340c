//! Tokenised datasets on disk.
//!
//! A store is a folder that appears whole or not at all:
//!
//! | file | content |
//! |---|---|
//! | `tokens.bin` | every document's tokens, one after the other: `u32` little endian, the top bit set where the token is learnt |
//! | `documents.bin` | one record of [`documents::RECORD_BYTES`] bytes per document |
//! | `facts.json` | [`FileFacts`] |
//! | `manifest.json` | format version, what the content follows from ([`Key`]), size and SHA-256 of the other files |
//!
//! The folder's name is the key's digest, so a store is found by what it was made of. It is opened only after all of it
//! was read and compared with its manifest. Writers fill a folder with a name of their own and rename it; two of them can
//! make the same store at the same time, and one that dies leaves only a folder nobody reads.

mod documents;
mod key;
mod manifest;
#[cfg(test)]
mod tests;
mod write;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

pub use key::Key;
pub use write::StoreWriter;

use super::{
    encode::LEARNT,
    facts::{Document, FileFacts},
};
use crate::{
    Error, Result,
    batch::{IGNORED, Sequence},
};

const TOKENS: &str = "tokens.bin";
const DOCUMENTS: &str = "documents.bin";
const FACTS: &str = "facts.json";
const MANIFEST: &str = "manifest.json";

/// The documents of a dataset file. Their places are in memory, their tokens on disk.
#[derive(Debug)]
pub struct TokenStore {
    documents: Vec<Document>,
    path: PathBuf,
    /// `None` where there is no document.
    tokens: Option<File>,
}

/// What was found under a key.
#[derive(Debug)]
pub enum Lookup {
    /// A complete store.
    Present(TokenStore, Box<FileFacts>),
    /// Nothing.
    Absent,
    /// A folder that is no complete store; the text says why.
    Damaged(String),
}

// === impl TokenStore ===

impl TokenStore {
    /// A store without documents, as a dataset has that cannot be used.
    pub fn empty() -> Self {
        Self { documents: Vec::new(), path: PathBuf::new(), tokens: None }
    }

    /// Looks for the store of a key in a cache folder and checks every byte of it.
    pub fn look_up(cache: &Path, key: &Key) -> Result<Lookup> {
        let folder = cache.join(key.name());
        if !folder.try_exists().map_err(Error::io("cannot look at", &folder))? {
            return Ok(Lookup::Absent);
        }
        Ok(match Self::open(&folder, key) {
            Ok((store, facts)) => Lookup::Present(store, Box::new(facts)),
            Err(error) => Lookup::Damaged(error.to_string()),
        })
    }

    fn open(folder: &Path, key: &Key) -> Result<(Self, FileFacts)> {
        manifest::verify(folder, key)?;
        let path = folder.join(TOKENS);
        let tokens = File::open(&path).map_err(Error::io("cannot read", &path))?;
        let bytes = tokens.metadata().map_err(Error::io("cannot read", &path))?.len();
        let documents = documents::read(&folder.join(DOCUMENTS), bytes / 4)?;
        let facts = folder.join(FACTS);
        let text = fs::read(&facts).map_err(Error::io("cannot read", &facts))?;
        let facts = serde_json::from_slice(&text).map_err(|error| Error::file(&facts, error.to_string()))?;
        Ok((Self { documents, path, tokens: Some(tokens) }, facts))
    }

    /// The documents, in the order of the file.
    pub fn documents(&self) -> &[Document] {
        &self.documents
    }

    /// The tokens and labels of a document.
    pub fn sequence(&self, index: usize) -> Result<Sequence> {
        let (Some(document), Some(file)) = (self.documents.get(index), &self.tokens) else {
            let count = self.documents.len();
            return Err(Error::Invalid(format!("there is no document {index}; the dataset has {count}")));
        };
        let mut bytes = vec![0; 4 * document.tokens as usize];
        file.read_exact_at(&mut bytes, 4 * document.offset).map_err(Error::io("cannot read", &self.path))?;
        let words = bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        let label = |word: u32| if word & LEARNT == 0 { IGNORED } else { i64::from(word & !LEARNT) };
        let labels = words.clone().map(label).collect();
        Ok(Sequence { tokens: words.map(|word| word & !LEARNT).collect(), labels, valid: document.tokens as usize })
    }
}
