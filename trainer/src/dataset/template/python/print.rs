//! `str` and `repr` of values.

use std::{fmt::Write, sync::LazyLock};

use minijinja::{Value, value::ValueKind};
use regex::Regex;

use super::objects::List;

/// Containers inside containers are printed this deep; more is cut off (JSON of a dataset is never deeper).
const MAX_DEPTH: usize = 200;

/// What Python's `repr` of a string escapes besides quotes, backslashes and line ends: all that `isprintable` denies.
static UNPRINTABLE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[\p{C}\p{Z}&&[^ ]]").ok());

/// `str(value)`.
pub(in crate::dataset::template) fn string(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_undefined() => String::new(),
        None => {
            let mut text = String::new();
            write_repr(&mut text, value, 0);
            text
        }
    }
}

fn write_repr(out: &mut String, value: &Value, depth: usize) {
    match value.kind() {
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => out.push_str(&float(number)),
            Err(_) => out.push_str(&value.to_string()),
        },
        ValueKind::Map => match value.as_object().and_then(|object| object.try_iter_pairs()) {
            Some(pairs) => write_entries(out, pairs, depth),
            None => out.push_str("{}"),
        },
        ValueKind::Seq | ValueKind::Iterable => match value.try_iter() {
            Ok(items) => write_items(out, items, List::brackets(value), depth),
            Err(_) => out.push_str("[]"),
        },
        _ => out.push_str(&value.to_string()),
    }
}

/// `repr` of a dictionary.
pub(super) fn write_entries(out: &mut String, entries: impl Iterator<Item = (Value, Value)>, depth: usize) {
    out.push('{');
    for (index, (key, value)) in entries.enumerate().take_while(|_| depth < MAX_DEPTH) {
        out.push_str(if index > 0 { ", " } else { "" });
        write_repr(out, &key, depth + 1);
        out.push_str(": ");
        write_repr(out, &value, depth + 1);
    }
    out.push('}');
}

/// `repr` of a list or a tuple.
pub(super) fn write_items(
    out: &mut String,
    items: impl Iterator<Item = Value>,
    (open, close): (char, char),
    depth: usize,
) {
    out.push(open);
    for (index, item) in items.enumerate().take_while(|_| depth < MAX_DEPTH) {
        out.push_str(if index > 0 { ", " } else { "" });
        write_repr(out, &item, depth + 1);
    }
    out.push(close);
}

fn write_quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    let mut buffer = [0; 4];
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character == quote => out.extend(['\\', quote]),
            ' '..='~' => out.push(character),
            _ if is_printable(character.encode_utf8(&mut buffer)) => out.push(character),
            _ => write_escape(out, u32::from(character)),
        }
    }
    out.push(quote);
}

fn is_printable(character: &str) -> bool {
    UNPRINTABLE.as_ref().is_none_or(|unprintable| !unprintable.is_match(character))
}

fn write_escape(out: &mut String, code: u32) {
    // Writing to a string does not fail.
    let _ = match code {
        0..=0xff => write!(out, "\\x{code:02x}"),
        0x100..=0xffff => write!(out, "\\u{code:04x}"),
        _ => write!(out, "\\U{code:08x}"),
    };
}

/// `repr` of a float: the shortest digits that read back, plain from 1e-4 up to below 1e16, else with an exponent.
pub(in crate::dataset::template) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf".into() } else { "-inf".into() };
    }
    if number == 0.0 || (1e-4..1e16).contains(&number.abs()) {
        return format!("{number:?}");
    }
    let text = format!("{number:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::template::values;

    /// The right-hand sides are CPython's.
    #[test]
    fn values_print_as_in_python() {
        let value = values::of_json(&serde_json::json!({
            "a": [1, 2.0, -0.5, 1e16, 1e-5, 1.5e300, true, null],
            "it's": "say \"hi\"", "x": "it's \"\n\t\\\u{1}\u{a0}é日\u{200b}\u{1f600}", "e": {}, "l": []
        }));
        assert_eq!(
            string(&value),
            "{'a': [1, 2.0, -0.5, 1e+16, 1e-05, 1.5e+300, True, None], \"it's\": 'say \"hi\"', \
             'x': 'it\\'s \"\\n\\t\\\\\\x01\\xa0é日\\u200b😀', 'e': {}, 'l': []}"
        );
        assert_eq!(value.to_string(), string(&value));
        assert_eq!(string(&Value::from("as it is")), "as it is");
        assert_eq!(string(&Value::UNDEFINED), "");
        assert_eq!(string(&Value::from(9_999_999_999_999_998.0)), "9999999999999998.0");
    }
}
