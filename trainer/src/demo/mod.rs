//! The embedded demo: consultations of a bicycle mechanic, a tokenizer made from them, and a tiny Qwen3-Next base model
//! that is computed, the same bytes on every machine, when it is needed.

mod model;

use std::{fs, path::Path};

use tokenizers::Tokenizer;

use crate::{Error, Result, artifacts::atomic};

/// The name by which a job asks for the demo's base model.
pub const BASE_MODEL: &str = "brightrun/demo-moe";
/// The name by which a job asks for the demo's conversations.
pub const DATASET: &str = "demo:conversations";

const CONVERSATIONS: &[u8] = include_bytes!("conversations.jsonl");
const TOKENIZER: &[u8] = include_bytes!("tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("tokenizer_config.json");

/// Writes the base model: configuration, weights and tokenizer. Files that are there already stay untouched.
pub fn write_model(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io("cannot create", folder))?;
    let tokenizer = tokenizer()?;
    write_once(&folder.join("tokenizer.json"), TOKENIZER)?;
    write_once(&folder.join("tokenizer_config.json"), TOKENIZER_CONFIG)?;
    write_once(&folder.join("model.safetensors"), &model::weights(|id| tokenizer.id_to_token(id))?)?;
    write_once(&folder.join("config.json"), &model::config())
}

/// Writes the conversations, one JSON object a line.
pub fn write_dataset(path: &Path) -> Result<()> {
    write_once(path, CONVERSATIONS)
}

/// The demo's tokenizer.
pub fn tokenizer() -> Result<Tokenizer> {
    Tokenizer::from_bytes(TOKENIZER).map_err(|error| Error::Invalid(format!("the demo's tokenizer: {error}")))
}

fn write_once(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    atomic::write(path, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{format, sequences};

    #[test]
    fn the_conversations_are_well_formed_and_fit_the_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("conversations.jsonl");
        write_dataset(&path).unwrap();
        let conversations = format::read_conversations(&path).unwrap();
        assert_eq!(conversations.len(), 48);
        let options = sequences::SequenceOptions { max_length: 512, train_on_prompt: false };
        let built = sequences::build(&tokenizer().unwrap(), &conversations, options).unwrap();
        assert_eq!(built.truncated, 0);
    }

    #[test]
    fn the_tokenizer_has_the_special_tokens_and_fills_its_vocabulary() {
        let tokenizer = tokenizer().unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), model::VOCABULARY);
        let ids = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(|token| tokenizer.token_to_id(token));
        assert_eq!(ids, [Some(1021), Some(1022), Some(1023)]);
        let text = "Any text — 日本, e\u{301} — survives.";
        let tokens = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(tokens.get_ids(), false).unwrap(), text.replace("e\u{301}", "é"));
    }

    #[test]
    fn the_model_is_small_and_a_damaged_file_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        write_model(folder.path()).unwrap();
        let weights = folder.path().join("model.safetensors");
        let first = fs::read(&weights).unwrap();
        fs::write(&weights, b"damaged").unwrap();
        write_model(folder.path()).unwrap();
        assert_eq!(fs::read(&weights).unwrap(), first);
        let files = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap());
        let sizes: Vec<u64> = files.map(|entry| entry.metadata().unwrap().len()).collect();
        assert_eq!(sizes.len(), 4);
        assert!(sizes.iter().sum::<u64>() < 5_000_000, "{sizes:?}");
    }
}
