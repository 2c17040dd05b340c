//! One request to the platform at a time, and what its answer means.

use std::{collections::HashSet, time::Duration};

use http_body_util::{Empty, Full};
use hyper::{
    Method, Request,
    body::{Body as HttpBody, Bytes},
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT},
    http::response::Parts,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{
    arrived::{Arrived, Contents},
    endpoints::Endpoints,
};
use crate::net::{self, Dialer, NetError, Network, Patience, Trouble, TroubleKind};

/// Largest answer that is read: the largest job that the platform accepts has 20 MB.
const MAX_ANSWER_BYTES: usize = 32 << 20;
/// The platform reads the body of an answer as JSON all the same; it is what its own workers send.
const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const CHARSET: HeaderName = HeaderName::from_static("charset");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// So long the last sign of life of a worker that cannot work may take.
const LAST_PING: Duration = Duration::from_secs(2);

/// How long the platform is waited for.
#[derive(Debug, Clone)]
pub struct ClientLimits {
    /// Each attempt to connect.
    pub connect: Duration,
    /// The platform holds a request for jobs, or for jobs to stop, until there is one.
    pub hold: Duration,
    /// The answer to anything else.
    pub answer: Duration,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            // As the platform's own workers do.
            hold: Duration::from_secs(90),
            answer: Duration::from_secs(60),
        }
    }
}

/// What asking for a job brought.
#[derive(Debug)]
pub(super) enum Taken {
    /// Jobs; without any, none was there.
    Jobs(Vec<Arrived>),
    /// The platform wants to be asked later.
    Later(String),
    /// The platform, or the way to it, does not work.
    Trouble(String),
}

/// What the platform made of an answer to a job.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Acknowledged {
    /// It has it.
    Yes,
    /// It finds it wrong, and will find it wrong later.
    Refused(u16),
    /// It does not know the job, or wants no answer to it any more.
    Unknown(u16),
    /// It did not get it.
    NotYet(String),
}

/// Speaks to the platform.
pub struct Client {
    endpoints: Endpoints,
    dialer: Dialer,
    limits: ClientLimits,
}

// === impl Client ===

impl Client {
    /// The operator's platform: its addresses are taken as they are, private ones too.
    pub fn new(endpoints: Endpoints, network: Network, limits: ClientLimits) -> Result<Self, String> {
        let tls = net::tls(&network)?;
        // Patience limits each request.
        let dialer = Dialer { network, tls, connect: limits.connect, headers: limits.hold.max(limits.answer) };
        Ok(Self { endpoints, dialer, limits })
    }

    /// The addresses that it speaks to.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Asks for at most so many jobs. `busy`: jobs are here already.
    pub(super) async fn take(&self, count: usize, busy: bool) -> Taken {
        let Some(url) = self.endpoints.take(count, busy) else { return Taken::Trouble("its address is none".into()) };
        let answer = match self.get(&url, Some(JSON), self.limits.hold, &CancellationToken::new()).await {
            Ok(answer) => answer,
            // Nothing came while the platform held the request.
            Err(NetError::Deadline(_)) => return Taken::Jobs(Vec::new()),
            Err(error) => return Taken::Trouble(error.to_string()),
        };
        match answer.status {
            200 => {
                let Contents { jobs, nameless, garbled } = Contents::read(&answer.body);
                if nameless > 0 {
                    tracing::warn!("the platform sent {nameless} jobs without an id, which nobody can answer");
                }
                if jobs.is_empty() && garbled {
                    return Taken::Trouble("its answer is not JSON, and no job can be seen in it".into());
                }
                Taken::Jobs(jobs)
            }
            // 400 is what a worker hears that was asleep.
            204 | 400 => Taken::Jobs(Vec::new()),
            429 => Taken::Later("it answered HTTP 429".into()),
            status => Taken::Trouble(format!("it answered HTTP {status}")),
        }
    }

    /// Says something of a job: `body` is JSON.
    pub(super) async fn answer(&self, job: &str, body: Bytes) -> Acknowledged {
        let Some(url) = self.endpoints.done(job) else { return Acknowledged::NotYet("its address is none".into()) };
        let Ok(id) = HeaderValue::from_str(job) else { return Acknowledged::Refused(400) };
        let request = self.request(Method::POST, &url, Full::new(body)).map(|mut request| {
            request.headers_mut().extend([
                (CONTENT_TYPE, FORM),
                (CHARSET, HeaderValue::from_static("utf-8")),
                (REQUEST_ID, id),
            ]);
            request
        });
        let answer = match request {
            Ok(request) => self.exchange(&url, request, self.limits.answer, &CancellationToken::new()).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => match answer.status {
                200..=299 => Acknowledged::Yes,
                // Not now is not never. Whose key is not taken gets no other job either, so there is time.
                401 | 403 | 408 | 425 | 429 => Acknowledged::NotYet(format!("it answered HTTP {}", answer.status)),
                status @ (404 | 409 | 410) => Acknowledged::Unknown(status),
                status @ 400..=499 => Acknowledged::Refused(status),
                status => Acknowledged::NotYet(format!("it answered HTTP {status}")),
            },
            Err(error) => Acknowledged::NotYet(error.to_string()),
        }
    }

    /// Asks which jobs are to be stopped; `None` where the platform has no such address. The error says why it did not work.
    pub(super) async fn stops(&self, cancel: &CancellationToken) -> Option<Result<HashSet<String>, String>> {
        let url = self.endpoints.stop()?;
        let answer = match self.get(&url, Some(JSON), self.limits.hold, cancel).await {
            Ok(answer) => answer,
            Err(NetError::Cancelled | NetError::Deadline(_)) => return Some(Ok(HashSet::new())),
            Err(error) => return Some(Err(error.to_string())),
        };
        Some(match answer.status {
            200 => {
                let told: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
                let jobs = told.get("jobsToStop").and_then(Value::as_array).into_iter().flatten();
                Ok(jobs.filter_map(Value::as_str).map(str::to_owned).collect())
            }
            204 => Ok(HashSet::new()),
            status => Err(format!("it answered HTTP {status}")),
        })
    }

    /// A sign of life, with the jobs that are here.
    pub(super) async fn ping(&self, jobs: &[String], cancel: &CancellationToken) -> Result<(), String> {
        let Some(url) = self.endpoints.ping(jobs) else { return Ok(()) };
        let patience = 2 * self.endpoints.interval;
        match self.get(&url, None, patience, cancel).await {
            Ok(answer) if answer.status < 400 => Ok(()),
            Ok(answer) => Err(format!("it answered HTTP {}", answer.status)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Tells the platform that this worker cannot work, once: it goes either way.
    pub(crate) async fn unhealthy(&self, check: &str, reason: &str) {
        let Some(url) = self.endpoints.unhealthy(check, reason) else { return };
        if let Err(error) = self.get(&url, None, LAST_PING, &CancellationToken::new()).await {
            tracing::debug!("the platform does not know that this worker cannot work: {error}");
        }
    }

    async fn get(
        &self,
        url: &Url,
        content_type: Option<HeaderValue>,
        most: Duration,
        cancel: &CancellationToken,
    ) -> Result<Answer, NetError> {
        let mut request = self.request(Method::GET, url, Empty::new())?;
        request.headers_mut().extend(content_type.map(|kind| (CONTENT_TYPE, kind)));
        self.exchange(url, request, most, cancel).await
    }

    fn request<B>(&self, method: Method, url: &Url, body: B) -> Result<Request<B>, NetError> {
        let mut request = Request::builder()
            .method(method)
            .uri(net::target(url))
            .header(ACCEPT, "*/*")
            .header(USER_AGENT, net::AGENT);
        if let Some(key) = &self.endpoints.key {
            request = request.header(AUTHORIZATION, key.expose());
        }
        let odd = |_| Trouble::new(TroubleKind::BrokenAnswer, "the request could not be made; check RUNPOD_AI_API_KEY");
        Ok(request.body(body).map_err(odd)?)
    }

    async fn exchange<B>(
        &self,
        url: &Url,
        request: Request<B>,
        most: Duration,
        cancel: &CancellationToken,
    ) -> Result<Answer, NetError>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let patience = Patience::new(cancel.clone(), most);
        let (Parts { status, .. }, mut body) = self.dialer.exchange(url, request, true, &patience).await?;
        let body = patience.within(most, "the answer", body.begin(MAX_ANSWER_BYTES)).await?;
        Ok(Answer { status: status.as_u16(), body })
    }
}

struct Answer {
    status: u16,
    body: Vec<u8>,
}
