//! What a server without a key must fear: web pages that the browser of somebody on this machine shows.
//!
//! A page can make a browser send requests to this machine. It cannot read the answers, but a request may be enough. Browsers
//! say whose page it is (`Origin`, `Sec-Fetch-Site`), and ask before they send JSON (we never answer that). A page whose name is
//! made to lead here looks like one of ours, but the request still carries its name (`Host`).

use std::net::IpAddr;

use hyper::{
    Method, Uri,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, ORIGIN, TRANSFER_ENCODING},
};

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Why a request to a server without a key is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// It is for a server of another name.
    OtherHost,
    /// A page of somebody else's has sent it.
    OtherSite,
    /// Its body is one that pages can send without being asked.
    NoJson,
}

/// What is suspicious about a request, if anything is.
pub(super) fn suspicion(method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Suspicion> {
    let text = |name: &HeaderName| headers.get_all(name).iter().map(|value| value.to_str().ok());
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let named = host.is_some_and(is_this_machine) && headers.get_all(HOST).iter().count() == 1;
    if !named || uri.authority().is_some_and(|authority| !is_this_machine(authority.as_str())) {
        return Some(Suspicion::OtherHost);
    }
    let own = |origin: &str| origin.strip_prefix("http://").is_some_and(|origin| Some(origin) == host);
    if text(&ORIGIN).any(|origin| !origin.is_some_and(own)) {
        return Some(Suspicion::OtherSite);
    }
    // `none`: a person has typed it.
    if text(&FETCH_SITE).any(|site| !matches!(site, Some("same-origin" | "none"))) {
        return Some(Suspicion::OtherSite);
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let has_body = headers.contains_key(TRANSFER_ENCODING) || length.is_some_and(|length| length != "0");
    (method == Method::POST && has_body && !headers.get(CONTENT_TYPE).is_none_or(is_json)).then_some(Suspicion::NoJson)
}

/// Names that lead nowhere else.
fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(address, _)| address),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let loopback = name.parse().is_ok_and(|address: IpAddr| address.to_canonical().is_loopback());
    loopback || name.eq_ignore_ascii_case("localhost")
}

fn is_json(value: &hyper::header::HeaderValue) -> bool {
    let kind = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: Method, headers: &[(&'static str, &'static str)]) -> Option<Suspicion> {
        let name = |name: &'static str| HeaderName::from_static(name);
        let headers = headers.iter().map(|(header, value)| (name(header), value.parse().unwrap())).collect();
        suspicion(&method, &Uri::from_static("/run"), &headers)
    }

    #[test]
    fn programs_on_this_machine_may_ask() {
        for host in ["localhost:8000", "LOCALHOST", "127.0.0.1:8000", "127.3.2.1", "[::1]:8000", "[::1]"] {
            assert_eq!(of(Method::GET, &[("host", host)]), None, "{host}");
        }
        let json =
            [("host", "localhost"), ("content-type", "application/json; charset=utf-8"), ("content-length", "5")];
        assert_eq!(of(Method::POST, &json), None);
        assert_eq!(of(Method::POST, &[("host", "localhost"), ("content-length", "0")]), None);
        let own = [("host", "localhost:8000"), ("origin", "http://localhost:8000"), ("sec-fetch-site", "same-origin")];
        assert_eq!(of(Method::POST, &own), None);
    }

    #[test]
    fn a_name_that_was_made_to_lead_here_does_not() {
        let hosts = [
            "evil.example",
            "localhost.evil.example:8000",
            "127.0.0.1.evil.example",
            "192.168.1.1",
            "[::2]",
            "",
            "[::1",
        ];
        for host in hosts {
            assert_eq!(of(Method::GET, &[("host", host)]), Some(Suspicion::OtherHost), "{host}");
        }
        assert_eq!(of(Method::GET, &[]), Some(Suspicion::OtherHost));
        let uri = Uri::from_static("http://evil.example/run");
        let headers = HeaderMap::from_iter([(HOST, "localhost".parse().unwrap())]);
        assert_eq!(suspicion(&Method::GET, &uri, &headers), Some(Suspicion::OtherHost));
    }

    #[test]
    fn pages_of_others_may_not_ask() {
        for origin in
            ["https://evil.example", "null", "http://localhost:3000", "http://localhost", "https://localhost:8000"]
        {
            let headers = [("host", "localhost:8000"), ("origin", origin)];
            assert_eq!(of(Method::POST, &headers), Some(Suspicion::OtherSite), "{origin}");
        }
        for site in ["cross-site", "same-site"] {
            let headers = [("host", "localhost:8000"), ("sec-fetch-site", site)];
            assert_eq!(of(Method::GET, &headers), Some(Suspicion::OtherSite));
        }
    }

    #[test]
    fn a_form_is_no_request() {
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"] {
            let headers = [("host", "localhost"), ("content-type", kind), ("content-length", "9")];
            assert_eq!(of(Method::POST, &headers), Some(Suspicion::NoJson), "{kind}");
            let chunked = [("host", "localhost"), ("content-type", kind), ("transfer-encoding", "chunked")];
            assert_eq!(of(Method::POST, &chunked), Some(Suspicion::NoJson), "{kind}");
        }
    }
}
