//! What a request is answered with.

use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    body::Bytes,
    header::{
        ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
        X_CONTENT_TYPE_OPTIONS,
    },
};
use serde_json::{Value, json};

use super::queue::Refusal;

/// An answer, whole.
pub(super) type Answer = Response<Full<Bytes>>;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// What Prometheus reads.
const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// A request that is not answered as it wants.
#[derive(Debug)]
pub(super) struct Declined {
    status: StatusCode,
    why: String,
    header: Option<(HeaderName, HeaderValue)>,
}

/// HTTP 200 with JSON.
pub(super) fn told(value: &Value) -> Answer {
    answer(StatusCode::OK, JSON, value.to_string())
}

/// HTTP 200 with what Prometheus reads.
pub(super) fn measured(text: String) -> Answer {
    answer(StatusCode::OK, METRICS, text)
}

fn answer(status: StatusCode, kind: HeaderValue, text: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    let headers = [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    answer.headers_mut().extend(headers);
    answer
}

// === impl Declined ===

impl Declined {
    pub(super) fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into(), header: None }
    }

    pub(super) fn wrong(why: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, why)
    }

    pub(super) fn broken(why: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, why)
    }

    /// The rest of the request is not read, so nothing else can come over this connection.
    pub(super) fn unread(status: StatusCode, why: impl Into<String>) -> Self {
        Self { header: Some((CONNECTION, HeaderValue::from_static("close"))), ..Self::new(status, why) }
    }

    pub(super) fn no_key() -> Self {
        let why = "this server wants its key: Authorization: Bearer KEY";
        let header = Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
        Self { header, ..Self::new(StatusCode::UNAUTHORIZED, why) }
    }

    pub(super) fn method(allowed: &'static str) -> Self {
        let header = Some((ALLOW, HeaderValue::from_static(allowed)));
        Self { header, ..Self::new(StatusCode::METHOD_NOT_ALLOWED, format!("this address takes {allowed}")) }
    }

    pub(super) fn answer(&self) -> Answer {
        let mut answer = answer(self.status, JSON, json!({ "error": self.why }).to_string());
        answer.headers_mut().extend(self.header.clone());
        answer
    }
}

impl From<Refusal> for Declined {
    fn from(refusal: Refusal) -> Self {
        let why = refusal.to_string();
        match refusal {
            Refusal::Store(_) => Self::broken(why),
            Refusal::Unknown => Self::new(StatusCode::NOT_FOUND, why),
            Refusal::Wrong(_) => Self::wrong(why),
            Refusal::Full(_) => {
                let header = Some((RETRY_AFTER, HeaderValue::from_static("60")));
                Self { header, ..Self::new(StatusCode::TOO_MANY_REQUESTS, why) }
            }
        }
    }
}
