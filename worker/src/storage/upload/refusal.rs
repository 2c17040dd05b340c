//! What a store, or the server behind a link, means by an answer that is a refusal.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::http::Headers;
use hyper::header::HeaderMap;

use super::error::{Failure, UploadError};
use crate::redacted::shown_path;
use crate::storage::{
    error::{Trouble, TroubleKind},
    link::retry_after,
    refusal::{Said, is_expired, is_temporary},
};

/// Longest name of a region that is repeated.
const MAX_REGION_BYTES: usize = 32;
/// Two clocks that differ by less are not to blame.
const CLOCK_LEEWAY: Duration = Duration::from_secs(60);
/// By so much a clock may be wrong, by S3's rules.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(15 * 60);

/// An answer of a store that is a refusal.
#[derive(Debug)]
pub(super) struct StoreRefusal {
    pub(super) status: u16,
    pub(super) code: String,
    said: Said,
    /// The region that the bucket is in, where the store says it.
    pub(super) region: Option<String>,
    wait: Option<Duration>,
    clock: Option<Duration>,
}

// === impl StoreRefusal ===

impl StoreRefusal {
    /// Nothing if there was no answer, or none that could be read.
    pub(super) fn of<E: ProvideErrorMetadata>(error: &SdkError<E>) -> Option<Self> {
        let answer = error.raw_response()?;
        let (headers, now) = (answer.headers(), SystemTime::now());
        Some(Self {
            status: answer.status().as_u16(),
            code: error.code().unwrap_or_default().to_owned(),
            said: Said::of(error.code(), error.message()),
            region: region(headers),
            wait: headers.get("retry-after").and_then(|text| retry_after(text, now)),
            clock: headers.get("date").and_then(|date| off_by(date, now)),
        })
    }

    /// Whether the store may not know the header of a checksum that not all stores know.
    pub(super) fn may_mean_a_header(&self) -> bool {
        let unknown = ["NotImplemented", "InvalidRequest", "InvalidArgument", "UnsupportedArgument", "InvalidHeader"];
        matches!(self.status, 400 | 501) && (self.code.is_empty() || unknown.contains(&self.code.as_str()))
    }

    /// Whether the store says that the bucket is in another region than this one.
    pub(super) fn elsewhere(&self, region: &str) -> bool {
        self.status != 400 || self.region.as_ref().is_some_and(|theirs| theirs != region)
    }

    /// What it means for a request that brings so many bytes to `place`. `key`: the key of the object, so that nothing
    /// of it is taken for a word of the store's.
    pub(super) fn meaning(self, place: &str, key: &str, bytes: u64) -> Failure {
        let place = place.to_owned();
        let word = self.said.shown(key).map(|code| format!(" ({code})")).unwrap_or_default();
        let said = format!("HTTP {}{word}", self.status);
        let is = |codes: &[&str]| codes.contains(&self.code.as_str());
        if is(&["NoSuchBucket"]) {
            return UploadError::NoSuchBucket { place }.into();
        }
        if is(&["RequestTimeTooSkewed"]) || (self.status == 403 && self.clock.is_some_and(|by| by >= MAX_CLOCK_SKEW)) {
            return UploadError::ClockSkew { place, by: self.clock }.into();
        }
        if is(&["ExpiredToken", "TokenRefreshRequired"]) {
            return UploadError::ExpiredKey { place }.into();
        }
        if is(&["InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity", "InvalidSignature"]) {
            return UploadError::WrongKey { place, said }.into();
        }
        let elsewhere = ["PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed"];
        if matches!(self.status, 301 | 307 | 308) || is(&elsewhere) || is(&["IllegalLocationConstraintException"]) {
            return UploadError::WrongRegion { place, region: self.region }.into();
        }
        if self.status == 413 || is(&["EntityTooLarge", "MaxSizeExceeded"]) {
            return UploadError::TooLarge { place, bytes }.into();
        }
        // The store compared what came with what was announced.
        if is(&["BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody"]) {
            let why = format!("other bytes arrived than were sent: {said}");
            return Trouble::new(TroubleKind::ServerFailed, why).into();
        }
        if self.status == 507 || is(&["XMinioStorageFull", "QuotaExceeded"]) {
            return UploadError::Refused { place, said: format!("{said}: the store is full; make room in it") }.into();
        }
        // A completion may fail after its status was sent.
        if is_temporary(self.status, &self.said) || self.status < 300 {
            let trouble = Trouble::new(TroubleKind::ServerFailed, format!("it answered {said}"));
            return Trouble { wait: self.wait, ..trouble }.into();
        }
        if matches!(self.status, 401 | 403) || is(&["AccessDenied", "Unauthorized", "AllAccessDisabled"]) {
            return UploadError::AccessDenied { place, said }.into();
        }
        if self.status == 404 {
            let advice = "there is nothing at this address; check the endpoint and the bucket";
            return UploadError::Refused { place, said: format!("{said}: {advice}") }.into();
        }
        UploadError::Refused { place, said: format!("{said}; check the endpoint and the store's rules") }.into()
    }
}

/// The region that a store names, if it is a plain word.
fn region(headers: &Headers) -> Option<String> {
    let region = headers.get("x-amz-bucket-region")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let region = Some(region).filter(|region| region.len() <= MAX_REGION_BYTES && region.bytes().all(plain));
    region.filter(|region| shown_path(region) == *region).map(str::to_owned)
}

/// By how much the store's clock differs from this machine's.
fn off_by(date: &str, now: SystemTime) -> Option<Duration> {
    let theirs = httpdate::parse_http_date(date).ok()?;
    let by = now.duration_since(theirs).unwrap_or_else(|error| error.duration());
    (by > CLOCK_LEEWAY).then_some(by)
}

/// What an answer to a PUT by link means. `link` is the whole address, so that nothing of it is repeated.
pub(super) fn of_link(status: u16, begin: &[u8], headers: &HeaderMap, place: &str, link: &str, bytes: u64) -> Failure {
    let said = Said::read(begin);
    let place = place.to_owned();
    let inner = said.inner(status);
    let word = said.shown(link).map(|code| format!(" ({code})")).unwrap_or_default();
    let text = format!("HTTP {status}{word}");
    if is_expired(&said) {
        return UploadError::LinkExpired { place, ago: None }.into();
    }
    if inner == 413 || said.has(&["EntityTooLarge"]) {
        return UploadError::TooLarge { place, bytes }.into();
    }
    let changed = said.has(&["BadDigest", "IncompleteBody"]);
    if changed || (inner != 507 && (is_temporary(inner, &said) || is_temporary(status, &said))) {
        let wait = headers.get("retry-after").and_then(|text| text.to_str().ok());
        let wait = wait.and_then(|text| retry_after(text, SystemTime::now()));
        let trouble = Trouble::new(TroubleKind::ServerFailed, format!("it answered {text}"));
        return Trouble { wait, ..trouble }.into();
    }
    let advice = if (300..400).contains(&status) {
        "it redirects, which an upload does not follow; use the link of the store itself"
    } else if inner == 409 || said.has(&["Duplicate", "ResourceAlreadyExists"]) {
        "there is a file already; make a link that may overwrite"
    } else if said.has(&["SignatureDoesNotMatch", "InvalidJWT", "InvalidSignature", "AuthenticationFailed"]) {
        "its signature is not valid for this; make a link for a PUT of this file, and copy it whole"
    } else if said.has(&["RequestTimeTooSkewed"]) {
        "a clock is wrong; set it"
    } else if inner == 507 {
        "the store is full; make room in it"
    } else if matches!(inner, 401 | 403) || said.has(&["AccessDenied", "Unauthorized"]) {
        "the server does not allow it; make a link for a PUT of this file"
    } else if matches!(inner, 404 | 410) {
        "there is no such bucket or link; make a new one"
    } else {
        "make a new link"
    };
    UploadError::Refused { place, said: format!("{text}: {advice}") }.into()
}

/// Whether a server says that the file is there already.
pub(super) fn is_duplicate(status: u16, begin: &[u8]) -> bool {
    let said = Said::read(begin);
    said.inner(status) == 409 || said.has(&["Duplicate", "ResourceAlreadyExists"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, code: &str, message: &str) -> StoreRefusal {
        let said = Said::of(Some(code), Some(message));
        StoreRefusal { status, code: code.into(), said, region: None, wait: None, clock: None }
    }

    fn text(failure: Failure) -> String {
        match failure {
            Failure::Final(error) => error.to_string(),
            Failure::Again(trouble) => format!("again: {trouble}"),
        }
    }

    #[test]
    fn a_stores_refusals_are_told_apart() {
        for (status, code, expected) in [
            (404, "NoSuchBucket", "no such bucket"),
            (403, "AccessDenied", "does not allow it (HTTP 403 (AccessDenied))"),
            (403, "InvalidAccessKeyId", "does not know the operator's key"),
            (403, "SignatureDoesNotMatch", "does not know the operator's key"),
            (403, "RequestTimeTooSkewed", "clock is wrong"),
            (400, "ExpiredToken", "has expired"),
            (301, "PermanentRedirect", "another region"),
            (400, "AuthorizationHeaderMalformed", "another region"),
            (400, "EntityTooLarge", "too large"),
            (413, "", "too large"),
            (400, "BadDigest", "again: other bytes"),
            (400, "XAmzContentSHA256Mismatch", "again: other bytes"),
            (503, "SlowDown", "again: it answered HTTP 503 (SlowDown)"),
            (502, "", "again: it answered HTTP 502"),
            (200, "InternalError", "again"),
            (400, "RequestTimeout", "again"),
            (507, "XMinioStorageFull", "the store is full"),
            (501, "NotImplemented", "refuses the upload"),
            (404, "", "nothing at this address"),
        ] {
            let text = text(refusal(status, code, "key S3CR3T").meaning("s3://b/k", "k", 7));
            assert!(text.contains(expected) && !text.contains("S3CR3T"), "{status} {code}: {text}");
        }
    }

    #[test]
    fn a_clock_that_is_far_off_explains_a_refusal() {
        let refusal = StoreRefusal { clock: Some(Duration::from_secs(3600)), ..refusal(403, "AccessDenied", "") };
        assert!(text(refusal.meaning("p", "k", 0)).contains("wrong by 60 min"));
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(off_by("Sun, 06 Nov 1994 08:59:37 GMT", now), Some(Duration::from_secs(600)));
        assert_eq!(off_by("Sun, 06 Nov 1994 08:50:07 GMT", now), None);
    }

    #[test]
    fn refusals_behind_links_are_told_apart() {
        for (status, body, expected) in [
            (400, r#"{"statusCode":"400","error":"InvalidJWT","message":"jwt expired"}"#, "expired"),
            (403, "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>", "expired"),
            (403, "<Error><Code>SignatureDoesNotMatch</Code></Error>", "signature is not valid"),
            (400, r#"{"statusCode":"409","error":"Duplicate"}"#, "may overwrite"),
            (400, r#"{"statusCode":"413","error":"Payload too large"}"#, "too large"),
            (403, "", "does not allow"),
            (307, "", "does not follow"),
            (404, "", "no such bucket"),
            (503, "", "again"),
            (400, r#"{"statusCode":"503","error":"x"}"#, "again"),
        ] {
            let failure = of_link(status, body.as_bytes(), &HeaderMap::new(), "https://h/x", "https://h/x?t=S3CR3T", 7);
            assert!(text(failure).contains(expected), "{status} {body}");
        }
    }
}
