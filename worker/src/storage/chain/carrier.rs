//! Carries the requests of AWS's chain over this worker's own connections. Each has its own patience, because many a place
//! is not there at all, and remembers what was answered, because of the chain's own words too much could be repeated.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_sdk_s3::{
    config::{RuntimeComponents, http::HttpRequest},
    error::ConnectorError,
    primitives::SdkBody,
};
use aws_smithy_runtime_api::{
    client::http::{HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
    http::Response,
};
use hyper::http::response::Parts;
use tokio_rustls::rustls::ClientConfig;
use tokio_util::sync::CancellationToken;

use crate::{
    net::{Dialer, NetError, Network, Patience, TroubleKind},
    storage::{
        refusal::{Said, is_temporary},
        s3_client::{Line, for_our_connections, odd},
    },
};

/// Resolving, connecting, TLS: each, unless the chain is less patient, as it is with a machine's metadata.
const CONNECT: Duration = Duration::from_secs(3);
/// An answer.
const ANSWER: Duration = Duration::from_secs(5);
/// More than any answer with a key has.
const MAX_BYTES: usize = 64 << 10;

/// Carries the chain's requests. Its copies remember together.
#[derive(Clone)]
pub(super) struct Carrier {
    network: Network,
    tls: Arc<ClientConfig>,
    connect: Duration,
    answer: Duration,
    heard: Arc<Mutex<Option<Heard>>>,
}

/// What became of a request that was not answered with what was asked for.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    /// In our words.
    pub(super) why: String,
    /// Whether trying again may help.
    pub(super) temporary: bool,
}

// === impl Carrier ===

impl Carrier {
    /// To whichever server the operator's settings name, with the trust of this line.
    pub(super) fn beside(line: &Line) -> Self {
        let (network, tls) = (line.dialer.network.clone(), line.dialer.tls.clone());
        Self { network, tls, connect: CONNECT, answer: ANSWER, heard: Arc::default() }
    }

    /// What became of the last request, if it went wrong, since the last time.
    pub(super) fn take_heard(&self) -> Option<Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn carry(&self, request: HttpRequest) -> Result<Response<SdkBody>, NetError> {
        let (url, request) = for_our_connections(request)?;
        let patience = Patience::new(CancellationToken::new(), 3 * self.connect + 2 * self.answer);
        let (network, tls) = (self.network.clone(), self.tls.clone());
        let dialer = Dialer { network, tls, connect: self.connect, headers: self.answer };
        let (head, mut body) = dialer.exchange(&url, request, true, &patience).await?;
        let bytes = patience.within(self.answer, "the answer", body.begin(MAX_BYTES)).await?;
        self.hear(refusal(&head, &bytes));
        Response::try_from(hyper::Response::from_parts(head, SdkBody::from(bytes))).map_err(|_| odd())
    }

    fn hear(&self, heard: Option<Heard>) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = heard;
    }
}

fn refusal(head: &Parts, body: &[u8]) -> Option<Heard> {
    if head.status.is_success() {
        return None;
    }
    let (status, said) = (head.status.as_u16(), Said::read(body));
    let word = said.shown("").map(|code| format!(" ({code})")).unwrap_or_default();
    Some(Heard { why: format!("it answered HTTP {status}{word}"), temporary: is_temporary(status, &said) })
}

impl fmt::Debug for Carrier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Carrier")
    }
}

impl HttpClient for Carrier {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(Self {
            connect: settings.connect_timeout().unwrap_or(CONNECT).min(CONNECT),
            answer: settings.read_timeout().unwrap_or(ANSWER).min(ANSWER),
            ..self.clone()
        })
    }
}

impl HttpConnector for Carrier {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let carrier = self.clone();
        HttpConnectorFuture::new(async move {
            carrier.carry(request).await.map_err(|error| {
                let temporary = matches!(error, NetError::Trouble(_) | NetError::Deadline(_));
                carrier.hear(Some(Heard { why: error.to_string(), temporary }));
                match &error {
                    NetError::Trouble(trouble) if trouble.kind == TroubleKind::TooSlow => {
                        ConnectorError::timeout(error.into())
                    }
                    NetError::Trouble(_) => ConnectorError::io(error.into()),
                    _ => ConnectorError::other(error.into(), None),
                }
            })
        })
    }
}
