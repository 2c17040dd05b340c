//! BrightRun's pairs: one answer of the expert with the conversation before it.

use serde_json::{Map, Value};

use super::{
    chats::system_turn,
    conversation::{Draft, Turn},
    messages::{self, Keys},
    notes::Notes,
    record::Origin,
};
use crate::dataset::{
    example::{Learnt, Role},
    finding::FindingKind,
};

/// A pair.
pub(super) fn read(mut pair: Map<String, Value>, notes: &mut Notes<'_>) -> Option<Draft> {
    let target = match pair.remove("target_response") {
        Some(Value::String(target)) => target,
        None | Some(Value::Null) => {
            notes.skip(FindingKind::MissingTarget, "target_response is null or absent; the pair is left out");
            return None;
        }
        Some(other) => {
            notes.wrong_type("target_response", "a string", &other);
            String::new()
        }
    };
    let conversation = conversation(&mut pair, notes);
    let mut turns = system_turn("system_prompt", &mut pair, notes);
    turns.extend(match pair.remove("conversation_history") {
        None | Some(Value::Null) => Vec::new(),
        Some(history) => messages::read("conversation_history", history, Keys::RoleAndContent, notes),
    });
    add_input(&mut pair, &mut turns, notes);
    turns.push(Turn::field("target_response", Role::Assistant, target));
    Some(Draft { conversation, turns, learnt: Learnt::LastAssistantTurn, tools: Value::Null })
}

/// The conversation as the full JSON has it, or else as the pair says.
fn conversation(pair: &mut Map<String, Value>, notes: &mut Notes<'_>) -> Option<String> {
    let own = notes.conversation_id(pair).or_else(|| {
        let metadata = pair.get("conversation_metadata")?.get("conversation_id")?.as_str()?;
        (!metadata.trim().is_empty()).then(|| metadata.to_owned())
    });
    match notes.origin() {
        Origin::Pair(Some(id), ..) => Some(id.clone()),
        _ => own,
    }
}

/// Adds the current input, unless the history ends with it: in files of the platform it always does.
fn add_input(pair: &mut Map<String, Value>, turns: &mut Vec<Turn>, notes: &mut Notes<'_>) {
    let last =
        turns.last().filter(|turn| turn.message.role == Role::User).and_then(|turn| turn.message.content.as_deref());
    let input = notes.optional_text(pair, "current_user_input").filter(|input| !input.trim().is_empty());
    match (input, last) {
        (None, Some(_)) => {}
        (None, None) => notes.wrong("current_user_input", "missing, and the history does not end with a user's turn"),
        (Some(input), Some(last)) if last == input || last.trim() == input.trim() => {}
        (Some(input), _) => {
            let text = "conversation_history does not end with current_user_input; it was added";
            notes.keep(FindingKind::InputNotInHistory, text);
            turns.push(Turn::field("current_user_input", Role::User, input));
        }
    }
}
