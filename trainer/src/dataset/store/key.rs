//! What a store's content follows from.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::dataset::encode::PrepareOptions;

/// The layout of a store's files. To be raised with every change of it.
pub(super) const FORMAT: u32 = 2;

/// Everything that decides the content of a store. The version of the program is part of it, because lines are read and
/// turns cut by its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// SHA-256 of the dataset file.
    pub dataset: [u8; 32],
    /// SHA-256 of `tokenizer.json`.
    pub tokenizer: [u8; 32],
    /// The token that ends a text, which is not in `tokenizer.json`.
    pub end_of_text: Option<u32>,
    /// Digest of the chat template.
    pub template: [u8; 32],
    /// The options.
    pub options: PrepareOptions,
}

// === impl Key ===

impl Key {
    /// The key as the manifest has it.
    pub(super) fn parts(&self) -> Value {
        json!({
            "format": FORMAT,
            "program": env!("CARGO_PKG_VERSION"),
            "dataset_sha256": hex::encode(self.dataset),
            "tokenizer_sha256": hex::encode(self.tokenizer),
            "end_of_text": self.end_of_text,
            "template_digest": hex::encode(self.template),
            "max_length": self.options.max_length,
            "train_on_prompt": self.options.train_on_prompt,
            "learn_every_turn": self.options.learn_every_turn,
        })
    }

    /// The name of the store's folder: 128 bits of the SHA-256 of the parts.
    pub fn name(&self) -> String {
        hex::encode(&Sha256::digest(self.parts().to_string().as_bytes())[..16])
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::dataset::store) fn key() -> Key {
        let options = PrepareOptions { max_length: 2048, train_on_prompt: false, learn_every_turn: false };
        Key { dataset: [1; 32], tokenizer: [2; 32], end_of_text: Some(3), template: [4; 32], options }
    }

    #[test]
    fn every_part_changes_the_name() {
        let original = key();
        assert_eq!(original.name().len(), 32);
        assert_eq!(original.name(), key().name());
        let changes: [fn(&mut Key); 7] = [
            |key| key.dataset[31] = 0,
            |key| key.tokenizer[31] = 0,
            |key| key.end_of_text = None,
            |key| key.template[31] = 0,
            |key| key.options.max_length = 2047,
            |key| key.options.train_on_prompt = true,
            |key| key.options.learn_every_turn = true,
        ];
        let mut names = vec![original.name()];
        for change in changes {
            let mut changed = key();
            change(&mut changed);
            names.push(changed.name());
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 8);
    }
}
