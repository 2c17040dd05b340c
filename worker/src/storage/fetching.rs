//! What all requests of one fetch share: the operator's policy, the limits, and the errors of a fetch.

use std::{error::Error, future::Future, sync::Arc, time::Duration};

use hyper::{
    Request,
    body::{Body as HttpBody, Bytes},
    http::response::Parts,
};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{
    error::{Failure, FetchError, Trouble},
    limits::FetchLimits,
    policy::SourcePolicy,
    s3_client::Line,
};
use crate::net::{self, Body, Dialer, NetError, Patience};

/// What all requests of one fetch share.
pub(super) struct Fetching {
    pub(super) policy: SourcePolicy,
    pub(super) limits: FetchLimits,
    /// What is fetched, for errors of all of it.
    place: String,
    pub(super) line: Arc<Line>,
}

// === impl Fetching ===

impl Fetching {
    pub(super) fn new(
        policy: &SourcePolicy,
        limits: &FetchLimits,
        place: String,
        cancel: &CancellationToken,
    ) -> Result<Self, String> {
        let dialer = Dialer {
            network: policy.network.clone(),
            tls: net::tls(&policy.network)?,
            connect: limits.connect,
            headers: limits.headers,
        };
        let patience = Patience::new(cancel.clone(), limits.deadline);
        let line = Arc::new(Line { dialer, patience });
        Ok(Self { policy: policy.clone(), limits: limits.clone(), place, line })
    }

    /// Sends a request to the host of `url`, called `place`, and waits for the head of the answer. `trusted`: the operator
    /// chose the host, so its address is not checked.
    pub(super) async fn exchange<B>(
        &self,
        url: &Url,
        request: Request<B>,
        place: &str,
        trusted: bool,
    ) -> Result<(Parts, Body), Failure>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let answer = self.line.exchange(url, request, trusted).await;
        answer.map_err(|error| self.failure(error, place))
    }

    /// Waits for `work`, at most for `most`; `what` names it in the error.
    pub(super) async fn within<T>(
        &self,
        most: Duration,
        what: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        self.line.patience.within(most, what, work).await.map_err(|error| self.failure(error, &self.place))
    }

    /// Waits for so long, or says that there is no time for that.
    pub(super) async fn pause(&self, time: Duration) -> Result<(), Failure> {
        self.line.patience.pause(time).await.map_err(|error| self.failure(error, &self.place))
    }

    /// Whether the caller wants to stop.
    pub(super) fn is_cancelled(&self) -> bool {
        self.line.patience.is_cancelled()
    }

    pub(super) fn failure(&self, error: NetError, place: &str) -> Failure {
        let (place, all) = (place.to_owned(), self.place.clone());
        match error {
            NetError::RefusedAddress { address, what } => FetchError::RefusedAddress { place, address, what }.into(),
            NetError::Untrusted(why) => FetchError::Untrusted { place, why }.into(),
            NetError::Cancelled => FetchError::Cancelled { place: all }.into(),
            NetError::Deadline(deadline) => FetchError::Deadline { place: all, deadline }.into(),
            NetError::Trouble(trouble) => Trouble::from(trouble).into(),
        }
    }
}
