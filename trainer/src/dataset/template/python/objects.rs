//! Dictionaries and lists that templates get from outside: in the file's order, printed as Python prints them.

use std::{fmt, sync::Arc};

use minijinja::{
    Value,
    value::{Enumerator, Object, ObjectRepr},
};

use super::print;

/// A dictionary; keeps the order of its keys. They are few, so a key is found by looking at all of them.
#[derive(Debug)]
pub(in crate::dataset::template) struct Dict {
    entries: Vec<(Value, Value)>,
    message: Option<usize>,
}

impl Dict {
    /// A dictionary of these entries.
    pub(in crate::dataset::template) fn value(entries: Vec<(Value, Value)>) -> Value {
        Value::from_object(Self { entries, message: None })
    }

    /// The dictionary of the message with this index.
    pub(in crate::dataset::template) fn message(entries: Vec<(Value, Value)>, index: usize) -> Value {
        Value::from_object(Self { entries, message: Some(index) })
    }

    /// Which message this is, if it is one.
    pub(in crate::dataset::template) fn message_index(value: &Value) -> Option<usize> {
        value.downcast_object_ref::<Self>()?.message
    }
}

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let found = match key.as_str() {
            Some(key) => self.entries.iter().find(|(name, _)| name.as_str() == Some(key)),
            None => self.entries.iter().find(|(name, _)| name == key),
        };
        found.map(|(_, value)| value.clone())
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.entries.iter().find(|(name, _)| name.as_str() == Some(key)).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.entries.iter().map(|(key, _)| key.clone()).collect())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.entries.len())
    }

    fn render(self: &Arc<Self>, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        print::write_entries(&mut text, self.entries.iter().cloned(), 0);
        formatter.write_str(&text)
    }
}

/// A list, or a tuple, which differs only in how it prints.
#[derive(Debug)]
pub(in crate::dataset::template) struct List {
    items: Vec<Value>,
    is_tuple: bool,
}

impl List {
    /// A list of these items.
    pub(in crate::dataset::template) fn value(items: Vec<Value>) -> Value {
        Value::from_object(Self { items, is_tuple: false })
    }

    /// A pair, as `dict.items` gives them.
    pub(super) fn pair(key: Value, value: Value) -> Value {
        Value::from_object(Self { items: vec![key, value], is_tuple: true })
    }

    /// The brackets a sequence is printed in.
    pub(super) fn brackets(value: &Value) -> (char, char) {
        match value.downcast_object_ref::<Self>() {
            Some(Self { is_tuple: true, .. }) => ('(', ')'),
            _ => ('[', ']'),
        }
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.items.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.items.len())
    }

    fn render(self: &Arc<Self>, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let brackets = if self.is_tuple { ('(', ')') } else { ('[', ']') };
        print::write_items(&mut text, self.items.iter().cloned(), brackets, 0);
        formatter.write_str(&text)
    }
}
