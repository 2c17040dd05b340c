//! Messages and JSON as values of templates.

use minijinja::Value;
use serde_json::Value as Json;

use super::python::objects::{Dict, List};
use crate::dataset::example::Message;

/// Names under which a turn's reasoning comes, the standard one first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// JSON as Python's `json.load` gives it.
pub(super) fn of_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => List::value(items.iter().map(of_json).collect()),
        Json::Object(entries) => {
            Dict::value(entries.iter().map(|(key, value)| (Value::from(key.as_str()), of_json(value))).collect())
        }
    }
}

/// A message as `apply_chat_template` hands it to a template: fields that are null are left out; reasoning stands under
/// `reasoning_content` and `thinking`, whatever its name in the file.
pub(super) fn of_message(message: &Message, index: usize) -> Value {
    message_with(message, message.content.as_deref(), index)
}

/// The same with another content.
pub(super) fn message_with(message: &Message, content: Option<&str>, index: usize) -> Value {
    let mut entries = vec![(Value::from("role"), Value::from(message.role.name()))];
    if let Some(content) = content {
        entries.push((Value::from("content"), Value::from(content)));
    }
    for (name, value) in message.fields.iter().filter(|(_, value)| !value.is_null()) {
        set(&mut entries, name, of_json(value));
    }
    let reasoning = REASONING.iter().find_map(|name| get(&entries, name).cloned());
    if let Some(reasoning) = reasoning {
        let thinking = get(&entries, "thinking").cloned().unwrap_or_else(|| reasoning.clone());
        entries.retain(|(name, _)| name.as_str() != Some("thinking"));
        entries.insert(0, (Value::from("thinking"), thinking));
        set(&mut entries, "reasoning_content", reasoning);
    }
    Dict::message(entries, index)
}

fn get<'a>(entries: &'a [(Value, Value)], name: &str) -> Option<&'a Value> {
    entries.iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value)
}

fn set(entries: &mut Vec<(Value, Value)>, name: &str, value: Value) {
    match entries.iter_mut().find(|(key, _)| key.as_str() == Some(name)) {
        Some(entry) => entry.1 = value,
        None => entries.push((Value::from(name), value)),
    }
}

/// Whether any text of the conversation has this character.
pub(super) fn contains(messages: &[Message], tools: &Json, character: char) -> bool {
    let in_message = |message: &Message| {
        message.content.as_ref().is_some_and(|content| content.contains(character))
            || message.fields.iter().any(|(key, value)| key.contains(character) || json_contains(value, character))
    };
    messages.iter().any(in_message) || json_contains(tools, character)
}

fn json_contains(json: &Json, character: char) -> bool {
    match json {
        Json::String(text) => text.contains(character),
        Json::Array(items) => items.iter().any(|item| json_contains(item, character)),
        Json::Object(entries) => {
            entries.iter().any(|(key, value)| key.contains(character) || json_contains(value, character))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::dataset::example::Role;

    #[test]
    fn fields_follow_in_their_order_nulls_are_left_out_and_reasoning_has_every_name() {
        let mut message = Message::new(Role::Assistant, "Hi");
        message.fields = json!({"name": "x", "tool_calls": null, "reasoning": "why"}).as_object().unwrap().clone();
        assert_eq!(
            of_message(&message, 3).to_string(),
            "{'thinking': 'why', 'role': 'assistant', 'content': 'Hi', 'name': 'x', 'reasoning': 'why', \
             'reasoning_content': 'why'}"
        );
        assert_eq!(Dict::message_index(&of_message(&message, 3)), Some(3));
        message.content = None;
        message.fields.clear();
        assert_eq!(of_message(&message, 0).to_string(), "{'role': 'assistant'}");
    }

    #[test]
    fn characters_are_found_wherever_they_stand() {
        let mut message = Message::new(Role::User, "a");
        message.fields = json!({"b": [{"c": "d"}]}).as_object().unwrap().clone();
        let tools = json!([{"e": "f"}]);
        assert!("abcdef".chars().all(|character| contains(std::slice::from_ref(&message), &tools, character)));
        assert!(!contains(&[message], &tools, 'g'));
    }
}
