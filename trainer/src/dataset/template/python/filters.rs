//! Filters and tests of Jinja2 where minijinja's differ.

use minijinja::{
    Environment, Error, Value,
    value::{Kwargs, Rest, ValueKind, from_args},
};

use super::{json, objects::List, print, text, text::Side, type_error};

/// Replaces minijinja's filters and tests by those of Jinja2.
pub(in crate::dataset::template) fn install(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", |value: &Value| Value::from(print::string(value)));
    environment.add_filter("upper", |value: &Value| print::string(value).to_uppercase());
    environment.add_filter("lower", |value: &Value| print::string(value).to_lowercase());
    environment.add_filter("capitalize", |value: &Value| text::capitalize(&print::string(value)));
    environment.add_filter("title", |value: &Value| text::title_words(&print::string(value)));
    environment.add_filter("trim", trim);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("items", items);
    environment.add_filter("join", join);
    environment.add_filter("replace", replace);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("indent", indent);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
}

fn trim(value: &Value, characters: Option<String>) -> String {
    text::strip(&print::string(value), characters.as_deref(), Side::Both).to_owned()
}

fn length(value: &Value) -> Result<usize, Error> {
    match value.is_undefined() {
        true => Ok(0),
        false => value.len().ok_or_else(|| type_error(format!("a value of type {} has no length", value.kind()))),
    }
}

fn items(value: &Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(List::value(Vec::new()));
    }
    let pairs = value.as_object().filter(|_| value.kind() == ValueKind::Map).and_then(|object| object.try_iter_pairs());
    let pairs = pairs.ok_or_else(|| type_error("only a mapping has pairs of items"))?;
    Ok(List::value(pairs.map(|(key, value)| List::pair(key, value)).collect()))
}

fn join(value: &Value, arguments: Rest<Value>) -> Result<String, Error> {
    let (separator, attribute, named): (Option<Value>, Option<Value>, Kwargs) = from_args(&arguments)?;
    let separator = separator.map_or_else(|| named.get::<Option<Value>>("d"), |separator| Ok(Some(separator)))?;
    let attribute = attribute.map_or_else(|| named.get::<Option<Value>>("attribute"), |name| Ok(Some(name)))?;
    named.assert_all_used()?;
    let mut parts = Vec::new();
    for item in value.try_iter()? {
        parts.push(match &attribute {
            Some(name) => print::string(&item.get_item(name)?),
            None => print::string(&item),
        });
    }
    Ok(parts.join(&separator.map_or_else(String::new, |separator| print::string(&separator))))
}

fn replace(value: &Value, old: &Value, new: &Value, most: Option<usize>) -> String {
    let (value, old, new) = (print::string(value), print::string(old), print::string(new));
    match most {
        Some(most) => value.replacen(&old, &new, most),
        None => value.replace(&old, &new),
    }
}

fn default(value: &Value, arguments: Rest<Value>) -> Result<Value, Error> {
    let (other, lax, named): (Option<Value>, Option<Value>, Kwargs) = from_args(&arguments)?;
    let other = other.map_or_else(|| named.get::<Option<Value>>("default_value"), |other| Ok(Some(other)))?;
    let lax = lax.map_or_else(|| named.get::<Option<Value>>("boolean"), |lax| Ok(Some(lax)))?;
    named.assert_all_used()?;
    let replaced = value.is_undefined() || (lax.is_some_and(|lax| lax.is_true()) && !value.is_true());
    Ok(if replaced { other.unwrap_or_else(|| Value::from("")) } else { value.clone() })
}

fn int(value: &Value, default: Option<Value>) -> Value {
    let number = match value.as_str() {
        Some(text) => {
            let text = text.trim();
            text.parse::<i64>().ok().or_else(|| text.parse::<f64>().ok().filter(|n| n.is_finite()).map(|n| n as i64))
        }
        None if value.is_integer() => return value.clone(),
        None if value.kind() == ValueKind::Bool => Some(i64::from(value.is_true())),
        None => f64::try_from(value.clone()).ok().filter(|number| number.is_finite()).map(|number| number as i64),
    };
    number.map(Value::from).or(default).unwrap_or_else(|| Value::from(0))
}

fn float(value: &Value, default: Option<Value>) -> Value {
    let number = match value.as_str() {
        Some(text) => text.trim().parse::<f64>().ok(),
        None if value.kind() == ValueKind::Bool => Some(if value.is_true() { 1.0 } else { 0.0 }),
        None => f64::try_from(value.clone()).ok(),
    };
    number.map(Value::from).or(default).unwrap_or_else(|| Value::from(0.0))
}

fn indent(value: &Value, arguments: Rest<Value>) -> Result<String, Error> {
    let (width, first, blank, named): (Option<Value>, Option<bool>, Option<bool>, Kwargs) = from_args(&arguments)?;
    let width = width.map_or_else(|| named.get::<Option<Value>>("width"), |width| Ok(Some(width)))?;
    let first = first.map_or_else(|| named.get::<Option<bool>>("first"), |first| Ok(Some(first)))?.unwrap_or(false);
    let blank = blank.map_or_else(|| named.get::<Option<bool>>("blank"), |blank| Ok(Some(blank)))?.unwrap_or(false);
    named.assert_all_used()?;
    let margin = match &width {
        Some(width) => width.as_str().map_or_else(|| " ".repeat(width.as_usize().unwrap_or(0)), str::to_owned),
        None => " ".repeat(4),
    };
    // Jinja2 appends a line end before it splits, so that a last empty line survives.
    let lines = text::lines(&(print::string(value) + "\n"), false);
    let indented = lines.iter().enumerate().map(|(index, line)| match (index, line.is_empty()) {
        (0, _) if !first => line.clone(),
        (1.., true) if !blank => String::new(),
        _ => format!("{margin}{line}"),
    });
    Ok(indented.collect::<Vec<_>>().join("\n"))
}

/// Whatever has a length and can be indexed: in Python also strings, dictionaries and what is undefined.
fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::String | ValueKind::Undefined
    )
}
