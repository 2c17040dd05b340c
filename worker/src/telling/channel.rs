//! The way to one of those who are told of a job: what is new in order and not too often, the end last.

use std::{
    future::Future,
    ops::ControlFlow,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use hyper::body::Bytes;
use serde_json::Value;
use tokio::runtime::Handle;

use super::{
    limits::TellingLimits,
    news::{Last, News},
    notes::Notes,
    request::{Heard, persist},
    underway::Underway,
};
use crate::newest::Newest;

/// Somebody who is told of one job.
pub(super) trait Listener: Send + Sync + 'static {
    /// What they are called in logs.
    fn name(&self) -> String;
    /// What they are sent; made once, also where it is sent again.
    fn message(&self, news: &News) -> Bytes;
    /// Sends it once, which may take so long.
    fn send(&self, message: Bytes, most: Duration) -> impl Future<Output = Heard> + Send;
    /// So long it is tried to tell them the end.
    fn patience(&self, limits: &TellingLimits) -> Duration;
}

/// The way to somebody who is told of one job.
pub(super) struct Channel<L> {
    route: Arc<Route<L>>,
    newest: Arc<Newest<Value>>,
}

struct Route<L> {
    listener: L,
    limits: TellingLimits,
    notes: Notes,
    /// In a row.
    failures: AtomicU32,
    /// Why the newest progress was not heard, as long as no note says it.
    unheard: Mutex<Option<String>>,
}

// === impl Channel ===

impl<L: Listener> Channel<L> {
    /// Begins; nothing is told yet.
    pub(super) fn begin(listener: L, limits: &TellingLimits, notes: &Notes) -> Self {
        let (change, progress) = (limits.change, limits.progress);
        let pause =
            move |told: &Value, new: &Value| if told.get("stage") == new.get("stage") { progress } else { change };
        let failures = AtomicU32::new(0);
        let route = Arc::new(Route {
            listener,
            limits: limits.clone(),
            notes: notes.clone(),
            failures,
            unheard: Mutex::default(),
        });
        let telling = route.clone();
        let tell = move |output| {
            let route = telling.clone();
            async move { route.progress(output).await }
        };
        Self { route, newest: Arc::new(Newest::begin(pause, tell)) }
    }

    /// What is new. It never waits.
    pub(super) fn progress(&self, output: &Value) {
        self.newest.put(output.clone());
    }

    /// What the job's owner should know before the end, where nobody listens and no note says so yet.
    pub(super) fn unheard(&self) -> Option<String> {
        let why = self.route.unheard().clone()?;
        Some(format!("{} was not told of progress: {why}", self.route.listener.name()))
    }

    /// How it ended, once what is on its way has arrived or failed; without an end it is silence. It never waits.
    pub(super) fn end(&self, last: Option<Last>, underway: &Underway, runtime: &Handle) {
        let (route, newest) = (self.route.clone(), self.newest.clone());
        underway.run(runtime, async move {
            newest.fall_silent().await;
            if let Some(last) = last {
                route.end(last).await;
            }
        });
    }
}

// === impl Route ===

impl<L: Listener> Route<L> {
    async fn progress(&self, output: Value) -> ControlFlow<()> {
        let message = self.listener.message(&News::Progress(output));
        let why = match self.listener.send(message, self.limits.answer).await {
            Heard::Yes => {
                self.failures.store(0, Ordering::Relaxed);
                *self.unheard() = None;
                return ControlFlow::Continue(());
            }
            Heard::NotNow(why) | Heard::Never(why) => why,
        };
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures < self.limits.failures {
            tracing::debug!("{} was not told of progress: {why}", self.listener.name());
            *self.unheard() = Some(why);
            return ControlFlow::Continue(());
        }
        *self.unheard() = None;
        let name = self.listener.name();
        self.notes.take(format!(
            "{name} was not told of progress {failures} times in a row ({why}), and hears of the end only"
        ));
        ControlFlow::Break(())
    }

    fn unheard(&self) -> MutexGuard<'_, Option<String>> {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn end(&self, last: Last) {
        let message = self.listener.message(&News::Last(last));
        let all = self.listener.patience(&self.limits);
        let attempt = |most| self.listener.send(message.clone(), most);
        match persist(&self.limits, all, self.limits.answer, attempt).await {
            Ok(()) => tracing::debug!("{} was told of the end", self.listener.name()),
            Err(why) => tracing::warn!("{} was not told of the end: {why}", self.listener.name()),
        }
    }
}
