//! The operator's Supabase project, where one is set up: a row for each job, and the archive of its adapter.

mod archive;
mod row;

use std::sync::Arc;

use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use url::{Host, Url};

pub(super) use row::Row;

use super::request::Line;
use crate::{redacted::Redacted, storage::web_address};

const ADDRESS: &str = "SUPABASE_URL";
/// The first that is set counts.
const KEYS: [&str; 2] = ["SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SERVICE_KEY"];
const API_KEY: HeaderName = HeaderName::from_static("apikey");

/// A project and the key that opens it.
#[derive(Clone)]
pub(super) struct Supabase {
    pub(super) line: Arc<Line>,
    base: Url,
    key: Redacted<String>,
}

// === impl Supabase ===

impl Supabase {
    /// Nothing where none is set up. `plain_http`: the operator allows addresses that are not encrypted.
    pub(super) fn from_variables(
        value: &dyn Fn(&str) -> Option<String>,
        plain_http: bool,
        line: &Arc<Line>,
    ) -> Result<Option<Self>, String> {
        let key = KEYS.iter().find_map(|name| Some((*name, value(name)?)));
        let (address, (name, key)) = match (value(ADDRESS), key) {
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(format!("{ADDRESS} is set, but {} is not", KEYS[0])),
            (None, Some((name, _))) => return Err(format!("{name} is set, but {ADDRESS} is not")),
            (Some(address), Some(key)) => (address, key),
        };
        let mut base = web_address(&address).map_err(|error| format!("{ADDRESS} {error}"))?;
        if base.scheme() == "http" && !plain_http && !is_this_machine(&base) {
            return Err(format!("{ADDRESS} is not encrypted, and the key would go along; use its https:// address"));
        }
        base.set_query(None);
        if HeaderValue::from_str(&key).is_err() {
            return Err(format!("{name} holds characters that no key has; copy it again"));
        }
        Ok(Some(Self { line: line.clone(), base, key: Redacted::hidden(key) }))
    }

    /// The address of something in it.
    fn address(&self, parts: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    /// What every request carries.
    fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let secret = |text: &str| {
            let mut value = HeaderValue::from_str(text).ok()?;
            value.set_sensitive(true);
            Some(value)
        };
        let key = self.key.expose();
        let all = [(API_KEY, secret(key)), (AUTHORIZATION, secret(&format!("Bearer {key}")))];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{net::Network, telling::limits::TellingLimits};

    fn read(variables: &[(&str, &str)], plain_http: bool) -> Result<Option<Supabase>, String> {
        let line = Arc::new(Line::new(Network::default(), &TellingLimits::default()).unwrap());
        let value =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Supabase::from_variables(&value, plain_http, &line)
    }

    const URL: (&str, &str) = ("SUPABASE_URL", "https://ref.supabase.co/");
    const KEY: (&str, &str) = ("SUPABASE_SERVICE_ROLE_KEY", "S3CR3T");

    #[test]
    fn it_is_off_unless_both_are_set() {
        assert!(read(&[], false).unwrap().is_none());
        for key in [KEY, ("SUPABASE_SERVICE_KEY", "S3CR3T")] {
            let project = read(&[URL, key], false).unwrap().unwrap();
            assert_eq!(project.address(&["rest", "v1", "a b"]).as_str(), "https://ref.supabase.co/rest/v1/a%20b");
            assert_eq!(project.headers()[1].1, "Bearer S3CR3T");
            assert!(!format!("{:?} {:?}", project.headers(), project.key).contains("S3CR3T"));
        }
        let one = read(&[URL, ("SUPABASE_SERVICE_KEY", "other"), KEY], false).unwrap().unwrap();
        assert_eq!(one.key.expose(), "S3CR3T");
    }

    #[test]
    fn what_is_missing_or_wrong_is_said_without_the_key() {
        let error = |variables: &[(&str, &str)]| {
            let error = read(variables, false).err().unwrap();
            assert!(!error.contains("S3CR3T"), "{error}");
            error
        };
        assert_eq!(error(&[URL]), "SUPABASE_URL is set, but SUPABASE_SERVICE_ROLE_KEY is not");
        assert_eq!(error(&[KEY]), "SUPABASE_SERVICE_ROLE_KEY is set, but SUPABASE_URL is not");
        assert!(error(&[("SUPABASE_URL", "ref.supabase.co"), KEY]).starts_with("SUPABASE_URL is not a valid URL"));
        assert!(error(&[("SUPABASE_URL", "https://u:S3CR3T@h"), KEY]).contains("password"));
        assert!(error(&[("SUPABASE_URL", "http://ref.supabase.co"), KEY]).contains("not encrypted"));
        assert!(error(&[URL, ("SUPABASE_SERVICE_ROLE_KEY", "S3CR3T\nx")]).contains("copy it again"));
        for local in ["http://127.0.0.1:54321", "http://localhost:54321", "http://[::1]:1"] {
            assert!(read(&[("SUPABASE_URL", local), KEY], false).unwrap().is_some(), "{local}");
        }
        assert!(read(&[("SUPABASE_URL", "http://kong:8000"), KEY], true).unwrap().is_some());
    }
}
