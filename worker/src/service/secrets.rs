//! What is forgotten of a job once it is over: the signatures in its links.

use serde_json::Value;
use url::Url;

use crate::redacted::Redacted;

/// Takes the secrets out of links, wherever in a value they are; whether there were any.
pub(super) fn forget(value: &mut Value) -> bool {
    match value {
        Value::String(text) => match shown(text) {
            Some(shown) => {
                *text = shown;
                true
            }
            None => false,
        },
        Value::Array(values) => values.iter_mut().fold(false, |any, value| forget(value) | any),
        Value::Object(fields) => fields.values_mut().fold(false, |any, value| forget(value) | any),
        _ => false,
    }
}

/// A text without its secrets, where it has any.
pub(super) fn shown(text: &str) -> Option<String> {
    if let Ok(url) = Url::parse(text.trim())
        && url.has_host()
    {
        let whole = url.to_string();
        let shown = Redacted::url(url).to_string();
        return (shown != whole).then_some(shown);
    }
    // A link that lost its scheme.
    let (before, query) = text.split_once('?')?;
    let link = query.contains('=') && !text.contains(char::is_whitespace);
    link.then(|| before.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn links_lose_their_signatures_and_nothing_else() {
        let mut input = json!({
            "job_id": "j",
            "dataset_url": "https://u:S3CR3T@h/a.jsonl?token=S3CR3T#S3CR3T",
            "upload_urls": { "a": "https://h/b?X-Amz-Signature=S3CR3T", "b": ["s3://b/k?x=S3CR3T"] },
            "lost": "h.supabase.co/x?token=S3CR3T",
            "learning_rate": 2e-4,
        });
        assert!(forget(&mut input));
        let expected = json!({
            "job_id": "j",
            "dataset_url": "https://h/a.jsonl",
            "upload_urls": { "a": "https://h/b", "b": ["s3://b/k"] },
            "lost": "h.supabase.co/x",
            "learning_rate": 2e-4,
        });
        assert_eq!(input, expected);
        assert!(!forget(&mut input));
    }

    #[test]
    fn what_is_no_secret_stays_as_it_was() {
        let plain =
            json!({ "a": "HTTPS://H", "b": "demo:conversations", "c": "is x = y? yes = no", "d": "data/a.jsonl" });
        let mut same = plain.clone();
        assert!(!forget(&mut same));
        assert_eq!(same, plain);
    }
}
