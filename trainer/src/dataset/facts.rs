//! What is known of a dataset file once every line of it was read.

use serde::{Deserialize, Serialize};

use super::finding::Findings;

/// One tokenised example, or a part of a text that was too long for one: where its tokens lie and what the split, the packing and the report need to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Document {
    /// The line it comes from.
    pub line: u64,
    /// Its conversation's key ([`Conversation::key`](super::example::Conversation::key)).
    pub conversation: u64,
    /// First token in the store.
    pub offset: u64,
    /// Number of tokens.
    pub tokens: u32,
    /// Tokens that are learnt, without the first one, which follows on nothing: the targets once labels are shifted.
    pub targets: u32,
    /// Number of tokens before its history was cut; the same as `tokens` where nothing was.
    pub whole_tokens: u32,
    /// Turns that were cut off.
    pub cut_turns: u32,
}

/// Sums over a file, and all that was found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FileFacts {
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Size of the file.
    pub bytes: u64,
    /// Name of the recognised format.
    pub format: String,
    /// Where the chat template comes from, as in `chat_template.jinja`.
    pub template: String,
    /// What is worth knowing about the template, one sentence each.
    pub template_notes: Vec<String>,
    /// Lines that are not blank (in a file that is one JSON value: its items).
    pub lines: u64,
    /// Examples that can be trained on. A text that was too long for one document is one example all the same.
    pub examples: u64,
    /// Distinct conversations among them.
    pub conversations: u64,
    /// Turns without system prompts, as they are in the file: of each conversation, those of its longest example. A text is
    /// one turn.
    pub turns: u64,
    /// Assistant's turns that are learnt.
    pub learnt_turns: u64,
    /// Tokens of all examples, after cutting.
    pub tokens: u64,
    /// Targets of all examples.
    pub target_tokens: u64,
    /// Turns that were cut off examples.
    pub cut_turns: u64,
    /// Everything found.
    pub findings: Findings,
}
