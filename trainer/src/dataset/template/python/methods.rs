//! Methods of strings, dictionaries and lists, as Python has them.

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, ValueKind, from_args},
};
use minijinja_contrib::pycompat;

use super::{objects::List, print, text, text::Side, type_error};

/// What minijinja calls for a method that the value itself does not have.
pub(in crate::dataset::template) fn call(
    state: &State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let result = match value.kind() {
        ValueKind::String => of_string(value.as_str().unwrap_or_default(), method, arguments),
        ValueKind::Map => of_dict(value, method, arguments),
        ValueKind::Seq | ValueKind::Iterable => of_list(value, method, arguments),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    };
    match result {
        Some(result) => result,
        // What is left (`format`, `isalpha`, …) is right there.
        None => pycompat::unknown_method_callback(state, value, method, arguments),
    }
}

fn of_string(text: &str, method: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        "strip" => stripped(text, arguments, Side::Both),
        "lstrip" => stripped(text, arguments, Side::Left),
        "rstrip" => stripped(text, arguments, Side::Right),
        "split" => split(text, arguments, false),
        "rsplit" => split(text, arguments, true),
        "partition" => one(arguments).map(|separator| parts(text, text.split_once(&separator), &separator, false)),
        "rpartition" => one(arguments).map(|separator| parts(text, text.rsplit_once(&separator), &separator, true)),
        "splitlines" => {
            from_args::<(Option<bool>,)>(arguments).map(|(keep,)| strings(text::lines(text, keep.unwrap_or(false))))
        }
        "removeprefix" => one(arguments).map(|prefix| Value::from(text.strip_prefix(&prefix).unwrap_or(text))),
        "removesuffix" => one(arguments).map(|suffix| Value::from(text.strip_suffix(&suffix).unwrap_or(text))),
        "find" => one(arguments).map(|part| Value::from(place(text, text.find(&part)).unwrap_or(-1))),
        "rfind" => one(arguments).map(|part| Value::from(place(text, text.rfind(&part)).unwrap_or(-1))),
        "index" => one(arguments).and_then(|part| found(place(text, text.find(&part)))),
        "rindex" => one(arguments).and_then(|part| found(place(text, text.rfind(&part)))),
        "count" => one(arguments).map(|part| match part.is_empty() {
            true => Value::from(text.chars().count() + 1),
            false => Value::from(text.matches(&part).count()),
        }),
        "join" => join(text, arguments),
        "title" => none(arguments).map(|()| Value::from(text::title(text))),
        "capitalize" => none(arguments).map(|()| Value::from(text::capitalize(text))),
        "casefold" => none(arguments).map(|()| Value::from(text.to_lowercase())),
        "islower" => none(arguments).map(|()| Value::from(cased(text, char::is_lowercase, char::is_uppercase))),
        "isupper" => none(arguments).map(|()| Value::from(cased(text, char::is_uppercase, char::is_lowercase))),
        "isspace" => none(arguments).map(|()| Value::from(!text.is_empty() && text.chars().all(text::is_space))),
        "isalpha" | "isalnum" | "isdigit" | "isnumeric" if text.is_empty() => {
            none(arguments).map(|()| Value::from(false))
        }
        _ => return None,
    })
}

fn none(arguments: &[Value]) -> Result<(), Error> {
    from_args::<()>(arguments)
}

fn one(arguments: &[Value]) -> Result<String, Error> {
    let (argument,): (&str,) = from_args(arguments)?;
    Ok(argument.to_owned())
}

fn strings(parts: Vec<String>) -> Value {
    List::value(parts.into_iter().map(Value::from).collect())
}

fn stripped(text: &str, arguments: &[Value], side: Side) -> Result<Value, Error> {
    let (characters,): (Option<&str>,) = from_args(arguments)?;
    Ok(Value::from(text::strip(text, characters, side)))
}

fn split(text: &str, arguments: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(arguments)?;
    let separator = separator.map_or_else(|| named.get::<Option<Value>>("sep"), |separator| Ok(Some(separator)))?;
    let most = most.map_or_else(|| named.get::<Option<i64>>("maxsplit"), |most| Ok(Some(most)))?;
    named.assert_all_used()?;
    let separator = separator.filter(|separator| !separator.is_none());
    let separator = match &separator {
        Some(separator) => Some(separator.as_str().ok_or_else(|| type_error("a separator must be a string"))?),
        None => None,
    };
    if separator == Some("") {
        return Err(type_error("empty separator"));
    }
    let most = most.and_then(|most| usize::try_from(most).ok());
    Ok(strings(text::split(text, separator, most, from_right)))
}

fn parts(text: &str, cut: Option<(&str, &str)>, separator: &str, from_right: bool) -> Value {
    let parts = match cut {
        Some((head, tail)) => [head, separator, tail],
        None if from_right => ["", "", text],
        None => [text, "", ""],
    };
    strings(parts.map(str::to_owned).to_vec())
}

/// Python counts characters, not bytes.
fn place(text: &str, found: Option<usize>) -> Option<i64> {
    i64::try_from(text[..found?].chars().count()).ok()
}

fn found(place: Option<i64>) -> Result<Value, Error> {
    place.map(Value::from).ok_or_else(|| type_error("substring not found"))
}

fn join(separator: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (items,): (&Value,) = from_args(arguments)?;
    let mut parts = Vec::new();
    for item in items.try_iter()? {
        match item.as_str() {
            Some(text) => parts.push(text.to_owned()),
            None => return Err(type_error(format!("join needs strings, found {}", print::string(&item)))),
        }
    }
    Ok(Value::from(parts.join(separator)))
}

fn cased(text: &str, wanted: fn(char) -> bool, unwanted: fn(char) -> bool) -> bool {
    text.chars().any(wanted) && !text.chars().any(unwanted)
}

fn of_dict(value: &Value, method: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    let collected = |of_pair: fn((Value, Value)) -> Value| {
        none(arguments).map(|()| {
            let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
            List::value(pairs.into_iter().flatten().map(of_pair).collect())
        })
    };
    Some(match method {
        "keys" => collected(|(key, _)| key),
        "values" => collected(|(_, value)| value),
        "items" => collected(|(key, value)| List::pair(key, value)),
        "copy" => none(arguments).map(|()| value.clone()),
        _ => return None,
    })
}

fn of_list(value: &Value, method: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    let items = || value.try_iter().map(|items| items.collect::<Vec<_>>());
    Some(match method {
        "copy" => none(arguments).and_then(|()| items()).map(List::value),
        "count" => from_args::<(&Value,)>(arguments)
            .and_then(|(wanted,)| Ok(Value::from(items()?.iter().filter(|item| *item == wanted).count()))),
        "index" => from_args::<(&Value,)>(arguments).and_then(|(wanted,)| {
            let place = items()?.iter().position(|item| item == wanted);
            place.map(Value::from).ok_or_else(|| type_error("the value is not in the list"))
        }),
        _ => return None,
    })
}
