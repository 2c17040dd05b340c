//! One request, what its answer means, and when it is made again.

use std::{future::Future, time::Duration};

use hyper::{
    Method, Request,
    body::{Body as HttpBody, Bytes},
    header::{HeaderMap, HeaderName, HeaderValue, USER_AGENT},
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::limits::TellingLimits;
use crate::{
    net::{self, Backoff, Body, Dialer, NetError, Network, Patience, Trouble, TroubleKind},
    storage::MAX_REFUSAL_BYTES,
};

/// Patience limits each request; this only must not.
const NO_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// It arrived.
    Yes,
    /// It did not; later it may.
    NotNow(String),
    /// It never will.
    Never(String),
}

/// The head of an answer and the beginning of its body.
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

/// Makes requests.
pub(super) struct Line {
    dialer: Dialer,
}

// === impl Line ===

impl Line {
    pub(super) fn new(network: Network, limits: &TellingLimits) -> Result<Self, String> {
        let tls = net::tls(&network)?;
        Ok(Self { dialer: Dialer { network, tls, connect: limits.connect, headers: NO_LIMIT } })
    }

    /// Sends a request and waits for the whole of its small answer. `trusted`: the operator chose the host.
    pub(super) async fn ask<B>(
        &self,
        url: &Url,
        request: Request<B>,
        trusted: bool,
        most: Duration,
    ) -> Result<Answered, NetError>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (answered, body, patience) = self.open(url, request, trusted, most).await?;
        let mut body = body;
        // The status has said it already; a body that never ends changes nothing.
        let body = patience.within(most, "the answer", body.begin(MAX_REFUSAL_BYTES)).await.unwrap_or_default();
        Ok(Answered { body, ..answered })
    }

    /// The same, and the body is the caller's to read.
    pub(super) async fn open<B>(
        &self,
        url: &Url,
        request: Request<B>,
        trusted: bool,
        most: Duration,
    ) -> Result<(Answered, Body, Patience), NetError>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let patience = Patience::new(CancellationToken::new(), most);
        let (head, body) = self.dialer.exchange(url, request, trusted, &patience).await?;
        Ok((Answered { status: head.status.as_u16(), headers: head.headers, body: Vec::new() }, body, patience))
    }
}

/// A request with these headers. The error would repeat the address.
pub(super) fn request<B>(
    method: Method,
    url: &Url,
    headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
    body: B,
) -> Result<Request<B>, NetError> {
    let request = Request::builder().method(method).uri(net::target(url)).body(body);
    let odd = |_| Trouble::new(TroubleKind::BrokenAnswer, "its address is no HTTP address");
    let mut request = request.map_err(odd)?;
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(net::AGENT));
    request.headers_mut().extend(headers);
    Ok(request)
}

/// What a request without an answer means.
pub(super) fn unheard(error: NetError) -> Heard {
    match error {
        NetError::RefusedAddress { .. } => Heard::Never(error.to_string()),
        // What the certificate says is the server's text.
        NetError::Untrusted(_) => Heard::Never("the server's certificate is not trusted".into()),
        NetError::Cancelled => Heard::Never("it was cancelled".into()),
        NetError::Deadline(_) | NetError::Trouble(_) => Heard::NotNow(error.to_string()),
    }
}

/// Tries until it arrived, or never will, or the time is over. `attempt` is told how long it may take.
pub(super) async fn persist<F: Future<Output = Heard>>(
    limits: &TellingLimits,
    all: Duration,
    each: Duration,
    attempt: impl Fn(Duration) -> F,
) -> Result<(), String> {
    let end = Instant::now() + all;
    let mut backoff = Backoff::new(limits.first_pause, limits.longest_pause);
    loop {
        // In whole milliseconds, since people may read it.
        let left = end.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
        let left = Duration::from_millis(left.as_millis() as u64);
        let why = match attempt(left.min(each)).await {
            Heard::Yes => return Ok(()),
            Heard::Never(why) => return Err(why),
            Heard::NotNow(why) => why,
        };
        let pause = backoff.pause();
        if Instant::now() + pause >= end {
            return Err(why);
        }
        sleep(pause).await;
    }
}
