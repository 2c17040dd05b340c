//! Telling the link of a job that the job is over.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request,
    body::Bytes,
    header::{CONTENT_TYPE, USER_AGENT},
};
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{queue::Queue, settings::Settings, store::StoreError};
use crate::{
    net::{self, Dialer, NetError, Patience, Trouble, TroubleKind},
    redacted::Redacted,
};

/// For each attempt.
const CONNECT: Duration = Duration::from_secs(10);
const ATTEMPT: Duration = Duration::from_secs(30);
/// So many are told at the same time.
const AT_ONCE: usize = 8;

/// Tells webhooks. What is not told when the program ends is told when it begins again.
pub(super) struct Webhooks {
    queue: Arc<Queue>,
    dialer: Dialer,
    pauses: Vec<Duration>,
    places: Semaphore,
    over: CancellationToken,
    telling: Mutex<JoinSet<()>>,
}

// === impl Webhooks ===

impl Webhooks {
    pub(super) fn new(queue: Arc<Queue>, settings: &Settings) -> Result<Self, String> {
        let network = settings.network.clone();
        let tls = net::tls(&network)?;
        let dialer = Dialer { network, tls, connect: CONNECT, headers: ATTEMPT };
        let pauses = settings.limits.webhook_pauses.clone();
        Ok(Self {
            queue,
            dialer,
            pauses,
            places: Semaphore::new(AT_ONCE),
            over: CancellationToken::new(),
            telling: Mutex::default(),
        })
    }

    /// Tells that of a job, on the side.
    pub(super) fn tell(self: &Arc<Self>, id: String) {
        let webhooks = self.clone();
        let mut telling = self.telling();
        while telling.try_join_next().is_some() {}
        telling.spawn(async move {
            // It is never closed.
            let _one_of_few = webhooks.places.acquire().await;
            if let Err(error) = webhooks.told(&id).await {
                tracing::warn!("job {id}: its webhook cannot be told: {error}");
            }
        });
    }

    /// Tells nothing more; what is noted of those that were told is on disk when this returns.
    pub(super) async fn stop(&self) {
        self.over.cancel();
        let mut telling = std::mem::take(&mut *self.telling());
        while telling.join_next().await.is_some() {}
    }

    fn telling(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn told(self: &Arc<Self>, id: &str) -> Result<(), StoreError> {
        let Some((url, body)) = self.at_the_disk(id, message).await? else { return Ok(()) };
        let shown = Redacted::url(url.clone());
        let mut pauses = self.pauses.iter();
        loop {
            let Some(outcome) = self.over.run_until_cancelled(self.attempt(&url, body.clone())).await else {
                return Ok(());
            };
            match outcome {
                Ok(status) if (200..300).contains(&status) => {
                    tracing::info!("job {id}: {shown} was told of its end");
                    break;
                }
                outcome => {
                    let why =
                        outcome.map_or_else(|error| error.to_string(), |status| format!("it answered HTTP {status}"));
                    let Some(pause) = pauses.next() else {
                        tracing::warn!("job {id}: {shown} does not hear of its end: {why}");
                        break;
                    };
                    tracing::info!("job {id}: {shown} was not told: {why}; again in {} s", pause.as_secs());
                    if self.over.run_until_cancelled(sleep(*pause)).await.is_none() {
                        return Ok(());
                    }
                }
            }
        }
        self.at_the_disk(id, |queue, id| queue.webhook_is_done(id)).await
    }

    async fn attempt(&self, url: &Url, body: Bytes) -> Result<u16, NetError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(net::target(url))
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, net::AGENT)
            .body(Full::new(body));
        let request = request.map_err(|error| Trouble::new(TroubleKind::BrokenAnswer, error.to_string()))?;
        let patience = Patience::new(CancellationToken::new(), ATTEMPT);
        let (head, _) = self.dialer.exchange(url, request, false, &patience).await?;
        Ok(head.status.as_u16())
    }

    async fn at_the_disk<T: Send + 'static>(
        &self,
        id: &str,
        act: impl FnOnce(&Queue, &str) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (queue, id) = (self.queue.clone(), id.to_owned());
        match spawn_blocking(move || act(&queue, &id)).await {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// RunPod's form: the whole job as `/status` tells it, with its input and the webhook. Signatures of links are left out.
fn message(queue: &Queue, id: &str) -> Result<Option<(Url, Bytes)>, StoreError> {
    let (Some(told), Some(Value::Object(mut message))) = (queue.webhook(id)?, queue.told(id)?) else {
        return Ok(None);
    };
    // It was read when the job came.
    let Ok(url) = Url::parse(&told.webhook) else { return Ok(None) };
    message.insert("input".to_owned(), told.input);
    message.insert("webhook".to_owned(), json!(Redacted::url(url.clone()).to_string()));
    Ok(Some((url, Value::Object(message).to_string().into())))
}
