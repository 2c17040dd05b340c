//! Formats whose line is a conversation: turns, OpenAI, ShareGPT.

use serde_json::{Map, Value};

use super::{
    conversation::{Draft, Turn},
    messages::{self, Keys},
    notes::Notes,
};
use crate::dataset::{
    example::{Learnt, Role},
    finding::FindingKind,
};

/// `{"conversation_id", "turns": [{"role", "content"}]}`.
pub(super) fn read_turns(mut line: Map<String, Value>, notes: &mut Notes<'_>) -> Option<Draft> {
    if line.get("messages").is_some_and(|messages| !messages.is_null()) {
        notes.wrong("turns", "`messages` stands beside it; one of them is expected");
        return None;
    }
    read_chat("turns", &mut line, Keys::RoleAndContent, notes)
}

/// `{"messages": [{"role", "content"}]}`.
pub(super) fn read_openai(mut line: Map<String, Value>, notes: &mut Notes<'_>) -> Option<Draft> {
    let weights = read_weights(line.get("messages"), notes);
    let mut draft = read_chat("messages", &mut line, Keys::RoleAndContent, notes)?;
    draft.learnt = learnt_of(&weights, notes)?;
    Some(draft)
}

/// `{"conversations": [{"from", "value"}]}`.
pub(super) fn read_sharegpt(mut line: Map<String, Value>, notes: &mut Notes<'_>) -> Option<Draft> {
    read_chat("conversations", &mut line, Keys::FromAndValue, notes)
}

/// A trailing turn of the user is kept: nothing is learnt from it, and nothing that is learnt sees it.
fn read_chat(field: &'static str, line: &mut Map<String, Value>, keys: Keys, notes: &mut Notes<'_>) -> Option<Draft> {
    let mut turns = system_turn("system", line, notes);
    turns.extend(messages::read(field, line.remove(field).unwrap_or_default(), keys, notes));
    let conversation = notes.conversation_id(line);
    let tools = messages::read_tools(line, notes);
    Some(Draft { conversation, turns, learnt: Learnt::EveryAssistantTurn, tools })
}

/// The system prompt that stands beside the turns, if one does.
pub(super) fn system_turn(field: &'static str, line: &mut Map<String, Value>, notes: &mut Notes<'_>) -> Vec<Turn> {
    let text = notes.optional_text(line, field).filter(|text| !text.trim().is_empty());
    text.map(|text| Turn::field(field, Role::System, text)).into_iter().collect()
}

/// OpenAI's `weight` of each assistant turn: whether it is learnt.
fn read_weights(messages: Option<&Value>, notes: &mut Notes<'_>) -> Vec<bool> {
    let mut weights = Vec::new();
    for (index, message) in messages.and_then(Value::as_array).into_iter().flatten().enumerate() {
        if message.get("role").and_then(Value::as_str) != Some("assistant") {
            continue;
        }
        let weight = message.get("weight").filter(|weight| !weight.is_null());
        let number = weight.map_or(Some(1.0), Value::as_f64).filter(|number| *number == 0.0 || *number == 1.0);
        match number {
            Some(number) => weights.push(number == 1.0),
            None => notes.wrong(format_args!("messages[{index}].weight"), "expected 0 or 1"),
        }
    }
    weights
}

fn learnt_of(weights: &[bool], notes: &mut Notes<'_>) -> Option<Learnt> {
    if weights.iter().all(|weight| *weight) {
        return Some(Learnt::EveryAssistantTurn);
    }
    match weights.iter().rposition(|weight| *weight) {
        None => notes.skip(FindingKind::NoAssistantTurn, "every assistant turn has weight 0; the example is left out"),
        Some(last) if last + 1 == weights.len() && !weights[..last].contains(&true) => {
            return Some(Learnt::LastAssistantTurn);
        }
        Some(_) => notes.wrong(
            "messages",
            "either all assistant turns are learnt or the last alone; divide the conversation where `weight` says otherwise",
        ),
    }
    None
}
