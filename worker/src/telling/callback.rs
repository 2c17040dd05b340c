//! The callback of a job: its owner's own server, told by signed POSTs. `docs/callbacks.md` is written for those who write it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::Full;
use hyper::{
    Method,
    body::Bytes,
    header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue},
};
use serde_json::{Value, json};
use sha2::Sha256;
use url::Url;

use super::{
    channel::Listener,
    limits::TellingLimits,
    news::{End, News},
    request::{Heard, Line, request, unheard},
};
use crate::redacted::Redacted;

/// Who sent a message, and when: `t=<seconds since 1970>,v1=<hexadecimal HMAC>`.
const SIGNATURE: HeaderName = HeaderName::from_static("x-brightrun-signature");
/// Larger messages go without their output.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// The callback of one job.
pub(super) struct Callback {
    pub(super) line: Arc<Line>,
    pub(super) url: Redacted<Url>,
    pub(super) secret: Option<Redacted<String>>,
    /// The job's name at the platform.
    pub(super) id: String,
    /// The job's name at its owner.
    pub(super) job_id: String,
    pub(super) events: Events,
}

/// Names and numbers of messages.
pub(super) struct Events {
    /// Another one each time that a worker begins with the job.
    turn: String,
    sent: AtomicU64,
}

// === impl Events ===

impl Events {
    pub(super) fn begin() -> Self {
        Self { turn: format!("{:016x}", fastrand::u64(..)), sent: AtomicU64::new(0) }
    }

    /// The number of the next message, from 1 on, and its name.
    fn next(&self) -> (u64, String) {
        let sequence = self.sent.fetch_add(1, Ordering::Relaxed) + 1;
        (sequence, format!("{}-{sequence}", self.turn))
    }
}

// === impl Callback ===

impl Listener for Callback {
    fn name(&self) -> String {
        format!("callback_url {}", self.url)
    }

    fn message(&self, news: &News) -> Bytes {
        let (sequence, event_id) = self.events.next();
        let now = DateTime::from(SystemTime::now()).fmt(DateTimeFormat::DateTime);
        let (status, output, error) = match news {
            News::Progress(output) => ("IN_PROGRESS", Some(output), None),
            News::Last(last) => (word(last.end), last.output.as_ref(), last.error.as_ref()),
        };
        let mut message = json!({
            "event_id": event_id, "sequence": sequence, "sent_at": now.unwrap_or_default(),
            "id": self.id, "job_id": self.job_id, "status": status, "output": output,
        });
        if let Some(error) = error {
            message["error"] = json!(error);
        }
        let text = message.to_string();
        if text.len() <= MAX_MESSAGE_BYTES {
            return text.into();
        }
        message["output"] = Value::Null;
        message.to_string().into()
    }

    async fn send(&self, message: Bytes, most: Duration) -> Heard {
        let url = self.url.expose();
        let mut headers = vec![
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (ACCEPT, HeaderValue::from_static("*/*")),
        ];
        if let Some(secret) = &self.secret {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let signed = HeaderValue::try_from(signature(secret.expose(), since.as_secs(), &message));
            headers.extend(signed.ok().map(|signed| (SIGNATURE, signed)));
        }
        let answered = match request(Method::POST, url, headers, Full::new(message)) {
            Ok(request) => self.line.ask(url, request, false, most).await,
            Err(error) => Err(error),
        };
        match answered.map(|answered| answered.status) {
            Ok(200..=299) => Heard::Yes,
            Ok(status @ 300..=399) => {
                Heard::Never(format!("it answered HTTP {status}, and redirects are not followed"))
            }
            Ok(status @ (408 | 425 | 429 | 500..=599)) => Heard::NotNow(format!("it answered HTTP {status}")),
            Ok(status) => Heard::Never(format!("it answered HTTP {status}")),
            Err(error) => unheard(error),
        }
    }

    fn patience(&self, limits: &TellingLimits) -> Duration {
        limits.last_of_callback
    }
}

/// RunPod's word for an end.
fn word(end: End) -> &'static str {
    match end {
        End::Completed => "COMPLETED",
        End::Failed => "FAILED",
        End::Cancelled => "CANCELLED",
    }
}

/// `t=<seconds>,v1=<hex(HMAC-SHA256(secret, "<seconds>.<message>"))>`: the time is signed too, so that nobody sends an old
/// message again.
fn signature(secret: &str, seconds: u64, message: &[u8]) -> String {
    // Keys of every length are taken.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return String::new() };
    mac.update(format!("{seconds}.").as_bytes());
    mac.update(message);
    format!("t={seconds},v1={}", hex::encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{net::Network, telling::news::Last};

    fn callback() -> Callback {
        Callback {
            line: Arc::new(Line::new(Network::default(), &TellingLimits::default()).unwrap()),
            url: Redacted::url("https://h/x?key=S3CR3T".parse().unwrap()),
            secret: None,
            id: "id-u1".into(),
            job_id: "job".into(),
            events: Events::begin(),
        }
    }

    fn message(callback: &Callback, news: &News) -> Value {
        serde_json::from_slice(&callback.message(news)).unwrap()
    }

    fn last(end: End, output: Option<Value>, error: Option<&str>) -> News {
        News::Last(Last { end, output, error: error.map(str::to_owned), archive: None, no_archive: None })
    }

    /// `printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac secret`
    #[test]
    fn the_signature_is_what_openssl_computes() {
        let expected = "t=1700000000,v1=49f24e537407743fa4a0242bb63b94b9a47ee99cbbe071ccd8a22550ae411686";
        assert_eq!(signature("secret", 1_700_000_000, br#"{"a":1}"#), expected);
    }

    #[test]
    fn messages_have_names_numbers_and_the_platforms_words() {
        let callback = callback();
        let shown = json!({ "stage": "training", "progress": 4.5 });
        let first = message(&callback, &News::Progress(shown.clone()));
        assert_eq!(
            (&first["status"], &first["output"], &first["sequence"]),
            (&json!("IN_PROGRESS"), &shown, &json!(1))
        );
        assert_eq!((&first["id"], &first["job_id"]), (&json!("id-u1"), &json!("job")));
        assert!(first.get("error").is_none() && first["sent_at"].as_str().unwrap().ends_with('Z'));
        let done = message(&callback, &last(End::Completed, Some(json!({ "status": "success" })), None));
        assert_eq!((&done["status"], &done["sequence"]), (&json!("COMPLETED"), &json!(2)));
        let failed = message(&callback, &last(End::Failed, None, Some("why")));
        assert_eq!(
            (&failed["status"], &failed["output"], &failed["error"]),
            (&json!("FAILED"), &Value::Null, &json!("why"))
        );
        assert_eq!(message(&callback, &last(End::Cancelled, None, None))["status"], "CANCELLED");
        let names: Vec<String> = ["1", "2"].iter().map(|number| format!("{}-{number}", callback.events.turn)).collect();
        assert_eq!([&first["event_id"], &done["event_id"]], [&json!(names[0]), &json!(names[1])]);
        assert_ne!(Events::begin().turn, callback.events.turn);
    }

    #[test]
    fn what_is_too_large_goes_without_its_output() {
        let large = json!("x".repeat(MAX_MESSAGE_BYTES));
        let told = message(&callback(), &last(End::Completed, Some(large), None));
        assert_eq!((&told["status"], &told["output"]), (&json!("COMPLETED"), &Value::Null));
    }
}
