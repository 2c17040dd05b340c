//! `callback_url` of a job: who else is told of it. It may be anything; a wrong one is never a reason to refuse the job.

use serde_json::Value;
use url::Url;

use super::fields::{Field, Findings};
use crate::{redacted::Redacted, storage::upload};

/// The field's name.
pub(super) const FIELD: &str = "callback_url";

/// Reads the field; what is wrong with it is a warning.
pub(super) fn read(field: Option<Field<'_>>, findings: &mut Findings) -> Option<Redacted<Url>> {
    let (path, value) = field?;
    match link(value) {
        Ok(link) => link,
        Err(why) => {
            findings.warnings.push(format!("{path} {why}; nobody is told by it"));
            None
        }
    }
}

/// The callback of an input, whatever else is wrong with that: who sent it wants to hear so.
pub(crate) fn of(input: &Value) -> Option<Redacted<Url>> {
    input.get(FIELD).and_then(|value| link(value).ok().flatten())
}

/// Nothing where there is none. The error repeats nothing of the link.
fn link(value: &Value) -> Result<Option<Redacted<Url>>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) if text.trim().is_empty() => Ok(None),
        Value::String(text) => upload::upload_link(text).map(Some).map_err(|error| error.to_string()),
        _ => Err("is no link".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_value(value: Value) -> (Option<Redacted<Url>>, Vec<String>) {
        let mut findings = Findings::default();
        let input = json!({ FIELD: value });
        let link = read(Some((FIELD.into(), &input[FIELD])), &mut findings);
        assert_eq!((of(&input), findings.problems.len()), (link.clone(), 0));
        (link, findings.warnings)
    }

    #[test]
    fn a_link_is_kept_and_not_shown() {
        let (link, warnings) = read_value(json!("https://h/functions/v1/training-callback?key=S3CR3T"));
        assert_eq!(warnings, [""; 0]);
        assert_eq!(link.as_ref().unwrap().expose().query(), Some("key=S3CR3T"));
        assert!(!format!("{link:?}").contains("S3CR3T"));
    }

    #[test]
    fn whatever_it_is_it_is_never_a_problem() {
        for wrong in [
            json!(7),
            json!(["S3CR3T"]),
            json!({}),
            json!("S3CR3T"),
            json!("ftp://h/S3CR3T"),
            json!("https://u:S3CR3T@h"),
        ] {
            let (link, warnings) = read_value(wrong);
            assert_eq!((link, warnings.len()), (None, 1));
            assert!(warnings[0].starts_with("callback_url ") && !warnings[0].contains("S3CR3T"), "{warnings:?}");
        }
        for none in [json!(""), json!(" "), Value::Null] {
            assert_eq!(read_value(none), (None, vec![]));
        }
        assert_eq!((of(&json!({})), of(&json!("x"))), (None, None));
    }
}
