//! What every address does.

use std::{sync::Arc, time::Duration};

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{Request, StatusCode, body::Incoming, http::request::Parts};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use super::{
    answers::{self, Answer, Declined},
    browsers::{self, Suspicion},
    metrics::Metrics,
    openapi,
    queue::{End, Queue, Refusal},
    record::Status,
    routes::{self, LONGEST_WAIT, Operation, Route},
    settings::Settings,
    store::Answered,
    submission::Submission,
    waiting::{For, Waiting},
    webhook::Webhooks,
};

/// Largest bodies, as RunPod takes them.
const MAX_RUN_BYTES: usize = 10 << 20;
const MAX_RUN_SYNC_BYTES: usize = 20 << 20;
/// So much more than may be is still read, for so long, and thrown away: most clients read no answer before they have sent all, and
/// a connection that is closed meanwhile tells them nothing.
const MOST_DISCARDED: usize = 64 << 20;
const DISCARDING: Duration = Duration::from_secs(20);
/// So many bodies are taken apart at the same time: each takes many times its size in memory.
const PARSED_AT_ONCE: usize = 4;

/// All that requests are answered with.
pub(super) struct Handlers {
    pub(super) settings: Settings,
    pub(super) queue: Arc<Queue>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) waiting: Waiting,
    pub(super) webhooks: Arc<Webhooks>,
    parsing: Semaphore,
}

// === impl Handlers ===

impl Handlers {
    pub(super) fn new(
        settings: Settings,
        queue: Arc<Queue>,
        metrics: Arc<Metrics>,
        waiting: Waiting,
        webhooks: Arc<Webhooks>,
    ) -> Self {
        Self { settings, queue, metrics, waiting, webhooks, parsing: Semaphore::new(PARSED_AT_ONCE) }
    }

    /// The answer to a request, whatever it is.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let found = routes::find(head.uri.path());
        let answered = match self.check(&head) {
            Err(declined) => Err(declined),
            Ok(()) => match found {
                None => {
                    Err(Declined::new(StatusCode::NOT_FOUND, "there is no such address; GET /openapi.json lists all"))
                }
                Some((route, _)) if !route.methods.take(&head.method) => Err(Declined::method(route.methods.allowed())),
                Some((route, id)) => self.carry_out(route, id.unwrap_or_default(), &head, body).await,
            },
        };
        let answer = answered.unwrap_or_else(|declined| declined.answer());
        let name = found.map_or("none", |(route, _)| route.name);
        self.metrics.answered(name, answer.status().as_u16());
        answer
    }

    /// Whether this request may ask at all.
    fn check(&self, head: &Parts) -> Result<(), Declined> {
        if let Some(key) = &self.settings.key {
            return if key.is_in(&head.headers) { Ok(()) } else { Err(Declined::no_key()) };
        }
        match browsers::suspicion(&head.method, &head.uri, &head.headers) {
            None => Ok(()),
            Some(Suspicion::OtherHost) => Err(Declined::unread(
                StatusCode::FORBIDDEN,
                "without a key this server answers to localhost and 127.0.0.1 only; set BRIGHTRUN_API_KEY for other names",
            )),
            Some(Suspicion::OtherSite) => Err(Declined::unread(
                StatusCode::FORBIDDEN,
                "without a key this server answers no pages of other sites; set BRIGHTRUN_API_KEY, and ask with it",
            )),
            Some(Suspicion::NoJson) => Err(Declined::unread(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "without a key this server takes JSON that says so; add the header Content-Type: application/json",
            )),
        }
    }

    async fn carry_out(&self, route: &Route, id: &str, head: &Parts, body: Incoming) -> Result<Answer, Declined> {
        let wait = wait(route, head.uri.query().unwrap_or_default())?;
        match route.operation {
            Operation::Run => {
                let id = self.submit(head, body, false).await?;
                Ok(answers::told(&json!({ "id": id, "status": Status::InQueue.name() })))
            }
            Operation::RunSync => {
                let id = self.submit(head, body, true).await?;
                self.waiting.until(&self.queue, &id, For::End, wait).await;
                self.status(&id).await
            }
            Operation::Status => self.status(id).await,
            Operation::StatusSync => {
                self.waiting.until(&self.queue, id, For::End, wait).await;
                self.status(id).await
            }
            Operation::Stream => {
                self.waiting.until(&self.queue, id, For::News, wait).await;
                let (status, stream) = self.queue.drain(id).ok_or(Refusal::Unknown)?;
                Ok(answers::told(&json!({ "status": status.name(), "stream": stream })))
            }
            Operation::Cancel => self.cancel(id).await,
            Operation::Retry => {
                let name = id.to_owned();
                self.at_the_disk(move |queue| queue.retry(&name)).await??;
                Ok(answers::told(&json!({ "id": id, "status": Status::InQueue.name() })))
            }
            Operation::Health => Ok(answers::told(&self.health())),
            Operation::PurgeQueue => {
                let removed = self.at_the_disk(|queue| queue.purge()).await?.map_err(Refusal::from)?;
                Ok(answers::told(&json!({ "removed": removed, "status": "completed" })))
            }
            Operation::Requests => Ok(answers::told(&json!({ "requests": self.queue.list() }))),
            Operation::Metrics => Ok(answers::measured(self.metrics.text(&self.queue))),
            Operation::OpenApi => Ok(answers::told(&openapi::description(self.settings.key.is_some()))),
        }
    }

    async fn submit(&self, head: &Parts, body: Incoming, kept: bool) -> Result<String, Declined> {
        let body = self.read(head, body, if kept { MAX_RUN_SYNC_BYTES } else { MAX_RUN_BYTES }).await?;
        // It is never closed.
        let _one_of_few = self.parsing.acquire().await;
        let plain_http = self.settings.plain_http;
        let submitted = self.at_the_disk(move |queue| {
            let job = Submission::read(&body, kept, plain_http).map_err(Refusal::Wrong)?;
            queue.submit(&job)?;
            Ok::<_, Refusal>(job.id)
        });
        let id = submitted.await??;
        tracing::info!("job {id} is in the queue");
        Ok(id)
    }

    async fn read(&self, head: &Parts, mut body: Incoming, most: usize) -> Result<Vec<u8>, Declined> {
        let too_large = || {
            let why = format!("the body may have {} MB at most; put data where dataset_url leads", most >> 20);
            Declined::unread(StatusCode::PAYLOAD_TOO_LARGE, why)
        };
        let announced = head.headers.get(hyper::header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        if announced.and_then(|length| length.parse::<usize>().ok()).is_some_and(|length| length > most) {
            discard(body);
            return Err(too_large());
        }
        match timeout(self.settings.limits.body, Limited::new(&mut body, most).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes().to_vec()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                discard(body);
                Err(too_large())
            }
            Ok(Err(_)) => Err(Declined::unread(StatusCode::BAD_REQUEST, "the body did not arrive whole")),
            Err(_) => Err(Declined::unread(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
        }
    }

    async fn status(&self, id: &str) -> Result<Answer, Declined> {
        let told = match self.queue.told_from_memory(id) {
            Some(told) => told,
            None => {
                let id = id.to_owned();
                self.at_the_disk(move |queue| queue.told(&id)).await?.map_err(Refusal::from)?
            }
        };
        Ok(answers::told(&told.ok_or(Refusal::Unknown)?))
    }

    async fn cancel(&self, id: &str) -> Result<Answer, Declined> {
        let name = id.to_owned();
        let end = End { status: Status::Cancelled, answer: Answered::default() };
        let ended = self.at_the_disk(move |queue| queue.end(&name, &end)).await?.map_err(Refusal::from)?;
        if let Some(to_tell) = ended {
            tracing::info!("job {id} is cancelled");
            self.metrics.ended(Status::Cancelled);
            if to_tell {
                self.webhooks.tell(id.to_owned());
            }
        }
        Ok(answers::told(&Value::Object(self.queue.brief(id).ok_or(Refusal::Unknown)?)))
    }

    fn health(&self) -> Value {
        let (counts, retried) = self.queue.counts();
        let of = |status| counts.iter().find(|(known, _)| *known == status).map_or(0, |(_, count)| *count);
        let running = of(Status::InProgress);
        json!({
            "jobs": {
                "completed": of(Status::Completed), "failed": of(Status::Failed), "inProgress": running,
                "inQueue": of(Status::InQueue), "retried": retried,
            },
            // This machine is the only worker.
            "workers": {
                "idle": 1 - running.min(1), "initializing": 0, "ready": 1, "running": running, "throttled": 0,
                "unhealthy": 0,
            },
        })
    }

    /// Does what may have to wait for the disk.
    async fn at_the_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Queue) -> T + Send + 'static,
    ) -> Result<T, Declined> {
        let queue = self.queue.clone();
        let fault = |_| Declined::broken("the server has a fault; see its log");
        spawn_blocking(move || work(&queue)).await.map_err(fault)
    }
}

/// Lets a client send what nobody wants, on the side; its answer is on the way already.
fn discard(body: Incoming) {
    let mut body = Limited::new(body, MOST_DISCARDED);
    tokio::spawn(timeout(DISCARDING, async move { while let Some(Ok(_)) = body.frame().await {} }));
}

/// How long a request wants to wait.
fn wait(route: &Route, query: &str) -> Result<Duration, Declined> {
    let Some(usual) = route.wait else { return Ok(Duration::ZERO) };
    let given = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "wait");
    let milliseconds = match given {
        None => usual,
        Some((_, text)) => {
            let wrong = |_| Declined::wrong(format!("wait must be a number of milliseconds from 0 to {LONGEST_WAIT}"));
            text.parse::<u64>().map_err(wrong)?.min(LONGEST_WAIT)
        }
    };
    Ok(Duration::from_millis(milliseconds))
}
