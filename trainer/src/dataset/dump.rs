//! A dataset as it is trained on, one JSON object a line, for whoever wants to look at every token.

use std::{collections::HashMap, io::Write, path::Path};

use serde::Serialize;

use super::{encode::TextTokenizer, records::Records, store::TokenStore};
use crate::{Error, Result, batch::IGNORED};

/// So many bytes of the dataset file are looked at together.
const BATCH_BYTES: usize = 4 << 20;

/// One document.
#[derive(Serialize)]
struct Line<'a> {
    file: &'a str,
    line: u64,
    conversation: &'a str,
    cut_turns: u32,
    text: String,
    input_ids: &'a [u32],
    assistant_mask: Vec<u8>,
}

/// Writes every document of a tokenised file: its file, line and conversation, how many turns were cut, the text of its tokens, and
/// for every token whether it is learnt. The file is read once more for the names of its conversations.
pub fn write(
    out: &mut impl Write,
    path: &Path,
    dataset: &Path,
    tokenizer: &TextTokenizer,
    store: &TokenStore,
) -> Result<()> {
    let names = conversation_names(dataset)?;
    let file = dataset.file_name().unwrap_or_default().to_string_lossy();
    for (index, document) in store.documents().iter().enumerate() {
        let sequence = store.sequence(index)?;
        let line = Line {
            file: &file,
            line: document.line,
            conversation: names.get(&document.conversation).map_or("", String::as_str),
            cut_turns: document.cut_turns,
            text: tokenizer.decode(&sequence.tokens)?,
            input_ids: &sequence.tokens,
            assistant_mask: sequence.labels.iter().map(|label| u8::from(*label != IGNORED)).collect(),
        };
        serde_json::to_writer(&mut *out, &line).map_err(|error| Error::io("cannot write", path)(error.into()))?;
        out.write_all(b"\n").map_err(Error::io("cannot write", path))?;
    }
    out.flush().map_err(Error::io("cannot write", path))
}

/// The conversations' names by their keys, which is how documents refer to them.
fn conversation_names(dataset: &Path) -> Result<HashMap<u64, String>> {
    let mut names = HashMap::new();
    let mut records = Records::open(dataset)?;
    while let Some(batch) = records.next_batch(BATCH_BYTES)? {
        for example in batch.iter().filter_map(|record| record.parse().example) {
            names.entry(example.conversation.key()).or_insert(example.conversation.id);
        }
    }
    Ok(names)
}
