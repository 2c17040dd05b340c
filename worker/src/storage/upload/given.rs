//! Links that the job gives for its results: one PUT each, to a stranger's server.

use std::time::SystemTime;

use base64_simd::STANDARD as BASE64;
use hyper::{Method, Request, header};
use url::Url;

use super::{
    error::{Failure, UploadError},
    measured::Measured,
    names,
    refusal::{is_duplicate, of_link},
    sending::Sending,
};
use crate::{
    net,
    redacted::Redacted,
    storage::{
        error::{Trouble, TroubleKind},
        expiry,
        refusal::MAX_REFUSAL_BYTES,
        s3_client::Line,
    },
};

/// What a PUT to a link may carry beside its body; the kind of signature decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// S3's fourth signature, and Google's twin of it: headers that are not signed may be there.
    Signature4,
    /// S3's second signature, and Google's twin of it: it covers type and MD5, so neither may be added.
    Signature2,
    /// Azure wants to know what kind of blob it gets.
    Azure,
    /// Anything else, Supabase's signed uploads among them. Whether those may overwrite stands in their token.
    Other,
}

/// Sends a file to a link. `plain_http`: links that are not encrypted are allowed.
pub(super) async fn put(
    sending: &Sending,
    measured: &Measured,
    link: &Redacted<Url>,
    plain_http: bool,
) -> Result<(), UploadError> {
    let place = link.to_string();
    let line = sending.line_for(measured.whole.bytes)?;
    let mut attempts = sending.attempts(&place);
    loop {
        check(link.expose(), &place, plain_http)?;
        let failure = match put_once(sending, &line, measured, link.expose(), &place).await {
            Ok(None) => return Ok(()),
            // The answer to an earlier attempt was lost on the way, and it had arrived.
            Ok(Some(_)) if attempts.any_failed() => return Ok(()),
            Ok(Some(duplicate)) => duplicate,
            Err(failure) => failure,
        };
        measured.still_there()?;
        attempts.after(failure).await?;
    }
}

/// What can be said about a link before any packet is sent.
pub(super) fn check(link: &Url, place: &str, plain_http: bool) -> Result<(), UploadError> {
    if link.scheme() == "http" && !plain_http {
        let what = "links that are not encrypted are not allowed here; use an https:// link";
        return Err(UploadError::NotAllowed { place: place.to_owned(), what });
    }
    match expiry::expired_for(link, SystemTime::now()) {
        Some(ago) => Err(UploadError::LinkExpired { place: place.to_owned(), ago: Some(ago) }),
        None => Ok(()),
    }
}

/// Nothing, or the refusal of a server that has such a file already.
async fn put_once(
    sending: &Sending,
    line: &Line,
    measured: &Measured,
    link: &Url,
    place: &str,
) -> Result<Option<Failure>, Failure> {
    let kind = Kind::of(link);
    let mut request = Request::builder().method(Method::PUT).uri(net::target(link));
    request = request.header(header::USER_AGENT, net::AGENT).header(header::CONTENT_LENGTH, measured.whole.bytes);
    if kind != Kind::Signature2 {
        request = request.header(header::CONTENT_TYPE, names::content_type(&measured.name));
    }
    match kind {
        Kind::Signature4 => request = request.header("content-md5", BASE64.encode_to_string(measured.whole.md5)),
        Kind::Azure => request = request.header("x-ms-blob-type", "BlockBlob"),
        Kind::Signature2 | Kind::Other => {}
    }
    let body = measured.body(&measured.whole).await?.into_inner();
    // The error would repeat the address.
    let request = request
        .body(body)
        .map_err(|_| Failure::from(Trouble::new(TroubleKind::BrokenAnswer, "its address is no HTTP address")))?;
    let answer = line.exchange(link, request, false).await;
    let (head, mut body) = answer.map_err(|error| sending.failure(error, place))?;
    let status = head.status.as_u16();
    if matches!(status, 200 | 201 | 202 | 204) {
        return Ok(None);
    }
    let begin = line.patience.within(sending.limits.answer, "the error's text", body.begin(MAX_REFUSAL_BYTES)).await;
    let begin = begin.map_err(|error| sending.failure(error, place))?;
    let refusal = of_link(status, &begin, &head.headers, place, link.as_str(), measured.whole.bytes);
    if is_duplicate(status, &begin) { Ok(Some(refusal)) } else { Err(refusal) }
}

// === impl Kind ===

impl Kind {
    fn of(link: &Url) -> Self {
        let has = |name: &str| link.query_pairs().any(|(key, _)| key.eq_ignore_ascii_case(name));
        if has("X-Amz-Signature") || has("X-Goog-Signature") {
            Self::Signature4
        } else if has("Signature") && has("Expires") {
            Self::Signature2
        } else if has("sig") && has("se") {
            Self::Azure
        } else {
            Self::Other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_a_link_is_seen_by_its_signature() {
        for (query, expected) in [
            ("X-Amz-Signature=0&X-Amz-Expires=1", Kind::Signature4),
            ("x-goog-signature=0", Kind::Signature4),
            ("AWSAccessKeyId=a&Signature=0&Expires=1", Kind::Signature2),
            ("sv=1&se=2&sig=0", Kind::Azure),
            ("token=a.b.c", Kind::Other),
        ] {
            assert_eq!(Kind::of(&format!("https://h/x?{query}").parse().unwrap()), expected, "{query}");
        }
    }

    #[test]
    fn links_are_checked_before_anything_is_sent() {
        let check = |link: &str, plain| check(&link.parse().unwrap(), "p", plain);
        assert!(matches!(check("http://h/x", false), Err(UploadError::NotAllowed { .. })));
        assert!(check("http://h/x", true).is_ok());
        let old = "https://h/x?X-Amz-Date=20200102T030405Z&X-Amz-Expires=60";
        assert!(matches!(check(old, false), Err(UploadError::LinkExpired { ago: Some(_), .. })));
    }
}
