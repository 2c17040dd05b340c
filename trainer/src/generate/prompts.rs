//! What a model is asked.

use std::path::Path;

use serde_json::{Map, Value};

use crate::config::json::shown;
use crate::dataset::example::{Body, Message, Role};
use crate::dataset::records::Records;
use crate::{Error, Result};

/// Bytes of a file of messages.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Bytes of a dataset that are read at once.
const BATCH_BYTES: usize = 1 << 20;

/// A conversation up to where the assistant is to speak.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The turns so far.
    pub messages: Vec<Message>,
    /// Tool descriptions for the template, or null.
    pub tools: Value,
    /// What the assistant says there in the dataset.
    pub expected: Option<String>,
    /// The line of the dataset.
    pub line: Option<u64>,
}

// === impl Prompt ===

impl Prompt {
    /// The turns up to the last one of the assistant, which is what is expected; all of them where it says nothing.
    fn new(mut messages: Vec<Message>, tools: Value, line: Option<u64>) -> Self {
        let last = messages.iter().rposition(|message| message.role == Role::Assistant);
        let answered = last.filter(|at| at + 1 == messages.len() || line.is_some());
        let expected = answered.and_then(|at| messages.drain(at..).next()).and_then(|message| message.content);
        Self { messages, tools, expected, line }
    }

    /// The same with a system turn at its beginning, in place of one that is there.
    pub fn with_system(mut self, system: &str) -> Self {
        let turn = Message::new(Role::System, system);
        match self.messages.first_mut().filter(|first| first.role == Role::System) {
            Some(first) => *first = turn,
            None => self.messages.insert(0, turn),
        }
        self
    }

    /// What the user said last.
    pub fn question(&self) -> &str {
        let question = self.messages.iter().rfind(|message| message.role == Role::User);
        question.and_then(|message| message.content.as_deref()).unwrap_or_default()
    }
}

/// One question.
pub fn from_text(text: &str) -> Prompt {
    Prompt::new(vec![Message::new(Role::User, text)], Value::Null, None)
}

/// The conversation of a JSON file: a list of `{"role", "content"}`, or an object with such a list as `messages` and
/// perhaps `tools`. Where it ends with an answer, that is what is expected.
pub fn from_messages_file(path: &Path) -> Result<Prompt> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(Error::io("cannot read", path))?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(Error::io("cannot read", path))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::file(path, format!("is larger than {MAX_FILE_BYTES} bytes")));
    }
    let value = serde_json::from_str(&text).map_err(|error| Error::file(path, format!("is not JSON: {error}")))?;
    let (list, tools) = match value {
        Value::Object(mut object) => {
            (object.remove("messages").unwrap_or_default(), object.remove("tools").unwrap_or_default())
        }
        list => (list, Value::Null),
    };
    let Value::Array(list) = list else {
        let expected = r#"expected a list of {"role": ..., "content": ...}, or an object with it as "messages""#;
        return Err(Error::file(path, expected));
    };
    let messages = list.into_iter().enumerate().map(|(index, value)| {
        message(value).map_err(|reason| Error::file(path, format!("message {}: {reason}", index + 1)))
    });
    let prompt = Prompt::new(messages.collect::<Result<_>>()?, tools, None);
    match prompt.messages.is_empty() {
        true => Err(Error::file(path, "holds no message that could be answered")),
        false => Ok(prompt),
    }
}

fn message(value: Value) -> std::result::Result<Message, String> {
    let Value::Object(mut fields) = value else { return Err(format!("found {}, expected an object", shown(&value))) };
    let role = fields.remove("role");
    let known = [Role::System, Role::User, Role::Assistant, Role::Tool];
    let role = known.into_iter().find(|known| role.as_ref().and_then(Value::as_str) == Some(known.name())).ok_or_else(
        || {
            let found = role.as_ref().map_or_else(|| "nothing".to_owned(), shown);
            format!("role: found {found}, expected system, user, assistant or tool")
        },
    )?;
    let content = match fields.remove("content") {
        Some(Value::String(text)) => Some(text),
        None | Some(Value::Null) if fields.contains_key("tool_calls") => None,
        found => {
            let found = found.as_ref().map_or_else(|| "nothing".to_owned(), shown);
            return Err(format!("content: found {found}, expected a text"));
        }
    };
    Ok(Message { role, content, fields: fields.into_iter().collect::<Map<_, _>>() })
}

/// The first conversations of a dataset in any of the known formats, each up to the answer that it teaches last.
pub fn from_dataset(path: &Path, count: usize) -> Result<Vec<Prompt>> {
    let mut records = Records::open(path)?;
    let mut prompts = Vec::new();
    let mut texts = 0u64;
    while prompts.len() < count
        && let Some(batch) = records.next_batch(BATCH_BYTES)?
    {
        for example in batch.iter().filter_map(|record| record.parse().example) {
            match example.body {
                Body::Messages(messages) if prompts.len() < count => {
                    let prompt = Prompt::new(messages, example.tools, Some(example.line));
                    prompts.extend((!prompt.messages.is_empty()).then_some(prompt));
                }
                Body::Messages(_) => {}
                Body::Text(_) => texts += 1,
            }
        }
    }
    match prompts.is_empty() {
        false => Ok(prompts),
        true if texts > 0 => {
            Err(Error::file(path, "holds plain texts, which have no prompt; ask with a prompt instead"))
        }
        true => Err(Error::file(path, "holds no conversation that can be read; brightrun validate says why")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn roles(prompt: &Prompt) -> Vec<&str> {
        prompt.messages.iter().map(|message| message.role.name()).collect()
    }

    #[test]
    fn a_text_is_a_question_and_a_system_turn_comes_first_and_once() {
        let prompt = from_text("Why?").with_system("Be brief.").with_system("Be kind.");
        assert_eq!((roles(&prompt), prompt.question()), (vec!["system", "user"], "Why?"));
        assert_eq!(prompt.messages[0].content.as_deref(), Some("Be kind."));
    }

    #[test]
    fn a_file_of_messages_is_a_list_or_an_object() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.json");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            from_messages_file(&path)
        };
        let list = r#"[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}, {"role": "user", "content": "Ah?"}]"#;
        let prompt = read(list).unwrap();
        assert_eq!((roles(&prompt), &prompt.expected), (vec!["user", "assistant", "user"], &None));
        let object = r#"{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}], "tools": [1]}"#;
        let prompt = read(object).unwrap();
        assert_eq!((roles(&prompt), prompt.expected.as_deref()), (vec!["user"], Some("So.")));
        assert_eq!(prompt.tools, serde_json::json!([1]));
        for (text, reason) in [
            ("{", "is not JSON"),
            ("3", "expected a list"),
            ("{}", "expected a list"),
            ("[]", "no message that could be answered"),
            (r#"[{"role": "assistant", "content": "So."}]"#, "no message that could be answered"),
            (r#"[{"role": "user"}]"#, "message 1: content: found nothing, expected a text"),
            (r#"[{"role": "boss", "content": ""}]"#, "message 1: role: found \"boss\""),
            (r#"["user"]"#, "message 1: found \"user\", expected an object"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains("m.json: ") && error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_dataset_gives_conversations_up_to_their_last_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.jsonl");
        fs::write(
            &path,
            r#"{"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1."}, {"role": "user", "content": "2?"}, {"role": "assistant", "content": "2."}]}
{"broken": 1}
{"messages": [{"role": "user", "content": "3?"}, {"role": "assistant", "content": "3."}]}
"#,
        )
        .unwrap();
        let prompts = from_dataset(&path, 5).unwrap();
        let seen: Vec<_> = prompts.iter().map(|p| (p.line, p.question(), p.expected.as_deref())).collect();
        assert_eq!(seen, [(Some(1), "2?", Some("2.")), (Some(3), "3?", Some("3."))]);
        assert_eq!(from_dataset(&path, 1).unwrap().len(), 1);
        fs::write(&path, "{\"text\": \"Once upon a time.\"}\n").unwrap();
        assert!(from_dataset(&path, 1).unwrap_err().to_string().contains("plain texts"));
        fs::write(&path, "{\"a\": 1}\n").unwrap();
        assert!(from_dataset(&path, 1).unwrap_err().to_string().contains("no conversation"));
    }
}
