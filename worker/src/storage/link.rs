//! A link: one request per hop, every hop checked.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http_body_util::Empty;
use hyper::{
    Method, Request,
    body::Bytes,
    header::{self, HeaderMap, HeaderName},
    http::response::Parts,
};
use url::Url;

use super::{
    error::{Failure, FetchError, Trouble, TroubleKind},
    expiry,
    fetching::Fetching,
    opened::{Flow, Opened, Rest, check_range, validator},
    partial::Content,
    refusal::{MAX_REFUSAL_BYTES, Said, meaning},
    source::joined,
};
use crate::{
    net::{self, Body},
    redacted::Redacted,
};

/// A file behind a link.
pub(super) struct Link {
    pub(super) fetching: Arc<Fetching>,
    pub(super) url: Url,
}

// === impl Link ===

impl Link {
    /// Asks for the file, or the rest of it.
    pub(super) async fn open(&self, rest: Option<&Rest>, total: Option<u64>) -> Result<Opened, Failure> {
        let mut url = self.url.clone();
        let mut seen = HashSet::new();
        loop {
            let place = Redacted::url(url.clone()).to_string();
            self.check(&url, &place)?;
            let request = request(&url, rest)?;
            let (head, mut body) = self.fetching.exchange(&url, request, &place, false).await?;
            match head.status.as_u16() {
                200 => return whole(&head, body, &place),
                206 => return part(&head, body, &place, rest, total),
                301 | 302 | 303 | 307 | 308 => {
                    seen.insert(url.clone());
                    url = self.redirected(&url, &head.headers, &seen, &place)?;
                }
                412 | 416 if rest.is_some() => {
                    return Err(Trouble::broken_anew("it does not have the rest of the file").into());
                }
                status @ (100..=399) => {
                    let why = format!("it answered HTTP {status}, which holds no file");
                    return Err(Trouble::new(TroubleKind::BrokenAnswer, why).into());
                }
                status => {
                    let begin = body.begin(MAX_REFUSAL_BYTES);
                    let begin = self.fetching.within(self.fetching.limits.idle, "the error's text", begin).await?;
                    return Err(refused(status, &begin, &head.headers, &place, &url));
                }
            }
        }
    }

    /// What can be said about a hop before any packet is sent.
    fn check(&self, url: &Url, place: &str) -> Result<(), FetchError> {
        if url.scheme() == "http" && !self.fetching.policy.plain_http {
            let what = "links that are not encrypted are not allowed here; use an https:// link";
            return Err(FetchError::NotAllowed { place: place.to_owned(), what });
        }
        match expiry::expired_for(url, SystemTime::now()) {
            Some(ago) => Err(FetchError::Expired { place: place.to_owned(), ago: Some(ago) }),
            None => Ok(()),
        }
    }

    fn redirected(&self, from: &Url, headers: &HeaderMap, seen: &HashSet<Url>, place: &str) -> Result<Url, FetchError> {
        let refused = |why: String| FetchError::RefusedRedirect { place: place.to_owned(), why };
        if seen.len() > self.fetching.limits.redirects {
            return Err(refused(format!("more than {} times", self.fetching.limits.redirects)));
        }
        let location = text(headers, header::LOCATION).ok_or_else(|| refused("without saying where to".into()))?;
        let to = joined(from, location).map_err(|error| refused(format!("to an address that {error}")))?;
        if from.scheme() == "https" && to.scheme() == "http" {
            return Err(refused("to a link that is not encrypted".into()));
        }
        if seen.contains(&to) {
            return Err(refused("in a circle".into()));
        }
        Ok(to)
    }
}

fn request(url: &Url, rest: Option<&Rest>) -> Result<Request<Empty<Bytes>>, Failure> {
    let mut request = Request::builder().method(Method::GET).uri(net::target(url));
    request = request.header(header::USER_AGENT, net::AGENT).header(header::ACCEPT, "*/*");
    request = request.header(header::ACCEPT_ENCODING, "gzip");
    if let Some(rest) = rest {
        request = request.header(header::RANGE, format!("bytes={}-", rest.from));
        request = request.header(header::IF_RANGE, rest.validator.value());
    }
    // The error would repeat the address.
    request
        .body(Empty::new())
        .map_err(|_| Trouble::new(TroubleKind::BrokenAnswer, "its address is no HTTP address").into())
}

fn whole(head: &Parts, body: Body, place: &str) -> Result<Opened, Failure> {
    let length = length(&head.headers)?;
    let chunked =
        text(&head.headers, header::TRANSFER_ENCODING).is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
    if length.is_none() && !chunked {
        let why = "it does not say how long the file is, so a cut one would go unnoticed";
        return Err(Trouble::broken_anew(why).into());
    }
    let length = length.filter(|_| !chunked);
    let content = Content { total: length, ..content(&head.headers, place)? };
    Ok(Opened { start: 0, length, content, flow: Flow::Web(body) })
}

fn part(head: &Parts, body: Body, place: &str, rest: Option<&Rest>, total: Option<u64>) -> Result<Opened, Failure> {
    let unasked = || Trouble::broken_anew("it sent a part of the file, and was asked for all of it");
    let rest = rest.ok_or_else(unasked)?;
    let range = text(&head.headers, header::CONTENT_RANGE).unwrap_or_default();
    let length = check_range(range, rest, length(&head.headers)?, total)?;
    let mut content = content(&head.headers, place)?;
    if content.validator.as_ref().is_some_and(|now| *now != rest.validator) {
        return Err(Trouble::broken_anew("it sent the rest of another content").into());
    }
    content.validator = Some(rest.validator.clone());
    content.total = Some(rest.from + length);
    Ok(Opened { start: rest.from, length: Some(length), content, flow: Flow::Web(body) })
}

fn content(headers: &HeaderMap, place: &str) -> Result<Content, Failure> {
    let gzip = is_gzip(text(headers, header::CONTENT_ENCODING), place)?;
    let validator = validator(text(headers, header::ETAG), text(headers, header::LAST_MODIFIED));
    Ok(Content { validator, total: None, gzip })
}

/// Whether a content encoding is gzip, none, or one that is not read.
pub(super) fn is_gzip(encoding: Option<&str>, place: &str) -> Result<bool, FetchError> {
    let encoding = encoding.unwrap_or_default().trim().to_ascii_lowercase();
    match encoding.as_str() {
        "" | "identity" | "aws-chunked" => Ok(false),
        "gzip" | "x-gzip" => Ok(true),
        "br" | "zstd" | "deflate" | "compress" => {
            Err(FetchError::Encoding { place: place.to_owned(), what: format!("compressed with {encoding}") })
        }
        _ => Err(FetchError::Encoding { place: place.to_owned(), what: "encoded in a way that is not read".into() }),
    }
}

fn length(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let Some(text) = text(headers, header::CONTENT_LENGTH) else { return Ok(None) };
    let broken = || Trouble::broken_anew("its Content-Length is no number");
    Ok(Some(text.trim().parse().map_err(|_| broken())?))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn refused(status: u16, body: &[u8], headers: &HeaderMap, place: &str, url: &Url) -> Failure {
    match meaning(status, &Said::read(body), place, url.as_str()) {
        Failure::Again(trouble) => {
            let wait = text(headers, header::RETRY_AFTER).and_then(|text| retry_after(text, SystemTime::now()));
            Trouble { wait, ..trouble }.into()
        }
        end => end,
    }
}

/// `Retry-After`: seconds, or a date.
pub(super) fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(retry_after(" 7 ", now), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:47 GMT", now), Some(Duration::from_secs(10)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:27 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
    }

    #[test]
    fn encodings_that_are_not_read_are_named() {
        assert_eq!(
            [None, Some("identity"), Some("GZIP"), Some("x-gzip")].map(|e| is_gzip(e, "p").unwrap()),
            [false, false, true, true]
        );
        assert!(is_gzip(Some("br"), "p").unwrap_err().to_string().contains("compressed with br"));
        for encoding in ["gzip, gzip", "secret"] {
            let text = is_gzip(Some(encoding), "p").unwrap_err().to_string();
            assert!(text.contains("not read") && !text.contains("secret"), "{text}");
        }
    }
}
