//! Whether a signed link says itself that it is over, so that no request is needed to find out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use serde_json::Value;
use url::Url;

/// Two clocks may differ by so much before a link counts as expired.
pub const LEEWAY: Duration = Duration::from_secs(60);
/// Longest token that is looked into.
const MAX_TOKEN_BYTES: usize = 8192;

/// How long ago the link expired, if it says so. Nothing is verified: a link that lies gets its answer from the server.
pub(super) fn expired_for(url: &Url, now: SystemTime) -> Option<Duration> {
    let now = now.duration_since(UNIX_EPOCH).ok()?;
    let end = end(url)?;
    let ago = now.checked_sub(Duration::from_secs(end))?;
    (ago > LEEWAY).then_some(ago)
}

/// The second since 1970 at which the link ends.
fn end(url: &Url) -> Option<u64> {
    let value = |name: &str| {
        let mut pairs = url.query_pairs();
        pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.into_owned())
    };
    // S3 (SigV4) and Google's twin of it.
    for (date, seconds) in [("X-Amz-Date", "X-Amz-Expires"), ("X-Goog-Date", "X-Goog-Expires")] {
        if let (Some(date), Some(seconds)) = (value(date), value(seconds)) {
            return basic_date(&date)?.checked_add(seconds.parse().ok()?);
        }
    }
    // S3 (SigV2) and CloudFront.
    if let (Some(end), Some(_)) = (value("Expires"), value("Signature")) {
        return end.parse().ok();
    }
    // Azure.
    if let (Some(end), Some(_)) = (value("se"), value("sig")) {
        let end = DateTime::from_str(&end, DateTimeFormat::DateTimeWithOffset).ok()?;
        return u64::try_from(end.secs()).ok();
    }
    // Supabase.
    token_end(&value("token")?)
}

/// The `exp` of a JSON web token.
fn token_end(token: &str) -> Option<u64> {
    let mut parts = token.split('.');
    let payload = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(_), Some(payload), Some(_), None) if token.len() <= MAX_TOKEN_BYTES => payload,
        _ => return None,
    };
    let decoded = base64_simd::URL_SAFE_NO_PAD.decode_to_vec(payload.trim_end_matches('=')).ok()?;
    let claims: Value = serde_json::from_slice(&decoded).ok()?;
    let end = claims.get("exp")?.as_f64()?;
    (end.is_finite() && (0.0..1e15).contains(&end)).then_some(end as u64)
}

/// `20260102T030405Z` as seconds since 1970.
fn basic_date(text: &str) -> Option<u64> {
    let digits = |range: std::ops::Range<usize>| text.get(range).filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
    if text.len() != 16 || text.get(8..9) != Some("T") || text.get(15..) != Some("Z") {
        return None;
    }
    let (date, time) = (digits(0..8)?, digits(9..15)?);
    let (year, month, day) = (&date[..4], &date[4..6], &date[6..]);
    let extended = format!("{year}-{month}-{day}T{}:{}:{}Z", &time[..2], &time[2..4], &time[4..]);
    u64::try_from(DateTime::from_str(&extended, DateTimeFormat::DateTime).ok()?.secs()).ok()
}

/// A time for people, in its largest unit.
pub(super) fn for_people(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-01-02 03:04:05 UTC.
    const THEN: u64 = 1_767_323_045;

    fn expired(query: &str, after: u64) -> Option<u64> {
        let url = Url::parse(&format!("https://h/x?{query}")).unwrap();
        expired_for(&url, UNIX_EPOCH + Duration::from_secs(THEN + after)).map(|ago| ago.as_secs())
    }

    fn token(claims: &str) -> String {
        let part = |text: &str| base64_simd::URL_SAFE_NO_PAD.encode_to_string(text.as_bytes());
        format!("token={}.{}.c2ln", part("{\"alg\":\"HS256\"}"), part(claims))
    }

    #[test]
    fn the_end_of_each_kind_of_link_is_found() {
        let links = [
            "X-Amz-Date=20260102T030405Z&X-Amz-Expires=3600&X-Amz-Signature=0".to_owned(),
            "x-amz-expires=3600&x-amz-date=20260102T030405Z".to_owned(),
            "X-Goog-Date=20260102T030405Z&X-Goog-Expires=3600".to_owned(),
            format!("Expires={}&Signature=x", THEN + 3600),
            "se=2026-01-02T04%3A04%3A05Z&sig=x".to_owned(),
            token(&format!("{{\"url\":\"a\",\"exp\":{}}}", THEN + 3600)),
            token(&format!("{{\"exp\":{}.5}}", THEN + 3600)),
        ];
        for link in links {
            assert_eq!(expired(&link, 3600 + 7200), Some(7200), "{link}");
            assert_eq!(expired(&link, 3600 + 61), Some(61), "{link}");
            assert_eq!(expired(&link, 3600 + 60), None, "{link}");
            assert_eq!(expired(&link, 0), None, "{link}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_left_to_the_server() {
        let far = 1_000_000_000;
        for link in [
            "",
            "token=",
            "token=a.b",
            "token=a.b.c.d",
            "token=a.!!!.c",
            "Expires=1",
            "se=soon&sig=x",
            "X-Amz-Expires=1",
            "X-Amz-Date=20260102T030405Z&X-Amz-Expires=99999999999999999999",
            "X-Amz-Date=20261302T030405Z&X-Amz-Expires=1",
            "X-Amz-Date=2026010ÄT03040Z&X-Amz-Expires=1",
            "Expires=-1&Signature=x",
        ] {
            assert_eq!(expired(link, far), None, "{link}");
        }
        for claims in ["{}", "[]", "{\"exp\":\"1\"}", "{\"exp\":-1}", "{\"exp\":1e300}", "no"] {
            assert_eq!(expired(&token(claims), far), None, "{claims}");
        }
    }

    #[test]
    fn times_are_readable() {
        let texts = [5, 119, 120, 7199, 7200, 172_799, 172_800].map(|s| for_people(Duration::from_secs(s)));
        assert_eq!(texts, ["5 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 days"]);
    }
}
