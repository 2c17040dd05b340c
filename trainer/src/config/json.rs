//! Reading JSON files of unknown origin: bounded size, one error that names the file.

use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Longest excerpt of a foreign value that an error repeats.
const MAX_SHOWN: usize = 80;

/// The object a JSON file holds; refuses files above `limit` bytes before reading them whole.
pub(crate) fn read_object(path: &Path, limit: u64) -> Result<Map<String, Value>> {
    let file = std::fs::File::open(path).map_err(Error::io("cannot open", path))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io("cannot read", path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::file(path, format!("larger than the {limit} bytes such a file may have")));
    }
    let text = std::str::from_utf8(&bytes).map_err(|error| Error::file(path, format!("not UTF-8 text: {error}")))?;
    parse_object(text, path)
}

/// The object a JSON text holds; `path` is named in errors.
pub(crate) fn parse_object(text: &str, path: &Path) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(Error::file(path, format!("expected a JSON object, found {}", shown(&other)))),
        Err(error) => Err(Error::file(path, format!("not valid JSON: {error}"))),
    }
}

/// A foreign value as an error shows it: one line, cut where it is long.
pub(crate) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_large_a_file_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big.json");
        std::fs::write(&path, vec![b' '; 101]).unwrap();
        let error = read_object(&path, 100).unwrap_err().to_string();
        assert!(error.contains("big.json") && error.contains("100 bytes"), "{error}");
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latin.json");
        std::fs::write(&path, b"{\"a\": \"\xe9\"}").unwrap();
        let error = read_object(&path, 100).unwrap_err().to_string();
        assert!(error.contains("latin.json") && error.contains("UTF-8"), "{error}");
    }

    #[test]
    fn deep_nesting_is_an_error_not_a_stack_overflow() {
        let text = "[".repeat(1 << 20);
        let error = parse_object(&text, Path::new("deep.json")).unwrap_err().to_string();
        assert!(error.contains("deep.json") && error.contains("recursion"), "{error}");
    }

    #[test]
    fn long_values_are_cut() {
        assert!(shown(&Value::String("é".repeat(500))).chars().count() <= MAX_SHOWN + 1);
    }
}
