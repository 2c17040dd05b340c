//! From text to tokens, with the bytes that each of them stands for.

use std::{fs, path::Path};

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::{direct::Direct, words::WordCache};
use crate::{Error, Result, dataset::template::ChatTemplate};

/// Token ids of a text, and the bytes of each.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// The ids.
    pub ids: Vec<u32>,
    /// First byte and end of each token in the text. They ascend and may overlap where one character is several tokens.
    pub bytes: Vec<(usize, usize)>,
}

/// A model's tokenizer, set up for whole texts: nothing is added, cut or padded.
#[derive(Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    digest: [u8; 32],
    end_of_text: Option<u32>,
    direct: Option<Direct>,
}

// === impl Tokens ===

impl Tokens {
    /// Appends one.
    pub fn push(&mut self, id: u32, start: usize, end: usize) {
        self.ids.push(id);
        self.bytes.push((start, end));
    }

    fn clear(&mut self) {
        self.ids.clear();
        self.bytes.clear();
    }
}

// === impl TextTokenizer ===

impl TextTokenizer {
    /// Reads `tokenizer.json`, and which token ends a text where the model says so.
    pub fn load(model_dir: &Path) -> Result<Self> {
        let path = model_dir.join("tokenizer.json");
        let bytes = fs::read(&path).map_err(Error::io("cannot read", &path))?;
        let digest = Sha256::digest(&bytes).into();
        let mut tokenizer = Tokenizer::from_bytes(&bytes)
            .map_err(|error| Error::file(&path, format!("the tokenizer cannot be used: {error}")))?;
        drop(bytes);
        tokenizer
            .with_padding(None)
            .with_truncation(None)
            .map_err(|error| Error::file(&path, format!("the tokenizer cannot be used: {error}")))?;
        let end_of_text = ChatTemplate::special_tokens(model_dir)?
            .into_iter()
            .find_map(|(name, token)| (name == "eos_token").then_some(token))
            .and_then(|token| tokenizer.token_to_id(&token));
        let direct = Direct::of(&tokenizer)?;
        Ok(Self { tokenizer, digest, end_of_text, direct })
    }

    /// SHA-256 of `tokenizer.json`.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The token that ends a text, if the model names one.
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    /// Whether a token is one of those that stand for no text, such as the end of a turn.
    pub fn is_special(&self, id: u32) -> bool {
        self.tokenizer.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// Replaces `tokens` by those of a text.
    pub fn encode(&self, text: &str, words: &mut WordCache, tokens: &mut Tokens) -> Result<()> {
        tokens.clear();
        if let Some(direct) = &self.direct {
            if direct.encode(self.tokenizer.get_model(), text, words, tokens)? {
                return Ok(());
            }
            tokens.clear();
        }
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(|error| Error::Invalid(format!("the tokenizer refuses a text: {error}")))?;
        tokens.ids.extend_from_slice(encoding.get_ids());
        tokens.bytes.extend_from_slice(encoding.get_offsets());
        Ok(())
    }

    /// The text of tokens, special ones included.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let refused = |error| Error::Invalid(format!("the tokenizer cannot turn tokens back into text: {error}"));
        self.tokenizer.decode(ids, false).map_err(refused)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dataset::encode::testing::write_tokenizer;

    fn load() -> TextTokenizer {
        let folder = tempfile::tempdir().unwrap();
        write_tokenizer(folder.path());
        TextTokenizer::load(folder.path()).unwrap()
    }

    /// The short way and the crate agree: same ids, and the same tokens touch the same characters.
    fn agree(tokenizer: &TextTokenizer, words: &mut WordCache, text: &str) {
        let mut tokens = Tokens::default();
        tokenizer.encode(text, words, &mut tokens).unwrap();
        let expected = tokenizer.tokenizer.encode(text, false).unwrap();
        assert_eq!(tokens.ids, expected.get_ids(), "{text:?}");
        for (&(start, end), &offsets) in tokens.bytes.iter().zip(expected.get_offsets()) {
            // The crate gives a token that is part of a character the whole character.
            assert_eq!((text.floor_char_boundary(start), text.ceil_char_boundary(end)), offsets, "{text:?}");
        }
    }

    #[test]
    fn the_demo_tokenizer_takes_the_short_way() {
        let tokenizer = load();
        let direct = tokenizer.direct.as_ref().expect("the shape is known");
        let short = |text| {
            direct
                .encode(tokenizer.tokenizer.get_model(), text, &mut WordCache::default(), &mut Tokens::default())
                .unwrap()
        };
        assert!(short("<|im_start|>user\nWie spät ist es? — 日本 🚲<|im_end|>\n"));
        assert!(!short("e\u{301}"), "NFC changes this");
        assert_eq!(tokenizer.end_of_text(), Some(1023));
    }

    #[test]
    fn every_character_is_tokenised_as_the_crate_does() {
        let tokenizer = load();
        let mut words = WordCache::default();
        // The planes in which anything is assigned; what is not is treated alike.
        let planes = (0..0x3_2000).chain(0xe_0000..0xe_0200);
        let all: Vec<char> = planes.filter_map(char::from_u32).collect();
        for block in all.chunks(64) {
            let text: String = block.iter().flat_map(|c| ['a', *c, 'b', ' ', *c, '\'', *c, '\n']).collect();
            agree(&tokenizer, &mut words, &text);
        }
    }

    #[test]
    fn other_shapes_take_the_long_way() {
        let folder = tempfile::tempdir().unwrap();
        write_tokenizer(folder.path());
        let path = folder.path().join("tokenizer.json");
        let text = fs::read_to_string(&path).unwrap();
        for (from, to) in [
            (r#""type":"NFC""#, r#""type":"NFKC""#),
            (r#"\\p{N}| ?["#, r#"\\p{N}{1,3}| ?["#),
            (r#""normalized":false,"special":true"#, r#""normalized":true,"special":true"#),
            (r#""lstrip":false"#, r#""lstrip":true"#),
            (r#""behavior":"Isolated""#, r#""behavior":"Removed""#),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            fs::write(&path, changed).unwrap();
            let tokenizer = TextTokenizer::load(folder.path()).unwrap();
            assert!(tokenizer.direct.is_none(), "{to}");
            agree(&tokenizer, &mut WordCache::default(), "12345 <|im_end|> ﬁx it's");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_tokenised_as_the_crate_does(
            parts in prop::collection::vec(prop_oneof![
                "\\PC{0,12}",
                "[ \t\r\n\u{a0}\u{3000}]{0,6}",
                "[a-zA-Z']{0,8}",
                "'(?i:s|t|re|ve|m|ll|d|\u{17f})[a-z]?",
                "[a-e\u{300}-\u{30a}\u{1100}-\u{1112}\u{1161}-\u{1175}\u{ac00}-\u{ac20}]{0,5}",
                "[\u{0}-\u{10ffff}]{0,6}",
                Just("<|im_end|>".to_owned()), Just("<|im_start|>".to_owned()), Just("<|im_".to_owned()),
            ], 0..12),
        ) {
            // Shared state, as in a run: the cache must not remember anything wrong.
            let (tokenizer, words) = (&*LOADED, &WORDS);
            agree(tokenizer, &mut words.lock().unwrap(), &parts.concat());
        }
    }

    static LOADED: std::sync::LazyLock<TextTokenizer> = std::sync::LazyLock::new(load);
    static WORDS: std::sync::LazyLock<std::sync::Mutex<WordCache>> = std::sync::LazyLock::new(Default::default);
}
