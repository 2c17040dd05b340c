//! An object of an S3 store. Requests are signed in their headers, because some stores (RunPod's network volumes) do not
//! know signed links.

use std::{borrow::Cow, sync::Arc, time::SystemTime};

use aws_sdk_s3::{
    error::{ProvideErrorMetadata, SdkError},
    operation::get_object::GetObjectError,
    primitives::DateTimeFormat,
};
use tokio::sync::OnceCell;
use url::Url;

use super::{
    chain::{Chain, Obstacle},
    error::{Failure, FetchError, Trouble, TroubleKind},
    fetching::Fetching,
    link::is_gzip,
    opened::{Flow, Opened, Rest, check_range, validator},
    partial::{Content, Validator},
    refusal::{Said, meaning},
    s3_client::{Addressing, Checksums, Line, S3Client},
    source,
};
use crate::redacted::Redacted;

/// Where an S3 store is and how it is opened.
#[derive(Debug, Clone)]
pub struct S3Settings {
    /// Its address; nothing for Amazon's own.
    pub endpoint: Option<Url>,
    /// Its region; without one, that of the key's chain.
    pub region: Option<String>,
    /// What opens it.
    pub key: StoreKey,
    /// Whether the operator chose it: then its address may be a private one.
    pub trusted: bool,
}

/// What opens a store.
#[derive(Debug, Clone)]
pub enum StoreKey {
    /// A key of the settings.
    Given {
        /// Who asks.
        id: Redacted<String>,
        /// What signs.
        secret: Redacted<String>,
        /// For keys that are lent for a time.
        session_token: Option<Redacted<String>>,
    },
    /// What is found in AWS's usual places, when it is needed.
    Chain(Chain),
}

// === impl StoreKey ===

impl StoreKey {
    /// A key that is not lent.
    pub fn given(id: &str, secret: &str) -> Self {
        let hidden = |text: &str| Redacted::hidden(text.to_owned());
        Self::Given { id: hidden(id), secret: hidden(secret), session_token: None }
    }

    /// The first of these pairs of variables of which any half is set; then both must be.
    pub(super) fn read(
        value: &dyn Fn(&str) -> Option<String>,
        pairs: &[(&'static str, &'static str)],
    ) -> Result<Option<Self>, String> {
        let names = pairs.iter().find(|(id, secret)| value(id).or(value(secret)).is_some());
        let Some(&names) = names else { return Ok(None) };
        let half = |name: &str, other: &str| {
            value(name).map(Redacted::hidden).ok_or(format!("{name} is not set, but {other} is"))
        };
        // The token belongs to that pair alone.
        let session_token = value("AWS_SESSION_TOKEN").filter(|_| names == AWS_KEYS).map(Redacted::hidden);
        Ok(Some(Self::Given { id: half(names.0, names.1)?, secret: half(names.1, names.0)?, session_token }))
    }

    /// When it ends, if that is known.
    pub(super) fn ends(&self) -> Option<SystemTime> {
        match self {
            Self::Given { .. } => None,
            Self::Chain(chain) => chain.ends(),
        }
    }

    /// Sees to it that links that are made now live as long as they can.
    pub(super) async fn renew(&self, line: &Line) -> Result<(), Obstacle> {
        match self {
            Self::Given { .. } => Ok(()),
            Self::Chain(chain) => chain.renew(line).await,
        }
    }
}

/// The region of stores that have none.
pub(super) const NO_REGION: &str = "us-east-1";
const ENDPOINT: [&str; 4] = ["S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "BUCKET_ENDPOINT_URL"];
const REGION: [&str; 3] = ["S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"];
/// Pairs of variables that hold the two halves of a key.
const KEYS: [(&str, &str); 3] =
    [AWS_KEYS, ("BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY"), ("S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY")];
/// AWS's own pair.
pub(super) const AWS_KEYS: (&str, &str) = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY");

// === impl S3Settings ===

impl S3Settings {
    /// The settings of the environment. The only place where these variables are read. Where it has no key, one is looked
    /// for when the store is used.
    pub fn from_environment() -> Result<Self, String> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let value = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let key = StoreKey::read(&value, &KEYS)?.unwrap_or_else(|| StoreKey::Chain(Chain::default()));
        let endpoint = match ENDPOINT.iter().find_map(|name| Some((name, value(name)?))) {
            Some((name, text)) => Some(source::link(&text).map_err(|error| format!("{name} {error}"))?),
            None => None,
        };
        let region = REGION.iter().find_map(|name| value(name));
        if let (None, None, StoreKey::Given { .. }) = (&region, &endpoint, &key) {
            return Err("AWS_REGION is not set; set it to the region of the bucket".into());
        }
        Ok(Self { endpoint, region, key, trusted: true })
    }

    /// Whether the operator has named it. What is only found on the machine is not meant for jobs of strangers, who could name
    /// whatever the machine's role opens.
    pub(crate) fn is_named(&self) -> bool {
        self.endpoint.is_some() || matches!(self.key, StoreKey::Given { .. })
    }

    /// Its region; the chain's, where none is set.
    pub(super) async fn region(&self, line: &Line) -> Result<Cow<'_, str>, Obstacle> {
        if let Some(region) = &self.region {
            return Ok(region.into());
        }
        // Where this machine is says nothing about another store than Amazon's.
        let amazons = self.endpoint.is_none();
        let found = match &self.key {
            StoreKey::Given { .. } => None,
            StoreKey::Chain(chain) => chain.region(amazons, line).await?,
        };
        match found {
            Some(region) => Ok(region.into()),
            None if amazons => Err(Obstacle::Missing(
                "S3_REGION is not set, and neither a profile nor the machine's metadata says a region; set it to the \
                 region of the bucket"
                    .into(),
            )),
            None => Ok(NO_REGION.into()),
        }
    }
}

/// An object of a store.
pub(super) struct Object {
    fetching: Arc<Fetching>,
    settings: S3Settings,
    client: OnceCell<S3Client>,
    bucket: String,
    key: String,
    place: String,
}

// === impl Object ===

impl Object {
    pub(super) fn new(fetching: Arc<Fetching>, settings: &S3Settings, bucket: &str, key: &str, place: &str) -> Self {
        Self {
            fetching,
            settings: settings.clone(),
            client: OnceCell::new(),
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            place: place.to_owned(),
        }
    }

    async fn client(&self) -> Result<&S3Client, Failure> {
        // Names of buckets as names of hosts are Amazon's custom; paths work everywhere else.
        let addressing = if self.settings.endpoint.is_some() { Addressing::Path } else { Addressing::Host };
        let line = &self.fetching.line;
        let make = || async {
            let region = Box::pin(self.settings.region(line)).await.map_err(|obstacle| self.kept_from(obstacle))?;
            Ok(S3Client::new(&self.settings, &region, addressing, Checksums::Sdk, line.clone()))
        };
        self.client.get_or_try_init(make).await
    }

    /// Asks for the object, or the rest of it.
    pub(super) async fn open(&self, rest: Option<&Rest>, total: Option<u64>) -> Result<Opened, Failure> {
        let client = self.client().await?;
        let mut request = client.sdk.get_object().bucket(&self.bucket).key(&self.key);
        // A date has no `If-Range` here; stores always give a tag.
        let rest = rest.filter(|rest| matches!(rest.validator, Validator::ETag(_)));
        if let Some(rest) = rest {
            request = request.range(format!("bytes={}-", rest.from)).if_match(rest.validator.value());
        }
        let answer = request.send().await.map_err(|error| self.refused(client, &error))?;
        let modified = answer.last_modified().and_then(|date| date.fmt(DateTimeFormat::HttpDate).ok());
        let length = answer.content_length().and_then(|length| u64::try_from(length).ok());
        let mut content = Content {
            validator: validator(answer.e_tag(), modified.as_deref()),
            total: length,
            gzip: is_gzip(answer.content_encoding(), &self.place)?,
        };
        let start = match (rest, answer.content_range()) {
            (Some(rest), Some(range)) => {
                let length = check_range(range, rest, length, total)?;
                content.total = Some(rest.from + length);
                rest.from
            }
            _ => 0,
        };
        Ok(Opened { start, length, content, flow: Flow::S3(answer.body) })
    }

    fn kept_from(&self, obstacle: Obstacle) -> Failure {
        match obstacle {
            Obstacle::Missing(why) => FetchError::Configuration { place: self.place.clone(), why }.into(),
            Obstacle::Net(error) => self.fetching.failure(error, &self.place),
        }
    }

    fn refused(&self, client: &S3Client, error: &SdkError<GetObjectError>) -> Failure {
        if let Some(obstacle) = client.take_failure() {
            return self.kept_from(obstacle);
        }
        let Some(status) = error.raw_response().map(|answer| answer.status().as_u16()) else {
            return Trouble::new(TroubleKind::BrokenAnswer, "the request could not be made").into();
        };
        match status {
            200..=299 => return Trouble::broken_anew("the store's answer cannot be read").into(),
            412 | 416 => return Trouble::broken_anew("it does not have the rest of the object").into(),
            _ => {}
        }
        let said = Said::of(error.code(), error.message());
        let advice = match (status, error.code().unwrap_or_default()) {
            (404, _) | (_, "NoSuchKey" | "NoSuchBucket") => "there is no such object; check the bucket and the key",
            (301 | 307, _) | (_, "PermanentRedirect" | "AuthorizationHeaderMalformed") => {
                "the bucket is in another region; the operator sets it with AWS_REGION"
            }
            (_, "RequestTimeTooSkewed") => "this machine's clock is wrong; set it",
            (_, "ExpiredToken") => "the operator's key for the store has expired; it needs a new one",
            (401 | 403, _) | (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch") => {
                "the operator's key for the store does not open it; check AWS_ACCESS_KEY_ID and its permissions"
            }
            _ => return meaning(status, &said, &self.place, ""),
        };
        FetchError::WrongLink { place: self.place.clone(), said: format!("HTTP {status}: {advice}") }.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<S3Settings, String> {
        S3Settings::from_variables(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_is_read_in_its_known_spellings() {
        let chain = settings(&[("AWS_REGION", "eu-west-1"), ("AWS_SESSION_TOKEN", "of no key")]).unwrap();
        assert!(matches!((&chain.key, chain.region.as_deref()), (StoreKey::Chain(_), Some("eu-west-1"))));
        assert!(settings(&[]).unwrap().region.is_none());
        let aws = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "S3CR3T"), ("AWS_SESSION_TOKEN", "S3CR3T")];
        let amazon = settings(&[&aws[..], &[("AWS_DEFAULT_REGION", "eu-west-1")]].concat()).unwrap();
        assert_eq!((amazon.region.as_deref(), &amazon.endpoint), (Some("eu-west-1"), &None));
        assert!(matches!(&amazon.key, StoreKey::Given { session_token: Some(_), .. }));
        assert!(!format!("{amazon:?}").contains("S3CR3T"));
        let runpod = [
            ("BUCKET_ACCESS_KEY_ID", "id"),
            ("BUCKET_SECRET_ACCESS_KEY", "key"),
            ("BUCKET_ENDPOINT_URL", "https://s3api-eu-ro-1.runpod.io/"),
            ("AWS_SESSION_TOKEN", "of another key"),
        ];
        let runpod = settings(&runpod).unwrap();
        let StoreKey::Given { id, session_token: None, .. } = &runpod.key else { panic!("{:?}", runpod.key) };
        assert_eq!((&runpod.region, id.expose().as_str()), (&None, "id"));
    }

    #[test]
    fn what_a_machine_merely_has_is_named_by_nobody() {
        assert!(!settings(&[]).unwrap().is_named());
        assert!(!settings(&[("AWS_REGION", "eu-west-1")]).unwrap().is_named());
        assert!(settings(&[("S3_ENDPOINT", "https://h")]).unwrap().is_named());
        let key = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "key"), ("AWS_REGION", "r")];
        assert!(settings(&key).unwrap().is_named());
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let error = |variables: &[(&str, &str)]| settings(variables).unwrap_err();
        assert_eq!(error(&[("AWS_ACCESS_KEY_ID", "id")]), "AWS_SECRET_ACCESS_KEY is not set, but AWS_ACCESS_KEY_ID is");
        let key = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "S3CR3T")];
        assert!(error(&key).starts_with("AWS_REGION is not set"));
        let endpoint = [&key[..], &[("S3_ENDPOINT", "https://u:S3CR3T@h")]].concat();
        assert_eq!(error(&endpoint), "S3_ENDPOINT has a name or password before its host; use a signed link instead");
    }
}
