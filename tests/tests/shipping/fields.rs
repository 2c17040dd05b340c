//! What a JSON object may hold: a list of fields, checked with everything that is wrong at once.

use serde_json::Value;

/// A field: its name, whether it must be there, what it holds.
pub(crate) type Field = (&'static str, Need, Kind);

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Need {
    Required,
    Optional,
}

/// What a field holds.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// A text that is not empty.
    Text,
    /// A text, which may be empty, a number, or yes or no.
    Plain,
    Flag,
    /// A whole number between two, which are allowed.
    Whole(u64, u64),
    /// A number that is no less.
    Number(f64),
    OneOf(&'static [&'static str]),
    /// A list that is not empty, each part of which is such.
    List(&'static Kind),
    /// The same, of parts separated by commas; `-` before a part excludes it, and then it is of the second kind.
    Chosen(&'static Kind, &'static Kind),
    Object(&'static [Field]),
    /// An object whose names are free.
    Names(&'static Kind),
    /// Anything; others look at it.
    Any,
}

pub(crate) use Kind::*;
pub(crate) use Need::*;

impl Kind {
    /// Everything that is wrong with a value.
    pub(crate) fn problems(&self, value: &Value, at: &str) -> Vec<String> {
        let expected =
            |right: bool, what: String| if right { vec![] } else { vec![format!("{at}: {what}, not {value}")] };
        match self {
            Any => vec![],
            Text => expected(value.as_str().is_some_and(|text| !text.is_empty()), "a text".into()),
            Plain => expected(!value.is_array() && !value.is_object() && !value.is_null(), "a plain value".into()),
            Flag => expected(value.is_boolean(), "true or false".into()),
            Whole(least, most) => {
                let right = value.as_u64().is_some_and(|number| (*least..=*most).contains(&number));
                expected(right, format!("a whole number from {least} to {most}"))
            }
            Number(least) => expected(value.as_f64().is_some_and(|number| number >= *least), format!("from {least}")),
            OneOf(known) => {
                let right = value.as_str().is_some_and(|text| known.contains(&text));
                expected(right, format!("one of {}", known.join(", ")))
            }
            List(kind) => match value.as_array().filter(|list| !list.is_empty()) {
                Some(list) => list.iter().flat_map(|part| kind.problems(part, at)).collect(),
                None => expected(false, "a list".into()),
            },
            Chosen(included, excluded) => {
                let parts = value.as_str().unwrap_or_default().split(',').map(str::trim);
                let check = |part: &str| match part.strip_prefix('-') {
                    Some(part) => excluded.problems(&part.into(), at),
                    None => included.problems(&part.into(), at),
                };
                parts.flat_map(check).collect()
            }
            Names(kind) => match value.as_object() {
                Some(fields) => {
                    fields.iter().flat_map(|(name, value)| kind.problems(value, &format!("{at}.{name}"))).collect()
                }
                None => expected(false, "an object".into()),
            },
            Object(fields) => object(fields, value, at),
        }
    }
}

fn object(fields: &[Field], value: &Value, at: &str) -> Vec<String> {
    let Some(object) = value.as_object() else { return vec![format!("{at}: an object, not {value}")] };
    let unknown = object.keys().filter(|name| fields.iter().all(|(known, ..)| known != name));
    let mut problems: Vec<String> = unknown.map(|name| format!("{at}.{name}: no such field")).collect();
    for (name, need, kind) in fields {
        match object.get(*name) {
            Some(value) => problems.extend(kind.problems(value, &format!("{at}.{name}"))),
            None if *need == Required => problems.push(format!("{at}.{name}: missing")),
            None => {}
        }
    }
    problems
}

#[test]
fn what_is_wrong_is_found() {
    use serde_json::json;
    const LIST: Kind = Object(&[
        ("name", Required, Text),
        ("count", Optional, Whole(1, 8)),
        ("pools", Optional, Chosen(&OneOf(&["A", "B"]), &OneOf(&["C"]))),
        ("list", Optional, List(&Flag)),
        ("env", Optional, Names(&Text)),
        ("delay", Optional, Number(0.5)),
    ]);
    let right = json!({ "name": "x", "count": 8, "pools": "A,-C", "list": [true], "env": { "K": "v" }, "delay": 0.5 });
    assert_eq!(LIST.problems(&right, "x"), [""; 0]);
    let wrong = json!({ "count": 9, "pools": "C,-A", "list": [], "env": { "K": 1 }, "delay": 0, "surprise": null });
    assert_eq!(LIST.problems(&wrong, "x").len(), 8, "{:#?}", LIST.problems(&wrong, "x"));
}
