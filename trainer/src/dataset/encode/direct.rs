//! A short way from text to tokens for the tokenizers that Qwen models have.
//!
//! The `tokenizers` crate keeps an alignment for every byte of every intermediate string; that is most of its time. For
//! one shape of `tokenizer.json` none of it is needed: NFC, a split by [`pieces::PATTERN`], byte-level BPE, added tokens
//! that take no space around them. There every token stands for as many bytes as its name has characters, as long as NFC
//! changes nothing. Where anything is otherwise, for a tokenizer or for one text, the crate does the work.

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::{
    Model, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
    pre_tokenizers::split::SplitPattern,
};
use unicode_normalization_alignments::is_nfc;

use super::{
    pieces::{self, Pieces},
    tokens::Tokens,
    words::WordCache,
};
use crate::{Error, Result};

/// Everything the short way needs beside the model's vocabulary.
#[derive(Debug)]
pub(super) struct Direct {
    /// Whether text is to be in NFC.
    nfc: bool,
    pieces: Pieces,
    /// Finds added tokens, the leftmost first and of several there the longest, as the crate does.
    added: AhoCorasick,
    /// Their ids.
    added_ids: Vec<u32>,
    /// Bytes of text that a token stands for.
    lengths: Vec<u32>,
    /// The character that stands for a byte in the vocabulary.
    characters: [char; 256],
}

// === impl Direct ===

impl Direct {
    /// The short way for this tokenizer; `None` where its shape is another.
    pub(super) fn of(tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let nfc = match tokenizer.get_normalizer() {
            None => false,
            Some(NormalizerWrapper::NFC(_)) => true,
            Some(_) => return Ok(None),
        };
        if !splits_as_expected(tokenizer.get_pre_tokenizer()) || !model_as_expected(tokenizer.get_model()) {
            return Ok(None);
        }
        let added = tokenizer.get_added_tokens_decoder();
        let plain = |token: &tokenizers::AddedToken| {
            !(token.single_word || token.lstrip || token.rstrip || token.normalized || token.content.is_empty())
        };
        if tokenizer.get_encode_special_tokens() || !added.values().all(plain) {
            return Ok(None);
        }
        let mut added: Vec<(u32, String)> = added.into_iter().map(|(id, token)| (id, token.content)).collect();
        added.sort_unstable();
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(added.iter().map(|(_, content)| content))
            .map_err(|error| Error::Invalid(format!("the tokenizer's added tokens cannot be searched for: {error}")))?;
        Ok(Some(Self {
            nfc,
            pieces: Pieces::new()?,
            added: finder,
            added_ids: added.iter().map(|(id, _)| *id).collect(),
            lengths: lengths(tokenizer.get_model()),
            characters: byte_characters(),
        }))
    }

    /// Appends the tokens of a text; `false` where the text needs the long way, and what was appended is to be dropped.
    pub(super) fn encode(
        &self,
        model: &ModelWrapper,
        text: &str,
        words: &mut WordCache,
        tokens: &mut Tokens,
    ) -> Result<bool> {
        let mut start = 0;
        for found in self.added.find_iter(text) {
            if !self.encode_plain(model, text, start..found.start(), words, tokens)? {
                return Ok(false);
            }
            tokens.push(self.added_ids[found.pattern().as_usize()], found.start(), found.end());
            start = found.end();
        }
        self.encode_plain(model, text, start..text.len(), words, tokens)
    }

    /// Text without added tokens.
    fn encode_plain(
        &self,
        model: &ModelWrapper,
        text: &str,
        bytes: std::ops::Range<usize>,
        words: &mut WordCache,
        tokens: &mut Tokens,
    ) -> Result<bool> {
        let plain = &text[bytes.clone()];
        if self.nfc && !in_nfc(plain) {
            return Ok(false);
        }
        let mut start = 0;
        while start < plain.len() {
            let end = self.pieces.end(plain, start);
            let piece = &plain[start..end];
            let whole = bytes.start + start..bytes.start + end;
            let complete = match words.get(piece) {
                Some(ids) => self.push(ids, whole, tokens),
                None => {
                    let ids = self.tokenise(model, piece)?;
                    words.insert(piece, &ids);
                    self.push(&ids, whole, tokens)
                }
            };
            if !complete {
                return Ok(false);
            }
            start = end;
        }
        Ok(true)
    }

    /// Appends the ids of one piece; `false` where their lengths are not the piece's, so that a byte would be unaccounted.
    fn push(&self, ids: &[u32], piece: std::ops::Range<usize>, tokens: &mut Tokens) -> bool {
        let mut start = piece.start;
        for &id in ids {
            let end = start + self.lengths.get(id as usize).map_or(0, |length| *length as usize);
            tokens.push(id, start, end);
            start = end;
        }
        start == piece.end
    }

    fn tokenise(&self, model: &ModelWrapper, piece: &str) -> Result<Vec<u32>> {
        let name: String = piece.bytes().map(|byte| self.characters[byte as usize]).collect();
        let tokens = model
            .tokenize(&name)
            .map_err(|error| Error::Invalid(format!("the tokenizer refuses a piece of text: {error}")))?;
        Ok(tokens.iter().map(|token| token.id).collect())
    }
}

/// `Split` by the pattern, then `ByteLevel` without an expression of its own.
fn splits_as_expected(pre_tokenizer: Option<&PreTokenizerWrapper>) -> bool {
    let Some(PreTokenizerWrapper::Sequence(sequence)) = pre_tokenizer else { return false };
    let [PreTokenizerWrapper::Split(split), PreTokenizerWrapper::ByteLevel(bytes)] = sequence.as_ref() else {
        return false;
    };
    split.pattern == SplitPattern::Regex(pieces::PATTERN.to_owned())
        && split.behavior == SplitDelimiterBehavior::Isolated
        && !split.invert
        && !bytes.use_regex
        && !bytes.add_prefix_space
}

/// BPE without chance in it. Other peculiarities are the model's own business: it is asked for every new piece.
fn model_as_expected(model: &ModelWrapper) -> bool {
    matches!(model, ModelWrapper::BPE(bpe) if bpe.dropout.is_none_or(|dropout| dropout == 0.0))
}

/// The number of bytes each token stands for: one per character of its name.
fn lengths(model: &ModelWrapper) -> Vec<u32> {
    let highest = model.get_vocab().into_values().max().map_or(0, |id| id as usize + 1);
    (0..highest).map(|id| model.id_to_token(id as u32).map_or(0, |name| name.chars().count() as u32)).collect()
}

/// Every character below U+0300 is in NFC whatever stands beside it, and none of their bytes is above 0xCB.
fn in_nfc(text: &str) -> bool {
    text.as_bytes().iter().all(|byte| *byte <= 0xCB) || is_nfc(text)
}

/// The characters of byte-level vocabularies: printable bytes of Latin-1 are themselves, the others follow from U+0100.
fn byte_characters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| match byte as u8 {
        printable @ (b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) => char::from(printable),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap_or_default()
        }
    })
}
