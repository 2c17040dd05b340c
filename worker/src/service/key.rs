//! Who may ask: whoever knows the key, and without one whoever is on this machine.

use std::{fmt, net::IpAddr};

use hyper::header::{AUTHORIZATION, HeaderMap};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Where the operator says it.
pub(crate) const VARIABLE: &str = "BRIGHTRUN_API_KEY";
/// Shorter ones can be guessed.
const SHORTEST: usize = 16;
const LONGEST: usize = 1024;

/// A key, as its hash: keys of all lengths are compared in the same time.
#[derive(Clone)]
pub struct Key([u8; 32]);

// === impl Key ===

impl Key {
    /// The key of a text; the error says what is wrong with it, and not what it is.
    pub fn new(text: &str) -> Result<Self, String> {
        let fits = (SHORTEST..=LONGEST).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !fits {
            return Err(format!(
                "{VARIABLE} must have {SHORTEST} to {LONGEST} letters, digits or signs and no spaces; \
                 `openssl rand -hex 32` makes one"
            ));
        }
        Ok(Self(Sha256::digest(text).into()))
    }

    /// What the operator says; an empty text is none.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, String> {
        variable(VARIABLE).filter(|text| !text.is_empty()).map(|text| Self::new(&text)).transpose()
    }

    /// Whether a request has it: `Authorization: Bearer KEY`, or the bare key.
    pub(super) fn is_in(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes()).trim_ascii();
        let bare = match given.split_at_checked(7) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case(b"bearer ") => rest.trim_ascii(),
            _ => given,
        };
        let digest: [u8; 32] = Sha256::digest(bare).into();
        digest.ct_eq(&self.0).into()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Key")
    }
}

/// Whether this server may listen there; the error says what is missing.
pub fn may_listen(addresses: &[IpAddr], key: Option<&Key>) -> Result<(), String> {
    match addresses.iter().find(|address| !address.to_canonical().is_loopback()) {
        Some(address) if key.is_none() => Err(format!(
            "{address} can be reached from other machines, and there is no key: set {VARIABLE}, or listen on 127.0.0.1"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const TEXT: &str = "0123456789abcdef";

    fn opens(value: &str) -> bool {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())]);
        Key::new(TEXT).unwrap().is_in(&headers)
    }

    #[test]
    fn both_spellings_open_and_nothing_else() {
        for good in [TEXT.to_owned(), format!("Bearer {TEXT}"), format!("bearer  {TEXT}"), format!(" {TEXT} ")] {
            assert!(opens(&good), "{good}");
        }
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "0123456789abcdeF",
            "0123456789abcde",
            &format!("Basic {TEXT}"),
            &format!("{TEXT}0"),
        ] {
            assert!(!opens(bad), "{bad}");
        }
        assert!(!Key::new(TEXT).unwrap().is_in(&HeaderMap::new()));
    }

    #[test]
    fn keys_that_can_be_guessed_are_refused_and_none_is_shown() {
        for bad in ["short", "with a space in it all", &"x".repeat(LONGEST + 1), "ключключключключ"] {
            let error = Key::new(bad).unwrap_err();
            assert!(error.contains("BRIGHTRUN_API_KEY") && !error.contains(bad), "{error}");
        }
        assert_eq!(format!("{:?}", Key::new(TEXT).unwrap()), "Key");
        assert!(Key::from_variables(|_| Some(String::new())).unwrap().is_none());
        assert!(Key::from_variables(|_| Some("short".into())).is_err());
    }

    #[test]
    fn only_with_a_key_it_may_be_reached_from_elsewhere() {
        let key = Key::new(TEXT).unwrap();
        let of = |text: &str| text.parse::<IpAddr>().unwrap();
        for outside in ["0.0.0.0", "::", "192.168.1.5", "::ffff:10.0.0.1"] {
            assert!(may_listen(&[of("127.0.0.1"), of(outside)], None).unwrap_err().contains("BRIGHTRUN_API_KEY"));
            assert!(may_listen(&[of(outside)], Some(&key)).is_ok());
        }
        assert!(may_listen(&[of("127.0.0.1"), of("127.1.2.3"), of("::1"), of("::ffff:127.0.0.1")], None).is_ok());
    }
}
