//! Formats whose line is one answer: Alpaca, pairs, text.

use serde_json::{Map, Value};

use super::{
    chats::system_turn,
    conversation::{Draft, Turn},
    messages::{self, Keys},
    notes::Notes,
};
use crate::dataset::{
    example::{Body, Conversation, Example, Learnt, Role},
    finding::FindingKind,
};

/// `{"instruction", "input", "output"}`.
pub(super) fn read_alpaca(mut line: Map<String, Value>, notes: &mut Notes<'_>) -> Option<Draft> {
    if line.get("history").and_then(Value::as_array).is_some_and(|history| !history.is_empty()) {
        notes.wrong("history", "not part of this format; write the conversation as `messages`");
    }
    let mut turns = system_turn("system", &mut line, notes);
    let instruction = match line.remove("instruction") {
        Some(Value::String(text)) => text,
        other => {
            notes.wrong_type("instruction", "a string", &other.unwrap_or_default());
            String::new()
        }
    };
    let input = notes.optional_text(&mut line, "input").filter(|input| !input.trim().is_empty());
    let asked = match input {
        None => instruction,
        Some(input) => format!("{instruction}\n\n{input}"),
    };
    let output = answer(line.remove("output"), "output", notes)?;
    turns.push(Turn::field("instruction", Role::User, asked));
    turns.push(Turn::field("output", Role::Assistant, output));
    let conversation = notes.conversation_id(&mut line);
    Some(Draft { conversation, turns, learnt: Learnt::LastAssistantTurn, tools: Value::Null })
}

/// `{"prompt", "completion"}` or `{"prompt", "response"}`, each a text or a list of messages.
pub(super) fn read_pair(mut line: Map<String, Value>, notes: &mut Notes<'_>) -> Option<Draft> {
    let mut turns = system_turn("system", &mut line, notes);
    turns.extend(side("prompt", line.remove("prompt").unwrap_or_default(), Role::User, notes));
    let present = |field: &&str| line.get(*field).is_some_and(|value| !value.is_null());
    let field = match ["completion", "response"].into_iter().filter(present).collect::<Vec<_>>()[..] {
        [] => {
            notes.skip(FindingKind::MissingTarget, "completion is null or absent; the pair is left out");
            return None;
        }
        [field] => field,
        _ => {
            notes.wrong("completion", "`response` stands beside it; one of them is expected");
            return None;
        }
    };
    let prompt = turns.len();
    turns.extend(side(field, line.remove(field).unwrap_or_default(), Role::Assistant, notes));
    let learnt = learnt_of(&turns[..prompt], &turns[prompt..], field, notes)?;
    let conversation = notes.conversation_id(&mut line);
    let tools = messages::read_tools(&mut line, notes);
    Some(Draft { conversation, turns, learnt, tools })
}

fn side(field: &'static str, value: Value, role: Role, notes: &mut Notes<'_>) -> Vec<Turn> {
    match value {
        Value::String(text) => vec![Turn::field(field, role, text)],
        Value::Array(_) => messages::read(field, value, Keys::RoleAndContent, notes),
        other => {
            notes.wrong_type(field, "a string or a list of messages", &other);
            Vec::new()
        }
    }
}

/// The completion is learnt, the prompt is not.
fn learnt_of(prompt: &[Turn], completion: &[Turn], field: &'static str, notes: &mut Notes<'_>) -> Option<Learnt> {
    let answers = |turns: &[Turn]| turns.iter().filter(|turn| turn.message.role == Role::Assistant).count();
    match (answers(prompt), answers(completion)) {
        (_, 0) => {
            let text = format!("no turn of {field} is the assistant's; the example is left out");
            notes.skip(FindingKind::NoAssistantTurn, text);
            None
        }
        (_, 1) => Some(Learnt::LastAssistantTurn),
        (0, _) => Some(Learnt::EveryAssistantTurn),
        _ => {
            notes.wrong(field, "several assistant turns after a prompt that has some; leave one, or write `messages`");
            None
        }
    }
}

/// `{"text"}`.
pub(super) fn read_text(mut line: Map<String, Value>, notes: &mut Notes<'_>) -> Option<Example> {
    let text = answer(line.remove("text"), "text", notes)?;
    if text.trim().is_empty() {
        notes.skip(FindingKind::EmptyTarget, "text is empty; the example is left out");
        return None;
    }
    let conversation = notes.conversation_id(&mut line);
    (!notes.is_refused()).then(|| Example {
        line: notes.line(),
        conversation: Conversation::new(conversation, || notes.origin().unnamed(notes.line())),
        body: Body::Text(text),
        learnt: Learnt::EveryAssistantTurn,
        tools: Value::Null,
    })
}

/// A text to be learnt. One of another type is noted and read as empty.
fn answer(value: Option<Value>, field: &'static str, notes: &mut Notes<'_>) -> Option<String> {
    match value {
        Some(Value::String(text)) => Some(text),
        None | Some(Value::Null) => {
            notes.skip(FindingKind::MissingTarget, format!("{field} is null or absent; the example is left out"));
            None
        }
        Some(other) => {
            notes.wrong_type(field, "a string", &other);
            None
        }
    }
}
