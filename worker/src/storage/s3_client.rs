//! The S3 SDK on this worker's own connections: it signs requests and reads answers, and [`Line`] carries them. Time
//! limits and repetition are the caller's, so the SDK's are off.

use std::{
    error::Error,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, Credentials, IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation,
        RuntimeComponents, StalledStreamProtectionConfig, http::HttpRequest, retry::RetryConfig,
        timeout::TimeoutConfig,
    },
    error::ConnectorError,
    primitives::SdkBody,
};
use aws_smithy_runtime_api::{
    client::http::{HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
    http::Response,
};
use hyper::{
    Request,
    body::{Body as HttpBody, Bytes},
    http::response::Parts,
};
use url::Url;

use super::{
    chain::{Asked, Obstacle},
    refusal::MAX_REFUSAL_BYTES,
    s3::{S3Settings, StoreKey},
};
use crate::net::{Body, Dialer, NetError, Patience, Trouble, TroubleKind};

/// Makes connections, as long as the caller is patient.
pub(super) struct Line {
    pub(super) dialer: Dialer,
    pub(super) patience: Patience,
}

// === impl Line ===

impl Line {
    /// Sends a request to the host of `url` and waits for the head of the answer. `trusted`: the operator chose the host.
    pub(super) async fn exchange<B>(
        &self,
        url: &Url,
        request: Request<B>,
        trusted: bool,
    ) -> Result<(Parts, Body), NetError>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        self.dialer.exchange(url, request, trusted, &self.patience).await
    }
}

/// Where the name of a bucket stands in an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Addressing {
    /// As the first part of the path.
    Path,
    /// As the first part of the host's name.
    Host,
}

/// Who computes and compares checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksums {
    /// The SDK, where the store gives them.
    Sdk,
    /// The caller. What the SDK adds by itself, trailers and signed headers, not all stores and no plain GET understand.
    Caller,
}

/// The SDK's client, and what went wrong below it.
pub(super) struct S3Client {
    pub(super) sdk: Client,
    /// Here, because only the SDK's own words would remain of it.
    failure: Arc<Mutex<Option<Obstacle>>>,
}

// === impl S3Client ===

impl S3Client {
    /// `region`: see [`S3Settings::region`].
    pub(super) fn new(
        settings: &S3Settings,
        region: &str,
        addressing: Addressing,
        checksums: Checksums,
        line: Arc<Line>,
    ) -> Self {
        let failure = Arc::new(Mutex::new(None));
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region.to_owned()))
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .force_path_style(addressing == Addressing::Path)
            .http_client(Carrier { line: line.clone(), trusted: settings.trusted, failure: failure.clone() });
        config =
            match &settings.key {
                StoreKey::Given { id, secret, session_token } => {
                    let token = session_token.as_ref().map(|token| token.expose().clone());
                    config.credentials_provider(Credentials::new(id.expose(), secret.expose(), token, None, "operator"))
                }
                // The chain itself keeps what it found, for all clients.
                StoreKey::Chain(chain) => config
                    .identity_cache(IdentityCache::no_cache())
                    .credentials_provider(Asked { chain: chain.clone(), line, obstacle: failure.clone() }),
            };
        if checksums == Checksums::Caller {
            config = config
                .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
                .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        }
        if let Some(endpoint) = &settings.endpoint {
            // Without a slash at the end the SDK would glue the bucket to the last part of the endpoint's path.
            config = config.endpoint_url(format!("{}/", endpoint.as_str().trim_end_matches('/')));
        }
        Self { sdk: Client::from_conf(config.build()), failure }
    }

    /// What went wrong below the SDK since the last time.
    pub(super) fn take_failure(&self) -> Option<Obstacle> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Carries the SDK's requests.
#[derive(Clone)]
struct Carrier {
    line: Arc<Line>,
    trusted: bool,
    failure: Arc<Mutex<Option<Obstacle>>>,
}

impl fmt::Debug for Carrier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Carrier")
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
                *carrier.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.into());
                ConnectorError::other("the request failed".into(), None)
            })
        })
    }
}

impl Carrier {
    async fn carry(&self, request: HttpRequest) -> Result<Response<SdkBody>, NetError> {
        let (url, request) = for_our_connections(request)?;
        let (head, body) = self.line.exchange(&url, request, self.trusted).await?;
        let status = head.status;
        let body = if status.is_success() {
            SdkBody::from_body_1_x(body)
        } else {
            // The SDK reads an error whole.
            SdkBody::from_body_1_x(body.limited(MAX_REFUSAL_BYTES))
        };
        Response::try_from(hyper::Response::from_parts(head, body)).map_err(|_| odd())
    }
}

/// A request of the SDK's as our connections take it, and where it goes.
pub(super) fn for_our_connections(request: HttpRequest) -> Result<(Url, Request<SdkBody>), NetError> {
    let url = Url::parse(request.uri()).map_err(|_| odd())?;
    let mut request = request.try_into_http1x().map_err(|_| odd())?;
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
    *request.uri_mut() = target.parse().map_err(|_| odd())?;
    Ok((url, request))
}

/// What HTTP does not allow.
pub(super) fn odd() -> NetError {
    Trouble::new(TroubleKind::BrokenAnswer, "the request could not be made").into()
}
