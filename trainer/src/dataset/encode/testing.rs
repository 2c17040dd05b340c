//! What the tests of this floor share: the demo's tokenizer as a model folder, and conversations.

use std::{fs, path::Path};

use serde_json::Value;

use super::{Encoded, Encoder, LEARNT, Outcome, PrepareOptions, TextModel, Workspace};
use crate::dataset::example::{Body, Conversation, Example, Learnt, Message, Role};

/// A folder with a tokenizer and a chat template.
pub(in crate::dataset) fn write_tokenizer(folder: &Path) {
    fs::write(folder.join("tokenizer.json"), include_bytes!("../../demo/tokenizer.json")).unwrap();
    fs::write(folder.join("tokenizer_config.json"), include_bytes!("../../demo/tokenizer_config.json")).unwrap();
}

// === impl TextModel ===

impl TextModel {
    pub(in crate::dataset) fn demo() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_tokenizer(folder.path());
        Self::load(folder.path()).unwrap()
    }

    /// An example's tokens and what became of it.
    pub(in crate::dataset) fn encode(&self, example: &Example, options: PrepareOptions) -> (Vec<u32>, Outcome) {
        let mut tokens = vec![7];
        let encoder = Encoder::new(&self.template, &self.tokenizer, options);
        let outcome = encoder.encode(example, &mut Workspace::default(), &mut tokens).unwrap();
        assert_eq!(tokens.remove(0), 7, "what was there before stays");
        (tokens, outcome)
    }

    /// The tokens of an example that is used.
    pub(in crate::dataset) fn encoded(&self, example: &Example, options: PrepareOptions) -> (Vec<u32>, Encoded) {
        let (tokens, outcome) = self.encode(example, options);
        (tokens, outcome.encoded.unwrap())
    }

    /// The text of tokens, special ones included.
    pub(in crate::dataset) fn decode(&self, tokens: impl IntoIterator<Item = u32>) -> String {
        let ids: Vec<u32> = tokens.into_iter().map(|token| token & !LEARNT).collect();
        self.tokenizer.decode(&ids).unwrap()
    }

    /// The text of the learnt tokens.
    pub(in crate::dataset) fn learnt(&self, tokens: &[u32]) -> String {
        self.decode(tokens.iter().copied().filter(|token| token & LEARNT != 0))
    }
}

/// No limit that matters, the default otherwise.
pub(in crate::dataset) const OPTIONS: PrepareOptions =
    PrepareOptions { max_length: 1 << 20, train_on_prompt: false, learn_every_turn: false };

/// Turns by the first letters of their roles.
pub(in crate::dataset) fn turns(list: &[(char, &str)]) -> Vec<Message> {
    let role = |letter: char| match letter {
        's' => Role::System,
        'u' => Role::User,
        't' => Role::Tool,
        _ => Role::Assistant,
    };
    list.iter().map(|(letter, content)| Message::new(role(*letter), *content)).collect()
}

/// A conversation on line 4.
pub(in crate::dataset) fn example(messages: Vec<Message>, learnt: Learnt) -> Example {
    Example {
        line: 4,
        conversation: Conversation { id: "c".into(), named: true },
        body: Body::Messages(messages),
        learnt,
        tools: Value::Null,
    }
}

/// A text on line 4.
pub(in crate::dataset) fn text(text: &str) -> Example {
    let body = Body::Text(text.into());
    Example {
        line: 4,
        conversation: Conversation { id: "c".into(), named: true },
        body,
        learnt: Learnt::EveryAssistantTurn,
        tools: Value::Null,
    }
}
