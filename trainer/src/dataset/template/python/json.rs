//! `json.dumps`, the filter `tojson` of transformers: nothing escaped for HTML, Unicode as it is, keys in their order.

use std::fmt::Write;

use minijinja::{
    Error, Value,
    value::{Kwargs, Rest, ValueKind, from_args},
};

use super::{print, type_error};

/// Deeper JSON is refused, as Python refuses to recurse for ever.
const MAX_DEPTH: usize = 500;

/// The filter: `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(in crate::dataset::template) fn tojson(value: &Value, arguments: Rest<Value>) -> Result<Value, Error> {
    let mut text = String::new();
    Dump::from_arguments(&arguments)?.write(&mut text, value, 0)?;
    Ok(Value::from(text))
}

struct Dump {
    ascii: bool,
    /// What one level is indented by; everything on one line where there is none.
    indent: Option<String>,
    between_items: String,
    after_key: String,
    sorted: bool,
}

impl Dump {
    fn from_arguments(arguments: &[Value]) -> Result<Self, Error> {
        let (positional, named): (&[Value], Kwargs) = from_args(arguments)?;
        let argument = |index: usize, name: &str| -> Result<Option<Value>, Error> {
            let value = match positional.get(index) {
                Some(value) => Some(value.clone()),
                None => named.get::<Option<Value>>(name)?,
            };
            Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
        };
        let indent = argument(1, "indent")?.map(|indent| match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(indent.as_usize().unwrap_or(0)),
        });
        let item = if indent.is_some() { "," } else { ", " };
        let (between_items, after_key) = match argument(2, "separators")? {
            Some(pair) => (print::string(&pair.get_item_by_index(0)?), print::string(&pair.get_item_by_index(1)?)),
            None => (item.to_owned(), ": ".to_owned()),
        };
        let ascii = argument(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
        let sorted = argument(3, "sort_keys")?.is_some_and(|value| value.is_true());
        named.assert_all_used()?;
        Ok(Self { ascii, indent, between_items, after_key, sorted })
    }

    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(type_error("maximum recursion depth exceeded while encoding a JSON object"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.write_string(out, value.as_str().unwrap_or_default()),
            ValueKind::Map => self.write_map(out, value, depth)?,
            ValueKind::Seq | ValueKind::Iterable => {
                let mut first = true;
                out.push('[');
                for item in value.try_iter()? {
                    self.open_item(out, &mut first, depth + 1);
                    self.write(out, &item, depth + 1)?;
                }
                self.close(out, first, depth, ']');
            }
            kind => return Err(type_error(format!("a value of type {kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn write_map(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
        let mut entries = Vec::new();
        for (key, value) in pairs.into_iter().flatten() {
            entries.push((key_text(&key)?, value));
        }
        if self.sorted {
            entries.sort_by(|left, right| left.0.cmp(&right.0));
        }
        let mut first = true;
        out.push('{');
        for (key, value) in entries {
            self.open_item(out, &mut first, depth + 1);
            self.write_string(out, &key);
            out.push_str(&self.after_key);
            self.write(out, &value, depth + 1)?;
        }
        self.close(out, first, depth, '}');
        Ok(())
    }

    fn open_item(&self, out: &mut String, first: &mut bool, depth: usize) {
        if !*first {
            out.push_str(&self.between_items);
        }
        *first = false;
        self.new_line(out, depth);
    }

    fn close(&self, out: &mut String, empty: bool, depth: usize, bracket: char) {
        if !empty {
            self.new_line(out, depth);
        }
        out.push(bracket);
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn write_string(&self, out: &mut String, text: &str) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '\0'..='\u{1f}' => write_unit(out, character as u16),
                _ if self.ascii && character > '~' => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        write_unit(out, *unit);
                    }
                }
                _ => out.push(character),
            }
        }
        out.push('"');
    }
}

fn write_unit(out: &mut String, unit: u16) {
    // Writing to a string does not fail.
    let _ = write!(out, "\\u{unit:04x}");
}

fn number(value: &Value) -> String {
    match print::string(value).as_str() {
        "nan" => "NaN".into(),
        "inf" => "Infinity".into(),
        "-inf" => "-Infinity".into(),
        text => text.to_owned(),
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true".into() } else { "false".into() }),
        ValueKind::Number => Ok(number(key)),
        kind => Err(type_error(format!("keys of JSON must be strings, not {kind}"))),
    }
}

#[cfg(test)]
mod tests {
    use minijinja::value::Kwargs;
    use serde_json::json;

    use super::*;
    use crate::dataset::template::values;

    fn dumped(value: &serde_json::Value, arguments: Vec<(&str, Value)>) -> String {
        let named = Value::from(Kwargs::from_iter(arguments));
        tojson(&values::of_json(value), Rest(vec![named])).unwrap().to_string()
    }

    /// The right-hand sides are those of `json.dumps(…, ensure_ascii=False)`.
    #[test]
    fn json_is_that_of_python() {
        let value = json!({"z": [1, 1.0, 1e22, null, true, []], "a": {"<&'>": "\"é\u{7f}\u{1}\n\\\u{8}😀"}, "e": {}});
        let line = "{\"z\": [1, 1.0, 1e+22, null, true, []], \"a\": {\"<&'>\": \"\\\"é\u{7f}\\u0001\\n\\\\\\b😀\"}, \"e\": {}}";
        assert_eq!(dumped(&value, vec![]), line);
        let ascii = dumped(&json!("é😀"), vec![("ensure_ascii", Value::from(true))]);
        assert_eq!(ascii, "\"\\u00e9\\ud83d\\ude00\"");
        let indented = dumped(&json!({"b": [1, {}], "a": []}), vec![("indent", Value::from(2))]);
        assert_eq!(indented, "{\n  \"b\": [\n    1,\n    {}\n  ],\n  \"a\": []\n}");
        let sorted = dumped(
            &json!({"b": 1, "a": 2}),
            vec![("sort_keys", Value::from(true)), ("separators", Value::from(vec![",", ":"]))],
        );
        assert_eq!(sorted, "{\"a\":2,\"b\":1}");
        assert!(tojson(&Value::UNDEFINED, Rest(vec![])).is_err());
    }
}
