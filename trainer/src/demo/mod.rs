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

/// Writes the base model: configuration, weights, tokenizer and chat template. Files that are there already stay untouched.
pub fn write_model(folder: &Path) -> Result<()> {
    let tokenizer = tokenizer()?;
    write_tokenizer(folder)?;
    write_once(&folder.join("model.safetensors"), &model::weights(|id| tokenizer.id_to_token(id))?)?;
    write_once(&folder.join("config.json"), &model::config())
}

/// Writes the part of the base model that turns text into tokens.
pub fn write_tokenizer(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io("cannot create", folder))?;
    write_once(&folder.join("tokenizer.json"), TOKENIZER)?;
    write_once(&folder.join("tokenizer_config.json"), TOKENIZER_CONFIG)
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
    use std::io::BufRead;

    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        batch::IGNORED,
        dataset::{dump, encode::TextTokenizer},
        run::{Data, DataSpec, Parameters},
    };

    /// Tokenises a file with the model in `model` of a folder.
    fn read(folder: &Path, dataset: &Path, parameters: &Parameters) -> Data {
        let (model_dir, cache_dir) = (&folder.join("model"), &folder.join("cache"));
        let (validation_dataset, stand_in_model) = (None, false);
        let spec = DataSpec { dataset, validation_dataset, model_dir, stand_in_model, cache_dir, parameters };
        Data::read(&spec, &|_, _| std::ops::ControlFlow::Continue(())).unwrap()
    }

    #[test]
    fn the_conversations_are_well_formed_and_fit_the_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("conversations.jsonl");
        write_dataset(&path).unwrap();
        write_tokenizer(&folder.path().join("model")).unwrap();
        let data = read(folder.path(), &path, &Parameters { max_seq_length: 512, ..Parameters::default() });
        let report = data.report();
        assert_eq!((report.training.examples, report.training.format.as_str()), (48, "turns"));
        assert_eq!((&report.training.findings[..], &data.warnings()[..]), (&[][..], &[][..]));
        assert_eq!(report.template.source, "tokenizer_config.json");
    }

    #[derive(Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        name: String,
        turns: Value,
        text: String,
        tokens: Vec<u32>,
        labels: Vec<i64>,
    }

    /// `chatml_golden.json` was made by TRL with the demo's tokenizer.
    #[test]
    fn text_ids_and_labels_are_those_of_trl() {
        let golden: Golden = serde_json::from_str(include_str!("chatml_golden.json")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (model, dataset) = (folder.path().join("model"), folder.path().join("data.jsonl"));
        write_tokenizer(&model).unwrap();
        let lines: Vec<String> =
            golden.cases.iter().map(|case| json!({ "messages": case.turns }).to_string()).collect();
        fs::write(&dataset, lines.join("\n")).unwrap();
        let data = read(folder.path(), &dataset, &Parameters::default());
        let store = data.training();
        assert_eq!(store.documents().len(), golden.cases.len(), "{}", data.report());
        let mut dump = Vec::new();
        dump::write(&mut dump, Path::new("dump"), &dataset, &TextTokenizer::load(&model).unwrap(), store).unwrap();
        let texts = dump.lines().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
        for (index, (case, line)) in golden.cases.iter().zip(texts).enumerate() {
            let sequence = store.sequence(index).unwrap();
            assert_eq!((&sequence.tokens, &sequence.labels), (&case.tokens, &case.labels), "{}", case.name);
            // The tokenizer normalises, so decomposed accents come back composed.
            if case.name != "decomposed accents" {
                assert_eq!(line["text"], case.text, "{}", case.name);
            }
            let mask: Vec<u8> = case.labels.iter().map(|label| u8::from(*label != IGNORED)).collect();
            assert_eq!((&line["input_ids"], &line["assistant_mask"]), (&json!(case.tokens), &json!(mask)));
            assert_eq!(
                (&line["line"], &line["conversation"]),
                (&json!(index + 1), &json!(format!("line-{}", index + 1)))
            );
        }
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
