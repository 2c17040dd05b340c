//! What a server means by an answer that is no file: Supabase answers every refusal with HTTP 400 and says more in JSON,
//! S3 servers say it in XML, and an expired link is 400 on some and 403 on others.

use serde_json::Value;

use super::error::{Failure, FetchError, Trouble, TroubleKind};

/// So much of an answer that is no file is read.
pub(crate) const MAX_REFUSAL_BYTES: usize = 16 << 10;
/// Longest error code that is repeated.
const MAX_CODE_BYTES: usize = 40;

/// What a server says beside the status.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// The status inside the body.
    status: Option<u16>,
    /// Names of the error.
    codes: Vec<String>,
    /// Free text. It decides, but is never repeated: a server may put the link into it.
    message: String,
}

impl Said {
    /// Reads the body of an answer, as far as it is JSON or XML of a known shape.
    pub(crate) fn read(body: &[u8]) -> Self {
        if let Ok(Value::Object(fields)) = serde_json::from_slice(body) {
            let status = fields.get("statusCode").and_then(|status| match status {
                Value::String(text) => text.parse().ok(),
                number => number.as_u64().and_then(|number| u16::try_from(number).ok()),
            });
            let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
            let codes = ["error", "code"].into_iter().filter_map(text).collect();
            return Self { status, codes, message: text("message").unwrap_or_default() };
        }
        let text = String::from_utf8_lossy(body);
        let element = |name: &str| {
            let (_, after) = text.split_once(&format!("<{name}>"))?;
            Some(after.split_once(&format!("</{name}>"))?.0.to_owned())
        };
        Self {
            status: None,
            codes: element("Code").into_iter().collect(),
            message: element("Message").unwrap_or_default(),
        }
    }

    /// As an SDK reports it.
    pub(super) fn of(code: Option<&str>, message: Option<&str>) -> Self {
        let codes = code.into_iter().map(str::to_owned).collect();
        Self { status: None, codes, message: message.unwrap_or_default().to_owned() }
    }

    /// The status that counts: Supabase's own one more than the 400 around it.
    pub(crate) fn inner(&self, status: u16) -> u16 {
        self.status.filter(|inner| (400..600).contains(inner)).unwrap_or(status)
    }

    pub(crate) fn has(&self, names: &[&str]) -> bool {
        self.codes.iter().any(|code| names.iter().any(|name| code.eq_ignore_ascii_case(name)))
    }

    /// A code that can be repeated: a plain word that is no part of the link.
    pub(super) fn shown(&self, link: &str) -> Option<&str> {
        let plain = |code: &&String| {
            (3..=MAX_CODE_BYTES).contains(&code.len())
                && code.chars().all(|c| c.is_ascii_alphabetic() || c == '_')
                && !link.contains(code.as_str())
        };
        self.codes.iter().find(plain).map(String::as_str)
    }
}

/// What an answer with this status means. `link` is the whole address, so that nothing of it is repeated.
pub(super) fn meaning(status: u16, said: &Said, place: &str, link: &str) -> Failure {
    let inner = said.inner(status);
    let code = said.shown(link).map(|code| format!(" ({code})")).unwrap_or_default();
    if is_expired(said) {
        return FetchError::Expired { place: place.to_owned(), ago: None }.into();
    }
    if is_temporary(inner, said) || is_temporary(status, said) {
        let why = format!("it answered HTTP {status}{code}");
        return Trouble::new(TroubleKind::ServerFailed, why).into();
    }
    let why = if inner == 404 || inner == 410 || said.has(&["NoSuchKey", "NoSuchBucket", "not_found", "BlobNotFound"]) {
        "there is no such file; check that it is uploaded, and make a new link"
    } else if said.has(&["SignatureDoesNotMatch", "InvalidJWT", "InvalidSignature", "AuthenticationFailed"]) {
        "its signature is not valid, so it was cut or changed, or it expired; copy it whole, or make a new one"
    } else if said.has(&["InvalidAccessKeyId", "InvalidToken"]) {
        "the key it was signed with does not exist any more; make a new link"
    } else if said.has(&["RequestTimeTooSkewed"]) {
        "this machine's clock is wrong; set it"
    } else if inner == 401 || inner == 403 || said.has(&["AccessDenied", "Unauthorized"]) {
        "the server does not allow it; make a link that is signed for this file"
    } else {
        "the server refuses it; make a new one"
    };
    FetchError::WrongLink { place: place.to_owned(), said: format!("HTTP {status}{code}: {why}") }.into()
}

pub(super) fn is_expired(said: &Said) -> bool {
    let message = said.message.to_ascii_lowercase();
    // "Request has expired", "jwt expired", "\"exp\" claim timestamp check failed".
    said.has(&["ExpiredToken", "TokenExpired", "RequestExpired"])
        || message.contains("expired")
        || message.contains("\"exp\" claim")
}

pub(crate) fn is_temporary(status: u16, said: &Said) -> bool {
    matches!(status, 408 | 425 | 429)
        // 501 and 505 say that this server never will.
        || ((500..600).contains(&status) && !matches!(status, 501 | 505))
        || said.has(&["SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(status: u16, body: &str) -> String {
        match meaning(status, &Said::read(body.as_bytes()), "https://h/x", "https://h/x?token=S3CR3T&a=Secretword") {
            Failure::Final(error) => error.to_string(),
            Failure::Again(trouble) => format!("again: {trouble}"),
        }
    }

    #[test]
    fn refusals_are_told_apart() {
        let cases = [
            (
                400,
                r#"{"statusCode":"400","error":"InvalidJWT","message":"\"exp\" claim timestamp check failed"}"#,
                "expired",
            ),
            (400, r#"{"statusCode":"400","error":"InvalidJWT","message":"jwt expired"}"#, "expired"),
            (
                400,
                r#"{"statusCode":"400","error":"InvalidJWT","message":"jwt malformed"}"#,
                "(InvalidJWT): its signature",
            ),
            (400, r#"{"statusCode":"404","error":"not_found","message":"Object not found"}"#, "no such file"),
            (400, r#"{"statusCode":404,"code":"NoSuchKey","error":"NoSuchKey"}"#, "no such file"),
            (400, r#"{"statusCode":"403","error":"Unauthorized"}"#, "does not allow"),
            (400, r#"{"statusCode":"503","error":"DatabaseTimeout"}"#, "again: it answered HTTP 400 (DatabaseTimeout)"),
            (403, "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>", "expired"),
            (400, "<Error><Code>ExpiredToken</Code></Error>", "expired"),
            (403, "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>", "does not allow"),
            (403, "<Error><Code>SignatureDoesNotMatch</Code></Error>", "its signature"),
            (404, "<Error><Code>NoSuchBucket</Code></Error>", "no such file"),
            (503, "<Error><Code>SlowDown</Code></Error>", "again: it answered HTTP 503 (SlowDown)"),
            (400, "<Error><Code>RequestTimeout</Code></Error>", "again"),
            (400, "", "the server refuses it"),
            (401, "no", "does not allow"),
            (404, "<html>", "no such file"),
            (410, "", "no such file"),
            (418, "", "the server refuses it"),
            (429, "", "again"),
            (500, "{", "again"),
            (501, "", "the server refuses it"),
        ];
        for (status, body, expected) in cases {
            let text = text(status, body);
            assert!(text.contains(expected), "{status} {body}: {text}");
        }
    }

    #[test]
    fn nothing_of_the_link_is_repeated() {
        for code in ["S3CR3T", "Secretword", "x https://h?token=S3CR3T", &"a".repeat(50), "<script>"] {
            let shown = text(400, &format!(r#"{{"error":{code:?},"message":"token=S3CR3T"}}"#));
            assert!(shown.contains("HTTP 400: "), "{shown}");
        }
    }
}
