//! The shapes that a dataset's lines may have, told apart by their keys and never by a file's name.

use std::fmt;

use serde_json::{Map, Value};

/// What one line of a file looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// BrightRun's JSON Lines, version 4 and 5: one pair of client's input and expert's answer a line.
    Brightrun,
    /// BrightRun's full JSON, version 4: one object with all conversations and their pairs.
    BrightrunFull,
    /// A conversation a line, as the platform's upload check wants it.
    Turns,
    /// OpenAI's chat format.
    OpenAi,
    /// ShareGPT's conversations.
    ShareGpt,
    /// Alpaca's instructions.
    Alpaca,
    /// Prompt and answer.
    Pairs,
    /// Bare text.
    Text,
}

/// What the documentation says of a format.
struct Facts {
    name: &'static str,
    shape: &'static str,
    reading: &'static str,
    example: &'static str,
}

impl Format {
    /// All formats, in the order in which a line is compared with them.
    pub const ALL: [Self; 8] = [
        Self::BrightrunFull,
        Self::Brightrun,
        Self::Turns,
        Self::OpenAi,
        Self::ShareGpt,
        Self::Alpaca,
        Self::Pairs,
        Self::Text,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// The keys that tell a line of this format, as a text.
    pub fn shape(self) -> &'static str {
        self.facts().shape
    }

    /// How a line becomes an example, and what of it is learnt.
    pub fn reading(self) -> &'static str {
        self.facts().reading
    }

    /// A line (of the full JSON: a file) of this format.
    pub fn example(self) -> &'static str {
        self.facts().example
    }

    fn facts(self) -> Facts {
        match self {
            Self::Brightrun => Facts {
                name: "brightrun",
                shape: "`conversation_history`, `current_user_input`, `target_response`",
                reading: "`system_prompt`, the history, `current_user_input` unless the history already ends with it, then \
                          `target_response`, which alone is learnt. A first line `{\"_meta\": …}` is optional.",
                example: r#"{"conversation_id":"c1","system_prompt":"You help with money.","conversation_history":[{"turn":1,"role":"user","content":"Where do I begin?"}],"current_user_input":"Where do I begin?","target_response":"With one number: what is left at the end of a month?"}"#,
            },
            Self::BrightrunFull => Facts {
                name: "brightrun_full",
                shape: "`training_file_metadata`, `consultant_profile`, `conversations[].training_pairs`",
                reading: "Every element of every `training_pairs` is read as a line of `brightrun`; pairs of one element of \
                          `conversations` are one conversation.",
                example: r#"{"training_file_metadata":{"total_pairs":1},"consultant_profile":{},"conversations":[{"conversation_metadata":{"conversation_id":"c1"},"training_pairs":[{"conversation_history":[{"role":"user","content":"Where do I begin?"}],"current_user_input":"Where do I begin?","target_response":"With one number."}]}]}"#,
            },
            Self::Turns => Facts {
                name: "turns",
                shape: "`turns`",
                reading: "Every assistant turn is learnt. `tools` may stand beside the turns.",
                example: r#"{"conversation_id":"c1","turns":[{"role":"user","content":"Where do I begin?"},{"role":"assistant","content":"With one number."}]}"#,
            },
            Self::OpenAi => Facts {
                name: "openai",
                shape: "`messages`",
                reading: "Every assistant turn is learnt, or the last one where all others have `weight` 0. `tools`, `tool_calls`, \
                          `tool_call_id`, `name` and `reasoning_content` reach the chat template; parts of type `text` are joined.",
                example: r#"{"messages":[{"role":"system","content":"You help with money."},{"role":"user","content":"Where do I begin?"},{"role":"assistant","content":"With one number."}]}"#,
            },
            Self::ShareGpt => Facts {
                name: "sharegpt",
                shape: "`conversations` of `from` and `value`",
                reading: "Every turn of `gpt` is learnt. A `system` text beside the turns comes first.",
                example: r#"{"conversations":[{"from":"human","value":"Where do I begin?"},{"from":"gpt","value":"With one number."}]}"#,
            },
            Self::Alpaca => Facts {
                name: "alpaca",
                shape: "`instruction` with `output`",
                reading: "`instruction` and, after a blank line, `input` are the user's turn; `output` is learnt. `system` is optional.",
                example: r#"{"instruction":"Say where to begin.","input":"I have debts.","output":"With one number."}"#,
            },
            Self::Pairs => Facts {
                name: "pairs",
                shape: "`prompt` with `completion` or `response`",
                reading: "The prompt is the user's turn, the completion is learnt; both may be lists of messages instead.",
                example: r#"{"prompt":"Where do I begin?","completion":"With one number."}"#,
            },
            Self::Text => Facts {
                name: "text",
                shape: "`text`",
                reading: "All of it is learnt, without a chat template.",
                example: r#"{"text":"Whoever has debts begins with one number."}"#,
            },
        }
    }

    /// The format of a line; `None` where its keys are those of no format.
    pub(super) fn of(line: &Map<String, Value>) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.fits(line))
    }

    fn fits(self, line: &Map<String, Value>) -> bool {
        let has = |key: &str| line.contains_key(key);
        let present = |key: &str| line.get(key).is_some_and(|value| !value.is_null());
        match self {
            Self::BrightrunFull => FULL_KEYS.iter().any(|key| has(key)) || has_training_pairs(line),
            Self::Brightrun => PAIR_KEYS.iter().any(|key| has(key)),
            Self::Turns => present("turns"),
            Self::OpenAi => present("messages"),
            Self::ShareGpt => present("conversations"),
            Self::Alpaca => present("instruction") && (has("output") || has("input")),
            Self::Pairs => present("prompt") && (has("completion") || has("response")),
            Self::Text => has("text"),
        }
    }

    /// Whether a line of no format is plainly a damaged line of this one: its main key is there.
    pub(super) fn nearly_fits(self, line: &Map<String, Value>) -> bool {
        let main = match self {
            Self::BrightrunFull | Self::ShareGpt => "conversations",
            Self::Brightrun => "target_response",
            Self::Turns => "turns",
            Self::OpenAi => "messages",
            Self::Alpaca => "instruction",
            Self::Pairs => "prompt",
            Self::Text => "text",
        };
        line.contains_key(main)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// Each of these tells the full JSON.
pub(super) const FULL_KEYS: [&str; 2] = ["training_file_metadata", "consultant_profile"];
/// Each of these tells a pair.
const PAIR_KEYS: [&str; 3] = ["conversation_history", "current_user_input", "target_response"];

fn has_training_pairs(line: &Map<String, Value>) -> bool {
    let first = line.get("conversations").and_then(|conversations| conversations.get(0));
    first.is_some_and(|first| first.get("training_pairs").is_some())
}

/// All formats with their keys, for a message to somebody whose line has none of them.
pub(super) fn known_shapes() -> String {
    Format::ALL.map(|format| format!("{format} ({})", format.shape())).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<Format> {
        Format::of(serde_json::from_str::<Value>(text).unwrap().as_object().unwrap())
    }

    #[test]
    fn every_example_is_told_by_its_keys() {
        for format in Format::ALL {
            assert_eq!(of(format.example()), Some(format));
        }
    }

    #[test]
    fn keys_of_other_formats_beside_the_conversation_do_not_mislead() {
        assert_eq!(of(r#"{"prompt":"p","prompt_id":"1","messages":[]}"#), Some(Format::OpenAi));
        assert_eq!(of(r#"{"text":"rendered","messages":[]}"#), Some(Format::OpenAi));
        assert_eq!(of(r#"{"turns":null,"messages":[]}"#), Some(Format::OpenAi));
        assert_eq!(of(r#"{"instruction":"i","output":"o","text":"both"}"#), Some(Format::Alpaca));
        assert_eq!(of(r#"{"prompt":"p"}"#), None);
        assert_eq!(of(r#"{"question":"q","answer":"a"}"#), None);
    }
}
