//! One example as token ids, and which of them are learnt.
//!
//! Conversations are rendered by the model's chat template, tokenised as one string, and a token is learnt if any of its
//! bytes lies in an assistant's turn that is learnt. What is too long loses history ([`history`]), never its answer. Text
//! gets the model's end-of-text token where it lacks one, and is cut into consecutive documents where it is too long.

mod direct;
mod history;
mod pieces;
#[cfg(test)]
pub(in crate::dataset) mod testing;
#[cfg(test)]
mod tests;
mod text_model;
mod tokens;
mod words;

use sha2::{Digest, Sha256};

pub use text_model::TextModel;
pub use tokens::{TextTokenizer, Tokens};
pub use words::WordCache;

use super::{
    example::{Body, Example, Learnt, Message, Role},
    finding::{Finding, FindingKind},
    template::ChatTemplate,
};
use crate::Result;

/// Set in a stored token that is learnt; token ids are smaller.
pub const LEARNT: u32 = 1 << 31;

/// What decides the tokens of an example, beside the model's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrepareOptions {
    /// Most tokens of a document (`max_seq_length`).
    pub max_length: usize,
    /// The loss covers every token instead of the assistant's.
    pub train_on_prompt: bool,
    /// Every assistant turn is learnt, also where the format says only the last one.
    pub learn_every_turn: bool,
}

/// Turns examples into tokens. Shared by threads; what changes is in [`Workspace`].
pub struct Encoder<'a> {
    template: &'a ChatTemplate,
    tokenizer: &'a TextTokenizer,
    options: PrepareOptions,
}

/// What one thread keeps between examples.
#[derive(Debug, Default)]
pub struct Workspace {
    words: WordCache,
    tokens: Tokens,
}

/// An example that can be trained on. Its tokens stand in a buffer that many examples share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The line it comes from.
    pub line: u64,
    /// Its conversation's key.
    pub conversation: u64,
    /// Its documents: one, but where a text had to be cut.
    pub documents: Vec<EncodedDocument>,
    /// Its turns without system turns, as they are in the file; 1 for a text.
    pub turns: u32,
    /// Turns that are learnt; 1 for a text.
    pub learnt_turns: u32,
    /// Turns that were cut off.
    pub cut_turns: u32,
    /// The beginning of the SHA-256 of its tokens and what of them is learnt.
    pub fingerprint: [u64; 2],
}

/// One document of an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodedDocument {
    /// Number of tokens.
    pub tokens: u32,
    /// Learnt tokens that have a token before them: as many targets as the shifted labels have.
    pub targets: u32,
    /// Number of tokens before history was cut.
    pub whole_tokens: u32,
}

/// What became of an example.
#[derive(Debug, Default)]
pub struct Outcome {
    /// `None` where a finding says why it is left out.
    pub encoded: Option<Encoded>,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// The turns of a conversation, tokenised.
struct Turns {
    /// Tokens with [`LEARNT`].
    tokens: Vec<u32>,
    learnt_turns: u32,
    cut_turns: u32,
    whole_tokens: usize,
}

// === impl Encoder ===

impl<'a> Encoder<'a> {
    /// For one model and one set of options.
    pub fn new(template: &'a ChatTemplate, tokenizer: &'a TextTokenizer, options: PrepareOptions) -> Self {
        Self { template, tokenizer, options }
    }

    /// Tokenises an example and appends its tokens, [`LEARNT`] included, to `out`. An error is one of the model's files:
    /// it would come with every example.
    pub fn encode(&self, example: &Example, workspace: &mut Workspace, out: &mut Vec<u32>) -> Result<Outcome> {
        let mut findings = Vec::new();
        let first = out.len();
        let encoded = match &example.body {
            Body::Messages(messages) => self.conversation(example, messages, workspace, out, &mut findings)?,
            Body::Text(text) => Some(self.text(example, text, workspace, out, &mut findings)?),
        };
        let teaches = |encoded: &Encoded| encoded.documents.iter().any(|document| document.targets > 0);
        if !encoded.as_ref().is_none_or(teaches) {
            out.truncate(first);
            let reason = "no token of it would be learnt; the example is left out";
            return Ok(Outcome {
                encoded: None,
                findings: vec![Finding::new(FindingKind::EmptyTarget, example.line, reason)],
            });
        }
        Ok(Outcome { encoded, findings })
    }

    fn conversation(
        &self,
        example: &Example,
        messages: &[Message],
        workspace: &mut Workspace,
        out: &mut Vec<u32>,
        findings: &mut Vec<Finding>,
    ) -> Result<Option<Encoded>> {
        let learnt = if self.options.learn_every_turn { Learnt::EveryAssistantTurn } else { example.learnt };
        let turns = match history::fit(self, messages, &example.tools, learnt, workspace)? {
            Ok((turns, None)) => turns,
            Ok((turns, Some(cut))) => {
                findings.push(Finding::new(FindingKind::HistoryCut, example.line, cut));
                turns
            }
            Err((kind, reason)) => {
                findings.push(Finding::new(kind, example.line, reason));
                return Ok(None);
            }
        };
        out.extend_from_slice(&turns.tokens);
        let document = EncodedDocument {
            tokens: turns.tokens.len() as u32,
            targets: targets(&turns.tokens),
            whole_tokens: turns.whole_tokens as u32,
        };
        Ok(Some(Encoded {
            line: example.line,
            conversation: example.conversation.key(),
            documents: vec![document],
            turns: messages.iter().filter(|message| message.role != Role::System).count() as u32,
            learnt_turns: turns.learnt_turns,
            cut_turns: turns.cut_turns,
            fingerprint: fingerprint(&turns.tokens),
        }))
    }

    /// A text and the token that ends it; all of it is learnt.
    fn text(
        &self,
        example: &Example,
        text: &str,
        workspace: &mut Workspace,
        out: &mut Vec<u32>,
        findings: &mut Vec<Finding>,
    ) -> Result<Encoded> {
        let first = out.len();
        self.tokenizer.encode(text, &mut workspace.words, &mut workspace.tokens)?;
        let ids = &workspace.tokens.ids;
        out.extend(ids.iter().map(|id| id | LEARNT));
        out.extend(self.tokenizer.end_of_text().filter(|end| ids.last() != Some(end)).map(|end| end | LEARNT));
        let tokens = &out[first..];
        let (count, limit) = (tokens.len(), self.options.max_length);
        let pieces = text_pieces(count, limit);
        if pieces.len() > 1 {
            let documents = pieces.len();
            let text = format!("{count} tokens exceed max_seq_length {limit}: the text became {documents} documents");
            findings.push(Finding::new(FindingKind::TextSplit, example.line, text));
        }
        let document = |&length: &usize| EncodedDocument {
            tokens: length as u32,
            targets: length.saturating_sub(1) as u32,
            whole_tokens: length as u32,
        };
        Ok(Encoded {
            line: example.line,
            conversation: example.conversation.key(),
            documents: pieces.iter().map(document).collect(),
            turns: 1,
            learnt_turns: 1,
            cut_turns: 0,
            fingerprint: fingerprint(tokens),
        })
    }
}

/// Lengths of the documents that a text becomes: full ones and a rest. A rest of one token would have nothing to learn, so
/// the document before it gives it one.
fn text_pieces(tokens: usize, max_length: usize) -> Vec<usize> {
    let max_length = max_length.max(1);
    let mut pieces = vec![max_length; tokens / max_length];
    match (tokens % max_length, pieces.last_mut()) {
        (0, _) => {}
        (1, Some(last)) if *last > 2 => {
            *last -= 1;
            pieces.push(2);
        }
        (rest, _) => pieces.push(rest),
    }
    pieces
}

/// Labels are shifted by one, so the first token is nobody's target.
fn targets(tokens: &[u32]) -> u32 {
    tokens.iter().skip(1).filter(|token| *token & LEARNT != 0).count() as u32
}

fn fingerprint(tokens: &[u32]) -> [u64; 2] {
    const WORDS: usize = 1024;
    let mut sha256 = Sha256::new();
    let mut bytes = [0; 4 * WORDS];
    for chunk in tokens.chunks(WORDS) {
        for (place, token) in bytes.chunks_exact_mut(4).zip(chunk) {
            place.copy_from_slice(&token.to_le_bytes());
        }
        sha256.update(&bytes[..4 * chunk.len()]);
    }
    let digest = sha256.finalize();
    [0, 8].map(|at| digest[at..at + 8].iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}
