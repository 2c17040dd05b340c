//! A service: a queue, somebody who works it off, and a server.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    handlers::Handlers, key::may_listen, metrics::Metrics, queue::Queue, running::Running, settings::Settings,
    store::Store, waiting::Waiting, webhook::Webhooks,
};
use crate::work::Work;

/// Headers of a request, all together, and their number.
const MAX_HEAD_BYTES: usize = 32 << 10;
const MAX_HEADERS: usize = 100;
/// So long a connection lives; a client that needs more makes another one.
const LONGEST_CONNECTION: Duration = Duration::from_secs(600);
/// A connection that is to end has so long for the request at hand. Longer than anybody can wait.
const LAST_REQUEST: Duration = Duration::from_secs(330);
/// The same when this server goes, and waits for nobody any more.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// After an error of the system's while connections are taken: there may be no more files to open.
const BREATH: Duration = Duration::from_millis(200);

/// Why a service cannot begin.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct ServiceError(String);

/// A service that has not begun.
pub struct Service<W> {
    running: Running<W>,
    handlers: Arc<Handlers>,
    leave: CancellationToken,
}

// === impl Service ===

impl<W: Work> Service<W> {
    /// Takes up queue and history where they were left. It is to go when `leave` ends.
    pub async fn open(settings: Settings, work: W, leave: CancellationToken) -> Result<Self, ServiceError> {
        let (folder, limits) = (settings.folder.clone(), settings.limits.clone());
        let (execution, worker) = (settings.execution, settings.worker.clone());
        let opened = spawn_blocking(move || {
            let store = Store::open(&folder)?;
            Queue::open(store, limits, execution, worker)
        });
        let opened = opened.await.map_err(|error| ServiceError(error.to_string()))?;
        let queue = Arc::new(opened.map_err(|error| ServiceError(error.to_string()))?);
        let metrics = Arc::new(Metrics::default());
        let webhooks = Arc::new(Webhooks::new(queue.clone(), &settings).map_err(ServiceError)?);
        let running = Running {
            work,
            queue: queue.clone(),
            metrics: metrics.clone(),
            webhooks: webhooks.clone(),
            worker: settings.worker.clone(),
        };
        let waiting = Waiting::new(settings.limits.waiting, leave.clone());
        let handlers = Arc::new(Handlers::new(settings, queue, metrics, waiting, webhooks));
        Ok(Self { running, handlers, leave })
    }

    /// Works and answers until it is to go. The job at hand is over or back in the queue when this returns.
    pub async fn run(&self, listener: TcpListener) -> Result<(), ServiceError> {
        let address = listener.local_addr().map_err(|error| ServiceError(error.to_string()))?;
        may_listen(&[address.ip()], self.handlers.settings.key.as_ref()).map_err(ServiceError)?;
        let untold = self.handlers.queue.to_tell().map_err(|error| ServiceError(error.to_string()))?;
        untold.into_iter().for_each(|id| self.handlers.webhooks.tell(id));
        let over = CancellationToken::new();
        let answering = tokio::spawn(answer(listener, self.handlers.clone(), over.clone()));
        tokio::select! {
            // While the job at hand ends in order, requests are still answered.
            () = self.running.run(&self.leave) => {}
            () = self.running.expire() => {}
        }
        over.cancel();
        self.handlers.webhooks.stop().await;
        // What it says of its end is of no use.
        let _ = answering.await;
        Ok(())
    }
}

/// Answers requests until `over`.
async fn answer(listener: TcpListener, handlers: Arc<Handlers>, over: CancellationToken) {
    let places = Arc::new(Semaphore::new(handlers.settings.limits.connections));
    let mut connections = JoinSet::new();
    loop {
        let accepted = over.run_until_cancelled(accept(&listener, &places));
        let Some(accepted) = accepted.await else { break };
        match accepted {
            Ok((stream, place)) => {
                connections.spawn(serve(stream, handlers.clone(), over.clone(), place));
            }
            Err(error) => {
                tracing::debug!("a connection was not taken: {error}");
                sleep(BREATH).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    let all_end = async { while connections.join_next().await.is_some() {} };
    // Who takes longer is cut off.
    let _ = timeout(LAST_WORDS, all_end).await;
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

/// One connection, for as long as it lives.
async fn serve(stream: TcpStream, handlers: Arc<Handlers>, over: CancellationToken, _place: OwnedSemaphorePermit) {
    // A matter of speed only.
    let _ = stream.set_nodelay(true);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(handlers.settings.limits.head)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES);
    let answer = service_fn(move |request: Request<Incoming>| {
        let handlers = handlers.clone();
        async move { Ok::<_, Infallible>(handlers.answer(request).await) }
    });
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), answer));
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!("a connection ended early: {error}");
            }
            return;
        }
        () = over.cancelled() => {}
        () = sleep(LONGEST_CONNECTION) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(LAST_REQUEST, connection).await;
}
