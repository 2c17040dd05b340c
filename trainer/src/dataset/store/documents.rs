//! `documents.bin`: records of fixed width, little endian, in the order of [`Document`]'s fields.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use crate::{Error, Result, dataset::facts::Document};

/// Bytes of a record: three `u64`, four `u32`.
pub(super) const RECORD_BYTES: usize = 3 * 8 + 4 * 4;

/// A document as it is stored.
pub(super) fn record(document: &Document) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    let longs = [document.line, document.conversation, document.offset];
    let shorts = [document.tokens, document.targets, document.whole_tokens, document.cut_turns];
    for (place, value) in record[..24].chunks_exact_mut(8).zip(longs) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    for (place, value) in record[24..].chunks_exact_mut(4).zip(shorts) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    record
}

fn document(record: &[u8; RECORD_BYTES]) -> Document {
    let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| record[at + i]));
    let short = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| record[at + i]));
    Document {
        line: long(0),
        conversation: long(8),
        offset: long(16),
        tokens: short(24),
        targets: short(28),
        whole_tokens: short(32),
        cut_turns: short(36),
    }
}

/// Reads all documents; together they are the `tokens` of the store, without a gap.
pub(super) fn read(path: &Path, tokens: u64) -> Result<Vec<Document>> {
    let file = File::open(path).map_err(Error::io("cannot read", path))?;
    let count = file.metadata().map_err(Error::io("cannot read", path))?.len() as usize / RECORD_BYTES;
    let mut reader = BufReader::new(file);
    let mut documents = Vec::with_capacity(count);
    let mut offset = 0;
    for index in 0..count {
        let mut bytes = [0; RECORD_BYTES];
        reader.read_exact(&mut bytes).map_err(Error::io("cannot read", path))?;
        let document = document(&bytes);
        if document.offset != offset {
            return Err(Error::file(path, format!("document {index} does not begin where the one before it ends")));
        }
        offset += u64::from(document.tokens);
        documents.push(document);
    }
    if offset != tokens {
        return Err(Error::file(path, format!("the documents have {offset} tokens, the store has {tokens}")));
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let written = Document {
            line: 1 << 40,
            conversation: u64::MAX - 5,
            offset: 9,
            tokens: 7,
            targets: 6,
            whole_tokens: 8,
            cut_turns: 3,
        };
        assert_eq!(document(&record(&written)), written);
    }

    #[test]
    fn documents_with_a_gap_or_without_their_tokens_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("documents.bin");
        let at = |offset, tokens| Document {
            line: 1,
            conversation: 1,
            offset,
            tokens,
            targets: 1,
            whole_tokens: tokens,
            cut_turns: 0,
        };
        std::fs::write(&path, [record(&at(0, 5)), record(&at(5, 3))].concat()).unwrap();
        assert_eq!(read(&path, 8).unwrap(), [at(0, 5), at(5, 3)]);
        assert!(read(&path, 9).unwrap_err().to_string().contains("the documents have 8 tokens, the store has 9"));
        std::fs::write(&path, [record(&at(0, 5)), record(&at(6, 2))].concat()).unwrap();
        assert!(read(&path, 8).unwrap_err().to_string().contains("document 1 does not begin"));
    }
}
