//! A request for a job: what came is checked once, here.

use serde_json::{Map, Value};
use url::Url;
use uuid::Uuid;

use super::record::Policy;

/// Longest address of a webhook.
const MAX_WEBHOOK_BYTES: usize = 4096;

/// A job as it was submitted.
#[derive(Debug, Clone)]
pub(super) struct Submission {
    pub(super) id: String,
    pub(super) input: Value,
    pub(super) policy: Policy,
    /// RunPod's `s3Config`, with its keys.
    pub(super) store: Option<Value>,
    pub(super) webhook: Option<String>,
}

// === impl Submission ===

impl Submission {
    /// Reads the body of `/run`; the error says what is wrong with it. `kept`: somebody waits for the answer.
    pub(super) fn read(body: &[u8], kept: bool, plain_http: bool) -> Result<Self, String> {
        let value = serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))?;
        let Value::Object(mut fields) = value else {
            return Err("the body must be a JSON object: {\"input\": {…}}".to_owned());
        };
        let mut there = |name: &str| fields.remove(name).filter(|value| !value.is_null());
        let input = there("input").ok_or("input is missing; a request is {\"input\": {…}}")?;
        let policy = there("policy").unwrap_or_else(|| Value::Object(Map::new()));
        if !policy.is_object() {
            return Err("policy must be an object".to_owned());
        }
        let store = there("s3Config");
        if store.as_ref().is_some_and(|store| !store.is_object()) {
            return Err("s3Config must be an object".to_owned());
        }
        let webhook = there("webhook").map(|webhook| checked(&webhook, plain_http)).transpose()?.flatten();
        let name = Uuid::new_v4();
        let id = if kept { format!("sync-{name}-u1") } else { format!("{name}-u1") };
        Ok(Self { id, input, policy: Policy::read(&policy), store, webhook })
    }
}

fn checked(webhook: &Value, plain_http: bool) -> Result<Option<String>, String> {
    let text = webhook.as_str().ok_or("webhook must be a link")?;
    if text.is_empty() {
        return Ok(None);
    }
    let url = (text.len() <= MAX_WEBHOOK_BYTES).then(|| Url::parse(text).ok()).flatten();
    match url.as_ref().map(Url::scheme) {
        Some("https") => Ok(Some(text.to_owned())),
        Some("http") if plain_http => Ok(Some(text.to_owned())),
        Some("http") => Err("webhook must be an https:// link; http:// needs --allow-http".to_owned()),
        _ => Err("webhook must be an https:// link".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: &str) -> Result<Submission, String> {
        Submission::read(body.as_bytes(), false, false)
    }

    #[test]
    fn everything_that_clients_send_is_taken() {
        let body = json!({
            "input": { "a": 1 }, "webhook": "https://h/w?k=v", "policy": { "executionTimeout": 60_000, "ttl": 70_000 },
            "s3Config": { "accessId": "x" }, "webhookV2": "?", "id": "mine",
        });
        let read = read(&body.to_string()).unwrap();
        assert_eq!((read.input, read.store), (json!({ "a": 1 }), Some(json!({ "accessId": "x" }))));
        assert_eq!((read.policy.execution, read.policy.ttl), (Some(60_000), Some(70_000)));
        assert_eq!(read.webhook.as_deref(), Some("https://h/w?k=v"));
        assert!(read.id.ends_with("-u1") && read.id.len() == 39, "{}", read.id);
    }

    #[test]
    fn names_are_fresh_and_say_whether_somebody_waits() {
        let name = |kept| Submission::read(br#"{"input":0}"#, kept, false).unwrap().id;
        assert!(name(true).starts_with("sync-") && name(true).ends_with("-u1"));
        assert_ne!(name(false), name(false));
    }

    #[test]
    fn an_input_is_any_json() {
        for input in ["{}", "[1]", "\"x\"", "0", "false"] {
            assert!(read(&format!("{{\"input\": {input}, \"webhook\": null, \"policy\": null}}")).is_ok(), "{input}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let deep = format!("{{\"input\": {}{}}}", "[".repeat(5000), "]".repeat(5000));
        for (body, says) in [
            ("", "not JSON"),
            ("[]", "must be a JSON object"),
            ("{}", "input is missing"),
            (r#"{"input": null}"#, "input is missing"),
            (r#"{"input": 1, "policy": 5}"#, "policy must"),
            (r#"{"input": 1, "s3Config": "x"}"#, "s3Config must"),
            (r#"{"input": 1, "webhook": 5}"#, "webhook must"),
            (r#"{"input": 1, "webhook": "file:///etc/passwd"}"#, "https://"),
            (r#"{"input": 1, "webhook": "http://h/"}"#, "--allow-http"),
            (r#"{"input": NaN}"#, "not JSON"),
            (deep.as_str(), "not JSON"),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.contains(says), "{body:.40}: {error}");
        }
        assert_eq!(read(r#"{"input": 1, "webhook": ""}"#).unwrap().webhook, None);
    }
}
