//! An object of an S3 store: the SDK signs requests and reads answers, and this worker's own connections carry them.
//! Requests are signed in their headers, because some stores (RunPod's network volumes) do not know signed links.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, Credentials, Region, RuntimeComponents, StalledStreamProtectionConfig, http::HttpRequest,
        retry::RetryConfig, timeout::TimeoutConfig,
    },
    error::{ConnectorError, ProvideErrorMetadata, SdkError},
    operation::get_object::GetObjectError,
    primitives::{DateTimeFormat, SdkBody},
};
use aws_smithy_runtime_api::{
    client::http::{HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
    http::Response,
};
use url::Url;

use super::{
    error::{Failure, FetchError, Trouble, TroubleKind},
    fetching::Fetching,
    link::is_gzip,
    opened::{Flow, Opened, Rest, check_range, validator},
    partial::{Content, Validator},
    refusal::{MAX_REFUSAL_BYTES, Said, meaning},
    source,
};
use crate::redacted::Redacted;

/// Where an S3 store is and how it is opened.
#[derive(Debug, Clone)]
pub struct S3Settings {
    /// Its address; nothing for Amazon's own.
    pub endpoint: Option<Url>,
    /// Its region.
    pub region: String,
    /// Who asks.
    pub access_key_id: Redacted<String>,
    /// The key that signs.
    pub secret_access_key: Redacted<String>,
    /// For keys that are lent for a time.
    pub session_token: Option<Redacted<String>>,
}

/// The region of stores that have none.
const NO_REGION: &str = "us-east-1";
const ENDPOINT: [&str; 4] = ["S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "BUCKET_ENDPOINT_URL"];
const REGION: [&str; 3] = ["S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"];
/// Pairs of variables that hold the two halves of a key.
const KEYS: [(&str, &str); 2] =
    [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY")];

// === impl S3Settings ===

impl S3Settings {
    /// The settings of the environment; nothing if it has no key. The only place where these variables are read.
    pub fn from_environment() -> Result<Option<Self>, String> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, String> {
        let value = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let Some((id, secret)) = KEYS.iter().find(|(id, secret)| value(id).or(value(secret)).is_some()) else {
            return Ok(None);
        };
        let half = |name: &str, other: &str| value(name).ok_or(format!("{name} is not set, but {other} is"));
        let (access_key_id, secret_access_key) = (half(id, secret)?, half(secret, id)?);
        let endpoint = match ENDPOINT.iter().find_map(|name| Some((name, value(name)?))) {
            Some((name, text)) => Some(source::link(&text).map_err(|error| format!("{name} {error}"))?),
            None => None,
        };
        let region = match (REGION.iter().find_map(|name| value(name)), &endpoint) {
            (Some(region), _) => region,
            (None, Some(_)) => NO_REGION.to_owned(),
            (None, None) => return Err("AWS_REGION is not set; set it to the region of the bucket".into()),
        };
        Ok(Some(Self {
            endpoint,
            region,
            access_key_id: Redacted::hidden(access_key_id),
            secret_access_key: Redacted::hidden(secret_access_key),
            session_token: value("AWS_SESSION_TOKEN").map(Redacted::hidden),
        }))
    }
}

/// An object of a store.
pub(super) struct Object {
    client: Client,
    bucket: String,
    key: String,
    place: String,
    /// What went wrong below the SDK, where only its own words would remain.
    failure: Arc<Mutex<Option<Failure>>>,
}

// === impl Object ===

impl Object {
    pub(super) fn new(fetching: Arc<Fetching>, settings: &S3Settings, bucket: &str, key: &str, place: &str) -> Self {
        let failure = Arc::new(Mutex::new(None));
        let credentials = Credentials::new(
            settings.access_key_id.expose(),
            settings.secret_access_key.expose(),
            settings.session_token.as_ref().map(|token| token.expose().clone()),
            None,
            "operator",
        );
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(settings.region.clone()))
            .credentials_provider(credentials)
            // Time limits and repetition are ours.
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .http_client(Carrier { fetching, place: place.to_owned(), failure: failure.clone() });
        if let Some(endpoint) = &settings.endpoint {
            // Names of buckets as names of hosts are Amazon's custom; paths work everywhere else.
            config = config.endpoint_url(endpoint.as_str()).force_path_style(true);
        }
        let client = Client::from_conf(config.build());
        Self { client, bucket: bucket.to_owned(), key: key.to_owned(), place: place.to_owned(), failure }
    }

    /// Asks for the object, or the rest of it.
    pub(super) async fn open(&self, rest: Option<&Rest>, total: Option<u64>) -> Result<Opened, Failure> {
        let mut request = self.client.get_object().bucket(&self.bucket).key(&self.key);
        // A date has no `If-Range` here; stores always give a tag.
        let rest = rest.filter(|rest| matches!(rest.validator, Validator::ETag(_)));
        if let Some(rest) = rest {
            request = request.range(format!("bytes={}-", rest.from)).if_match(rest.validator.value());
        }
        let answer = request.send().await.map_err(|error| self.refused(&error))?;
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

    fn refused(&self, error: &SdkError<GetObjectError>) -> Failure {
        let below = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(failure) = below {
            return failure;
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

/// Carries the SDK's requests over this worker's connections.
struct Carrier {
    fetching: Arc<Fetching>,
    place: String,
    failure: Arc<Mutex<Option<Failure>>>,
}

impl fmt::Debug for Carrier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Carrier({})", self.place)
    }
}

impl Clone for Carrier {
    fn clone(&self) -> Self {
        Self { fetching: self.fetching.clone(), place: self.place.clone(), failure: self.failure.clone() }
    }
}

impl HttpClient for Carrier {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Carrier {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let carrier = self.clone();
        HttpConnectorFuture::new(async move {
            carrier.carry(request).await.map_err(|failure| {
                *carrier.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
                ConnectorError::other("the request failed".into(), None)
            })
        })
    }
}

impl Carrier {
    async fn carry(&self, request: HttpRequest) -> Result<Response<SdkBody>, Failure> {
        let odd = |_| Failure::from(Trouble::new(TroubleKind::BrokenAnswer, "the request could not be made"));
        let url = Url::parse(request.uri()).map_err(|_| odd(()))?;
        let mut request = request.try_into_http1x().map_err(|_| odd(()))?;
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
        *request.uri_mut() = target.parse().map_err(|_| odd(()))?;
        let (head, body) = self.fetching.exchange(&url, request, &self.place, true).await?;
        let status = head.status;
        let body = if status.is_success() {
            SdkBody::from_body_1_x(body)
        } else {
            // The SDK reads an error whole.
            SdkBody::from_body_1_x(body.limited(MAX_REFUSAL_BYTES))
        };
        Response::try_from(hyper::Response::from_parts(head, body)).map_err(|_| odd(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Option<S3Settings>, String> {
        S3Settings::from_variables(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_is_read_in_its_known_spellings() {
        assert!(settings(&[("AWS_REGION", "eu-west-1")]).unwrap().is_none());
        let aws = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "S3CR3T"), ("AWS_SESSION_TOKEN", "S3CR3T")];
        let amazon = settings(&[&aws[..], &[("AWS_DEFAULT_REGION", "eu-west-1")]].concat()).unwrap().unwrap();
        assert_eq!((amazon.region.as_str(), &amazon.endpoint), ("eu-west-1", &None));
        assert!(!format!("{amazon:?}").contains("S3CR3T"));
        let runpod = [
            ("BUCKET_ACCESS_KEY_ID", "id"),
            ("BUCKET_SECRET_ACCESS_KEY", "key"),
            ("BUCKET_ENDPOINT_URL", "https://s3api-eu-ro-1.runpod.io/"),
        ];
        let runpod = settings(&runpod).unwrap().unwrap();
        assert_eq!((runpod.region.as_str(), runpod.access_key_id.expose().as_str()), (NO_REGION, "id"));
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
