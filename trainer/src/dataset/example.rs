//! One training example, whatever format its line had.

use serde_json::{Map, Value};

use super::random::hash;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions.
    System,
    /// The client.
    User,
    /// The expert: what is learnt.
    Assistant,
    /// A tool's answer.
    Tool,
}

impl Role {
    /// The name that chat templates compare with.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; `None` only beside `tool_calls`.
    pub content: Option<String>,
    /// Other fields of the turn that templates ask for (`tool_calls`, `tool_call_id`, `name`, `reasoning_content`), in the file's order.
    pub fields: Map<String, Value>,
}

impl Message {
    /// A turn that is only text.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: Some(content.into()), fields: Map::new() }
    }
}

/// What an example consists of.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Turns, to be rendered by the model's chat template.
    Messages(Vec<Message>),
    /// Text that is trained on as it is, whole.
    Text(String),
}

/// Which assistant turns of an example are learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Learnt {
    /// All of them: formats whose line is a whole conversation.
    EveryAssistantTurn,
    /// The last one: formats whose line is one answer with its history.
    LastAssistantTurn,
}

/// The conversation an example belongs to. Examples of one conversation stay on one side of the split.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conversation {
    /// Its id. Where the file has none: `line-N`, in a list `item-N`, in the full JSON `conversation-N`, all counted from 1.
    pub id: String,
    /// The file says so. An id of ours means nothing in another file.
    pub named: bool,
}

/// The bit of a [`Conversation::key`] that says whether the file names it.
const NAMED: u64 = 1;

// === impl Conversation ===

impl Conversation {
    /// The file's own id, or one that stands in for it.
    pub fn new(id: Option<String>, stand_in: impl FnOnce() -> String) -> Self {
        let named = id.is_some();
        Self { id: id.unwrap_or_else(stand_in), named }
    }

    /// A hash of it by which it is known from here on.
    pub fn key(&self) -> u64 {
        hash(self.id.as_bytes()) & !NAMED | if self.named { NAMED } else { 0 }
    }

    /// Whether the conversation of a key has an id of the file's own.
    pub fn is_named(key: u64) -> bool {
        key & NAMED != 0
    }
}

/// One example.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The line it comes from, counted from 1.
    pub line: u64,
    /// The conversation it belongs to.
    pub conversation: Conversation,
    /// Its turns or text.
    pub body: Body,
    /// What is learnt of it.
    pub learnt: Learnt,
    /// Tool descriptions for the template (`tools` of the OpenAI format), or `Null`.
    pub tools: Value,
}
