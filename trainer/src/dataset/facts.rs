//! What is known of a dataset file once every line of it was read.

use serde::{Deserialize, Serialize};

use super::finding::Findings;

/// One tokenised example: where its tokens lie and what the split, the packing and the report need to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Document {
    /// The line it comes from.
    pub line: u64,
    /// A 64-bit hash of its conversation's id.
    pub conversation: u64,
    /// First token in the store.
    pub offset: u64,
    /// Number of tokens.
    pub tokens: u32,
    /// Tokens that are learnt (labels, before they are shifted).
    pub targets: u32,
    /// Number of tokens before its history was cut; the same as `tokens` where nothing was.
    pub whole_tokens: u32,
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
    /// Examples that can be trained on.
    pub examples: u64,
    /// Distinct conversations among them.
    pub conversations: u64,
    /// Turns without system prompts: of each conversation, those of its longest example.
    pub turns: u64,
    /// Turns that are learnt.
    pub learnt_turns: u64,
    /// Tokens of all examples, after cutting.
    pub tokens: u64,
    /// Tokens among them that are learnt.
    pub target_tokens: u64,
    /// Turns that were cut off the beginnings of examples.
    pub cut_turns: u64,
    /// Everything found.
    pub findings: Findings,
}
