//! Which tokens end an answer.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::config::json::read_object;
use crate::dataset::encode::{TextModel, Tokens, WordCache};
use crate::dataset::example::{Message, Role};
use crate::{Error, Result};

/// Bytes of the files that are read for it.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// An answer that no template changes.
const PROBE: &str = "brightrun";

/// The tokens that end an answer: those of `generation_config.json` and `config.json` (`eos_token_id`), the tokenizer's
/// `eos_token`, and the special token that the chat template puts behind an answer. A base model's own files often name
/// only the end of a text, and a model that was taught conversations ends with the template's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndTokens {
    ids: BTreeSet<u32>,
}

// === impl EndTokens ===

impl EndTokens {
    /// Those of a model's folder.
    pub fn of(model_dir: &Path, text: &TextModel) -> Result<Self> {
        let mut ids = BTreeSet::new();
        for name in ["generation_config.json", "config.json"] {
            let path = model_dir.join(name);
            if path.is_file() {
                let object = read_object(&path, MAX_FILE_BYTES)?;
                ids.extend(token_ids(object.get("eos_token_id"), &path)?);
            }
        }
        ids.extend(text.tokenizer.end_of_text());
        ids.extend(end_of_turn(text)?);
        Ok(Self { ids })
    }

    /// Whether a token ends an answer.
    pub fn contains(&self, token: u32) -> bool {
        self.ids.contains(&token)
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.ids.iter().copied()
    }
}

/// One id, a list of them, or nothing.
fn token_ids(value: Option<&Value>, path: &Path) -> Result<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match value {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(value) => id(value).map(|id| vec![id]),
    };
    ids.ok_or_else(|| Error::file(path, "eos_token_id: expected a token id or a list of them"))
}

/// The special token that the template puts behind an answer, if it does.
fn end_of_turn(TextModel { tokenizer, template }: &TextModel) -> Result<Option<u32>> {
    let conversation = [Message::new(Role::User, PROBE), Message::new(Role::Assistant, PROBE)];
    // A template that cannot write this conversation has its say when it is given the real one.
    let Ok(rendered) = template.render_for_training(&conversation, &Value::Null) else { return Ok(None) };
    let Some(turn) = rendered.turns.last().map(|turn| &rendered.text[turn.bytes.clone()]) else { return Ok(None) };
    let Some(end) = turn.rfind(PROBE).map(|at| &turn[at + PROBE.len()..]) else { return Ok(None) };
    let mut tokens = Tokens::default();
    tokenizer.encode(end, &mut WordCache::default(), &mut tokens)?;
    Ok(tokens.ids.first().copied().filter(|id| tokenizer.is_special(*id)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::demo;

    fn ends(folder: &Path) -> Result<Vec<u32>> {
        Ok(EndTokens::of(folder, &TextModel::load(folder)?)?.iter().collect())
    }

    #[test]
    fn ends_come_from_every_file_that_names_some() {
        let folder = tempfile::tempdir().unwrap();
        demo::write_tokenizer(folder.path()).unwrap();
        // The tokenizer's eos token is the template's end of turn.
        assert_eq!(ends(folder.path()).unwrap(), [1023]);
        fs::write(folder.path().join("config.json"), r#"{"eos_token_id": 1021}"#).unwrap();
        fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [7, 1021]}"#).unwrap();
        assert_eq!(ends(folder.path()).unwrap(), [7, 1021, 1023]);
        fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": -1}"#).unwrap();
        let error = ends(folder.path()).unwrap_err().to_string();
        assert!(error.contains("generation_config.json: eos_token_id"), "{error}");
    }

    /// Where the tokenizer names only the end of a text, as those of base models do, the template tells the rest.
    #[test]
    fn the_end_of_a_turn_is_found_in_the_template() {
        let folder = tempfile::tempdir().unwrap();
        demo::write_tokenizer(folder.path()).unwrap();
        let path = folder.path().join("tokenizer_config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["eos_token"] = "<|endoftext|>".into();
        fs::write(&path, config.to_string()).unwrap();
        assert_eq!(ends(folder.path()).unwrap(), [1021, 1023]);
        // A template whose answers end with ordinary text has no such token.
        config["chat_template"] = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
            {% if add_generation_prompt %}assistant: {% endif %}"
            .into();
        fs::write(&path, config.to_string()).unwrap();
        assert_eq!(ends(folder.path()).unwrap(), [1021]);
    }
}
