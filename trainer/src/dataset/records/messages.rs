//! Lists of messages, which most formats have somewhere.

use serde_json::{Map, Value};

use super::{
    conversation::Turn,
    notes::{Notes, Place},
};
use crate::dataset::example::{Message, Role};

/// What formats call the speakers.
const ROLES: [(&str, Role); 14] = [
    ("system", Role::System),
    ("developer", Role::System),
    ("user", Role::User),
    ("human", Role::User),
    ("assistant", Role::Assistant),
    ("gpt", Role::Assistant),
    ("chatgpt", Role::Assistant),
    ("bard", Role::Assistant),
    ("bing", Role::Assistant),
    ("model", Role::Assistant),
    ("tool", Role::Tool),
    ("function", Role::Tool),
    ("observation", Role::Tool),
    ("function_response", Role::Tool),
];

/// Fields of a message that chat templates ask for.
const TEMPLATE_TEXTS: [&str; 3] = ["tool_call_id", "name", "reasoning_content"];

/// What a message's own fields are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    /// `role` and `content`.
    RoleAndContent,
    /// `from` and `value`, or else `role` and `content`.
    FromAndValue,
}

/// The messages of a list; what is wrong with them is noted and they are left out.
pub(super) fn read(field: &'static str, value: Value, keys: Keys, notes: &mut Notes<'_>) -> Vec<Turn> {
    let Value::Array(messages) = value else {
        notes.wrong_type(field, "a list", &value);
        return Vec::new();
    };
    let messages = messages.into_iter().enumerate();
    messages.filter_map(|(index, value)| read_one(Place { field, index: Some(index) }, value, keys, notes)).collect()
}

fn read_one(place: Place, value: Value, keys: Keys, notes: &mut Notes<'_>) -> Option<Turn> {
    let Value::Object(mut object) = value else {
        notes.wrong_type(place, "an object", &value);
        return None;
    };
    let (role_key, content_key) = match keys {
        Keys::FromAndValue if !object.contains_key("role") || object.contains_key("from") => ("from", "value"),
        _ => ("role", "content"),
    };
    let role = read_role(place, role_key, &object, notes);
    let content = object.remove(content_key);
    let has_content = content.is_some();
    let content = content.and_then(|content| read_content(place, content_key, content, notes));
    let fields = read_fields(place, object, notes);
    let message = Message { role: role?, content, fields };
    // Only an assistant may say nothing: it calls a tool, or its silence is a finding of its own.
    if !has_content && message.role != Role::Assistant {
        notes.wrong(format_args!("{place}.{content_key}"), "missing");
    }
    Some(Turn { place, message })
}

fn read_role(place: Place, key: &str, object: &Map<String, Value>, notes: &mut Notes<'_>) -> Option<Role> {
    match object.get(key) {
        None => notes.wrong(format_args!("{place}.{key}"), "missing"),
        Some(Value::String(name)) => match ROLES.iter().find(|(known, _)| known == name) {
            Some((_, role)) => return Some(*role),
            None => notes.unknown_role(format_args!("{place}.{key}"), name),
        },
        Some(other) => notes.wrong_type(format_args!("{place}.{key}"), "a string", other),
    }
    None
}

/// A text, or OpenAI's list of text parts. `None` stands for null.
fn read_content(place: Place, key: &str, content: Value, notes: &mut Notes<'_>) -> Option<String> {
    match content {
        Value::String(text) => Some(text),
        Value::Null => None,
        Value::Array(parts) => {
            let mut joined = String::new();
            for (index, part) in parts.iter().enumerate() {
                let kind = part.get("type").and_then(Value::as_str);
                match (part, kind, part.get("text")) {
                    (Value::String(text), ..) | (_, None | Some("text"), Some(Value::String(text))) => {
                        joined.push_str(text)
                    }
                    _ => notes.wrong(
                        format_args!("{place}.{key}[{index}]"),
                        "expected {\"type\": \"text\", \"text\": …}; only text can be trained on",
                    ),
                }
            }
            Some(joined)
        }
        other => {
            notes.wrong_type(format_args!("{place}.{key}"), "a string", &other);
            None
        }
    }
}

/// The fields that templates ask for, in the file's order. Tables written as JSON have null where a message lacks a field.
fn read_fields(place: Place, object: Map<String, Value>, notes: &mut Notes<'_>) -> Map<String, Value> {
    let mut fields = Map::new();
    for (key, value) in object {
        match (key.as_str(), &value) {
            (_, Value::Null) => {}
            (key, Value::String(_)) if TEMPLATE_TEXTS.contains(&key) => _ = fields.insert(key.to_owned(), value),
            (key, other) if TEMPLATE_TEXTS.contains(&key) => {
                notes.wrong_type(format_args!("{place}.{key}"), "a string", other);
            }
            ("tool_calls", Value::Array(calls)) => {
                if let Some(other) = calls.iter().find(|call| !call.is_object()) {
                    notes.wrong_type(format_args!("{place}.tool_calls"), "a list of objects", other);
                } else if !calls.is_empty() {
                    fields.insert(key, value);
                }
            }
            ("tool_calls", other) => notes.wrong_type(format_args!("{place}.tool_calls"), "a list", other),
            _ => {}
        }
    }
    fields
}

/// Tool descriptions: a list, or the same written into a text.
pub(super) fn read_tools(line: &mut Map<String, Value>, notes: &mut Notes<'_>) -> Value {
    let tools = match line.remove("tools") {
        Some(Value::String(text)) if text.trim().is_empty() => Value::Null,
        Some(Value::String(text)) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        tools => tools.unwrap_or_default(),
    };
    match tools {
        Value::Array(list) if list.is_empty() => Value::Null,
        Value::Null | Value::Array(_) => tools,
        other => {
            notes.wrong_type("tools", "a list", &other);
            Value::Null
        }
    }
}
