//! Where results go: a bucket of an S3 store, or the disk of this machine. Read once, at the start.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::{endpoint::Endpoint, names};
use crate::storage::{Chain, S3Settings, StoreKey, s3::AWS_KEYS, s3_client::Addressing, source};

/// Lifetime of links unless the operator says otherwise.
pub const LINK_LIFETIME: Duration = Duration::from_secs(24 * HOUR);
/// Shortest lifetime of links.
pub const SHORTEST_LINK_LIFETIME: Duration = Duration::from_secs(HOUR);
/// Longest lifetime of links: seven days, by the rules of signature version 4.
pub const LONGEST_LINK_LIFETIME: Duration = Duration::from_secs(7 * 24 * HOUR);
const HOUR: u64 = 3600;

const BUCKET: [&str; 3] = ["BUCKET_NAME", "S3_BUCKET", "S3_BUCKET_NAME"];
/// The endpoint that is only for results; it alone shows that results shall go to a bucket.
const RESULT_ENDPOINT: &str = "BUCKET_ENDPOINT_URL";
const ENDPOINT: [&str; 4] = [RESULT_ENDPOINT, "S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
const OWN_REGION: [&str; 2] = ["BUCKET_REGION", "S3_REGION"];
const AWS_REGION: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];
const PREFIX: [&str; 2] = ["BUCKET_PREFIX", "S3_PREFIX"];
const PATH_STYLE: &str = "S3_FORCE_PATH_STYLE";
const LINK_HOURS: &str = "S3_LINK_HOURS";
/// Pairs of variables that hold the two halves of a key.
const KEYS: [(&str, &str); 3] =
    [("BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY"), ("S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"), AWS_KEYS];
/// The fields of a job's `s3Config`, and the operator's variables that mean the same.
const JOBS: [(&str, &str); 6] = [
    ("endpointUrl", RESULT_ENDPOINT),
    ("bucketName", BUCKET[0]),
    ("accessSecret", KEYS[0].1),
    ("accessId", KEYS[0].0),
    ("objectPath", PREFIX[0]),
    ("region", OWN_REGION[1]),
];
const NO_KEY: &str =
    "there is a bucket for results but no key for it; set BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY";
/// Longest name of a bucket: the oldest ones of Amazon.
const MAX_BUCKET_BYTES: usize = 255;

/// Where results go.
#[derive(Debug, Clone)]
pub enum Store {
    /// They stay where they are, and their addresses are `file://` ones.
    Local,
    /// Into a bucket.
    Bucket(Box<BucketSettings>),
}

/// A bucket, how it is opened, and what is made of it.
#[derive(Debug, Clone)]
pub struct BucketSettings {
    /// The store and the key that opens it.
    pub s3: S3Settings,
    /// The bucket's name.
    pub bucket: String,
    /// What all keys begin with, without slashes at its ends; may be empty.
    pub prefix: String,
    /// Whether the bucket stands in the path of an address and not in the host's name.
    pub path_style: bool,
    /// How long the links live.
    pub link_lifetime: Duration,
}

type Variable<'a> = dyn Fn(&str) -> Option<String> + 'a;

// === impl Store ===

impl Store {
    /// Reads the settings. Without the name of a bucket and without `BUCKET_ENDPOINT_URL` results stay on this machine;
    /// without a key one is looked for in AWS's usual places, when the bucket is used.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let value = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        if first(&value, &BUCKET).or_else(|| first(&value, &[RESULT_ENDPOINT])).is_none() {
            return Ok(Self::Local);
        }
        let chain = || Ok(StoreKey::Chain(Chain::default()));
        BucketSettings::read(&value, chain).map(|settings| Self::Bucket(Box::new(settings)))
    }

    /// The store that a job brings along: RunPod's `s3Config`, an object with `endpointUrl`, `bucketName`, `accessId`,
    /// `accessSecret` and, if need be, `objectPath` and `region`. A stranger chose it, so its address must be a public one,
    /// and no key of this machine's opens it.
    pub fn of_job(config: &Value, plain_http: bool) -> Result<Self, String> {
        let named = |name: &str| JOBS.iter().find(|(_, variable)| *variable == name).map(|(field, _)| *field);
        let value = |name: &str| {
            let text = config.get(named(name)?)?.as_str()?.trim();
            (!text.is_empty()).then(|| text.to_owned())
        };
        let in_words_of_job = |error: String| {
            JOBS.iter().fold(error, |error, (field, variable)| error.replace(variable, &format!("s3Config.{field}")))
        };
        let mut settings = BucketSettings::read(&value, || Err(NO_KEY.to_owned())).map_err(in_words_of_job)?;
        let encrypted = settings.s3.endpoint.as_ref().is_none_or(|endpoint| endpoint.scheme() == "https");
        if !encrypted && !plain_http {
            return Err("s3Config.endpointUrl is not encrypted; use https://".into());
        }
        settings.s3.trusted = false;
        Ok(Self::Bucket(Box::new(settings)))
    }

    /// What the operator should know at the start, if anything.
    pub fn warning(&self) -> Option<String> {
        match self {
            Self::Local => Some(
                "no bucket is set up (BUCKET_NAME, BUCKET_ENDPOINT_URL): results stay on the disk of this machine and \
                 their addresses are file:// ones, which nobody else can open"
                    .into(),
            ),
            Self::Bucket(settings) => match &settings.s3.key {
                StoreKey::Given { session_token: Some(_), .. } => Some(
                    "the key of the bucket is lent for a time (AWS_SESSION_TOKEN): links to results end with it, \
                     however long they are made for"
                        .into(),
                ),
                StoreKey::Given { session_token: None, .. } => None,
                StoreKey::Chain(_) => settings.warning_of(self.key_ends()?),
            },
        }
    }

    /// When the key ends that made the latest links, if that is known.
    pub(super) fn key_ends(&self) -> Option<SystemTime> {
        match self {
            Self::Local => None,
            Self::Bucket(settings) => settings.s3.key.ends(),
        }
    }
}

// === impl BucketSettings ===

impl BucketSettings {
    /// `otherwise`: what opens the bucket where no key is set.
    fn read(value: &Variable<'_>, otherwise: impl FnOnce() -> Result<StoreKey, String>) -> Result<Self, String> {
        let named = first(value, &BUCKET).map(|(_, bucket)| bucket);
        let endpoint = match first(value, &ENDPOINT) {
            Some((name, text)) => {
                let url = source::link(&text).map_err(|error| format!("{name} {error}"))?;
                Some(Endpoint::read(url, named.as_deref()).map_err(|error| format!("{name} {error}"))?)
            }
            None => None,
        };
        let found = endpoint.as_ref().and_then(|endpoint| endpoint.bucket.clone());
        let bucket = named.or(found).ok_or("BUCKET_NAME is not set, and BUCKET_ENDPOINT_URL names no bucket")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if bucket.len() > MAX_BUCKET_BYTES || !bucket.chars().all(plain) || bucket.starts_with('.') {
            return Err("BUCKET_NAME is no name of a bucket: letters, digits, '.', '-' and '_'".into());
        }
        let (name, prefix) = first(value, &PREFIX).unwrap_or_default();
        let prefix = prefix.trim_matches('/').to_owned();
        if !prefix.is_empty() {
            names::check(&prefix).map_err(|error| format!("{name}: {error}"))?;
        }
        let given = StoreKey::read(value, &KEYS)?;
        let region = region(value, endpoint.as_ref(), given.is_none())?;
        let path_style = match value(PATH_STYLE).map(|text| text.to_ascii_lowercase()).as_deref() {
            Some("1" | "true" | "yes" | "on") => true,
            Some("0" | "false" | "no" | "off") => false,
            Some(_) => return Err(format!("{PATH_STYLE} is neither true nor false")),
            None => endpoint.as_ref().is_some_and(|endpoint| endpoint.addressing == Addressing::Path),
        };
        let key = given.map_or_else(otherwise, Ok)?;
        let s3 = S3Settings { endpoint: endpoint.map(|endpoint| endpoint.base), region, key, trusted: true };
        Ok(Self { s3, bucket, prefix, path_style, link_lifetime: link_lifetime(value)? })
    }

    /// The key of a file of a job.
    pub(super) fn key_of(&self, job_id: &str, name: &str) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        format!("{}{slash}{job_id}/{name}", self.prefix)
    }

    /// What users should know where links end before their time, because the key that signed them does.
    pub(super) fn warning_of(&self, end: SystemTime) -> Option<String> {
        let sooner = end < SystemTime::now() + self.link_lifetime;
        sooner.then(|| {
            format!(
                "the key of the bucket was lent to this machine until {}: links to results end then, however long they \
                 are made for",
                httpdate::fmt_http_date(end)
            )
        })
    }
}

/// `found`: whether the key, and with it perhaps the region, is found later.
fn region(value: &Variable<'_>, endpoint: Option<&Endpoint>, found: bool) -> Result<Option<String>, String> {
    let said = endpoint.and_then(|endpoint| endpoint.region.clone());
    let set = |names: &[&str]| first(value, names).map(|(_, region)| region);
    if let Some(region) = set(&OWN_REGION).or(said).or_else(|| set(&AWS_REGION)) {
        return Ok(Some(region));
    }
    match endpoint {
        Some(endpoint) if endpoint.supabase => {
            Err("S3_REGION is not set; Supabase Storage needs the region of the project".into())
        }
        Some(_) => Ok(None),
        None if found => Ok(None),
        None => Err("S3_REGION is not set; set it to the region of the bucket".into()),
    }
}

fn link_lifetime(value: &Variable<'_>) -> Result<Duration, String> {
    let Some(text) = value(LINK_HOURS) else { return Ok(LINK_LIFETIME) };
    let wrong = || format!("{LINK_HOURS} is no number of hours from 1 to 168");
    let hours: u64 = text.parse().map_err(|_| wrong())?;
    let lifetime = Duration::from_secs(hours.checked_mul(HOUR).ok_or_else(wrong)?);
    let allowed = (SHORTEST_LINK_LIFETIME..=LONGEST_LINK_LIFETIME).contains(&lifetime);
    if allowed { Ok(lifetime) } else { Err(wrong()) }
}

/// The first of these variables that is set, with its name.
fn first(value: &Variable<'_>, names: &[&str]) -> Option<(String, String)> {
    names.iter().find_map(|name| Some(((*name).to_owned(), value(name)?)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Store, String> {
        Store::from_variables(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn bucket(variables: &[(&str, &str)]) -> BucketSettings {
        match read(variables).unwrap() {
            Store::Bucket(settings) => *settings,
            Store::Local => panic!("local"),
        }
    }

    const KEY: [(&str, &str); 2] = [("BUCKET_ACCESS_KEY_ID", "id"), ("BUCKET_SECRET_ACCESS_KEY", "S3CR3T")];

    #[test]
    fn without_a_bucket_results_stay_here_and_that_is_said() {
        for variables in [&[][..], &[("AWS_ACCESS_KEY_ID", "id"), ("S3_ENDPOINT", "https://h/b")][..]] {
            let store = read(variables).unwrap();
            assert!(matches!(store, Store::Local) && store.warning().unwrap().contains("file://"));
        }
    }

    #[test]
    fn settings_are_read_in_their_known_spellings() {
        let runpod = bucket(&[&KEY[..], &[("BUCKET_ENDPOINT_URL", "https://b.s3.eu-west-1.amazonaws.com")]].concat());
        assert_eq!(
            (runpod.bucket.as_str(), runpod.path_style, runpod.s3.region.as_deref()),
            ("b", false, Some("eu-west-1"))
        );
        assert_eq!((runpod.link_lifetime, runpod.key_of("j", "a")), (LINK_LIFETIME, "j/a".into()));
        assert!(!format!("{runpod:?}").contains("S3CR3T"));

        let amazon = [
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "key"),
            ("AWS_SESSION_TOKEN", "token"),
            ("AWS_REGION", "eu-west-1"),
            ("S3_BUCKET", "b"),
            ("S3_PREFIX", "/runs/2026/"),
            ("S3_LINK_HOURS", "168"),
        ];
        let amazon = bucket(&amazon);
        assert_eq!((amazon.s3.endpoint.clone(), amazon.path_style), (None, false));
        assert_eq!((amazon.link_lifetime, amazon.key_of("j", "a")), (LONGEST_LINK_LIFETIME, "runs/2026/j/a".into()));
        assert!(Store::Bucket(Box::new(amazon)).warning().unwrap().contains("AWS_SESSION_TOKEN"));

        let supabase = [
            ("S3_ENDPOINT", "https://r.supabase.co/storage/v1/s3"),
            ("S3_REGION", "eu-central-1"),
            ("S3_ACCESS_KEY_ID", "id"),
            ("S3_SECRET_ACCESS_KEY", "key"),
            ("AWS_SESSION_TOKEN", "of another key"),
            ("BUCKET_NAME", "b"),
        ];
        let supabase = bucket(&supabase);
        assert_eq!(supabase.s3.endpoint.as_ref().unwrap().path(), "/storage/v1/s3");
        assert!(supabase.path_style && matches!(supabase.s3.key, StoreKey::Given { session_token: None, .. }));
    }

    #[test]
    fn without_a_key_one_is_looked_for_later() {
        let amazon = bucket(&[("BUCKET_NAME", "b")]);
        assert!(matches!(amazon.s3.key, StoreKey::Chain(_)) && amazon.s3.region.is_none());
        let other = bucket(&[("BUCKET_NAME", "b"), ("S3_ENDPOINT", "https://h"), ("AWS_REGION", "r")]);
        assert!(matches!(other.s3.key, StoreKey::Chain(_)) && other.s3.region.as_deref() == Some("r"));
        let day = other.link_lifetime;
        assert!(Store::Bucket(Box::new(other.clone())).warning().is_none());
        assert!(other.warning_of(SystemTime::now() + day / 2).unwrap().contains(" GMT: links to results end then"));
        assert!(other.warning_of(SystemTime::now() + day * 2).is_none());
    }

    #[test]
    fn a_volume_for_datasets_does_not_hide_a_bucket_for_results() {
        let volume = ("AWS_ENDPOINT_URL", "https://s3api-eu-ro-1.runpod.io");
        let both = [&KEY[..], &[volume, ("BUCKET_ENDPOINT_URL", "https://b.nyc3.digitaloceanspaces.com")]].concat();
        assert_eq!(bucket(&both).bucket, "b");
        assert!(matches!(read(&[&KEY[..], &[volume]].concat()), Ok(Store::Local)));
    }

    #[test]
    fn a_job_may_bring_a_store_along_that_is_not_trusted() {
        let config = json!({
            "accessId": "id", "accessSecret": "S3CR3T", "bucketName": "b", "endpointUrl": "https://h.example",
            "objectPath": "/runs/",
        });
        let Ok(Store::Bucket(store)) = Store::of_job(&config, false) else { panic!("no store") };
        assert_eq!((store.bucket.as_str(), store.key_of("j", "a")), ("b", "runs/j/a".into()));
        assert!(!store.s3.trusted && !format!("{store:?}").contains("S3CR3T"));
        let with = |field: &str, value: Value| {
            let mut config = config.clone();
            config[field] = value;
            Store::of_job(&config, false).unwrap_err()
        };
        assert_eq!(with("accessSecret", Value::Null), "s3Config.accessSecret is not set, but s3Config.accessId is");
        assert!(with("endpointUrl", json!("http://h")).contains("https://"));
        assert!(with("endpointUrl", json!("https://s3api-eu-ro-1.runpod.io")).starts_with("s3Config.endpointUrl is a"));
        assert!(with("objectPath", json!("a/../b")).starts_with("s3Config.objectPath"));
        let mut without = config.clone();
        (without["accessId"], without["accessSecret"]) = (Value::Null, Value::Null);
        let error = Store::of_job(&without, false).unwrap_err();
        assert!(error.contains("no key for it; set s3Config.accessId and s3Config.accessSecret"), "{error}");
        assert!(with("bucketName", json!(7)).starts_with("s3Config.bucketName is not set"));
        let supabase = with("endpointUrl", json!("https://r.supabase.co/storage/v1/s3"));
        assert!(supabase.starts_with("s3Config.region is not set"), "{supabase}");
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let error = |more: &[(&str, &str)]| read(&[&KEY[..], more].concat()).unwrap_err();
        let volume = error(&[("BUCKET_ENDPOINT_URL", "https://s3api-eu-ro-1.runpod.io"), ("BUCKET_NAME", "b")]);
        assert!(volume.starts_with("BUCKET_ENDPOINT_URL is a RunPod network volume"), "{volume}");
        assert!(error(&[("BUCKET_ENDPOINT_URL", "https://h/")]).starts_with("BUCKET_NAME is not set"));
        assert!(error(&[("BUCKET_ENDPOINT_URL", "https://u:S3CR3T@h/b")]).contains("password"));
        assert!(error(&[("BUCKET_NAME", "b")]).starts_with("S3_REGION is not set"));
        let set = |name, value| error(&[("BUCKET_NAME", "b"), ("S3_ENDPOINT", "https://h"), (name, value)]);
        for hours in ["0", "169", "x", "18446744073709551615"] {
            assert!(set("S3_LINK_HOURS", hours).starts_with("S3_LINK_HOURS"), "{hours}");
        }
        assert!(set("S3_PREFIX", "a/../b").starts_with("S3_PREFIX"));
        assert!(set("S3_FORCE_PATH_STYLE", "perhaps").starts_with("S3_FORCE_PATH_STYLE"));
        assert!(error(&[("BUCKET_NAME", "a b"), ("S3_REGION", "r")]).contains("no name of a bucket"));
        let supabase = [("S3_ENDPOINT", "https://r.supabase.co/storage/v1/s3"), ("BUCKET_NAME", "b")];
        assert!(error(&supabase).contains("Supabase"));
        let half = [("BUCKET_NAME", "b"), ("S3_REGION", "r"), ("BUCKET_ACCESS_KEY_ID", "id")];
        assert_eq!(read(&half).unwrap_err(), "BUCKET_SECRET_ACCESS_KEY is not set, but BUCKET_ACCESS_KEY_ID is");
    }
}
