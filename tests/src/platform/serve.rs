//! Connections, and what each request does.

use std::{
    future, io,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    time::sleep_until,
};

use super::{
    Fault, KEY, Outcome, Route,
    fault::Answer,
    http::{Reply, Wire},
    state::{State, Take},
};

/// How often it is seen what time has done to jobs.
const TICK: Duration = Duration::from_millis(10);

/// What a long poll comes to.
enum Poll {
    Answer(Reply),
    WaitUntil(Option<Instant>),
}

pub(super) async fn listen(listener: TcpListener, state: Arc<State>) {
    let mut connection = 0;
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        // A worker that goes away is what many tests are about.
        tokio::spawn(async move { drop(serve(stream, connection, &state).await) });
        connection += 1;
    }
}

pub(super) async fn tick(state: Arc<State>) {
    loop {
        tokio::time::sleep(TICK).await;
        let mut inner = state.lock();
        let options = inner.options.clone();
        let changed = inner.queue.tick(&options, Instant::now());
        drop(inner);
        if changed {
            state.changed();
        }
    }
}

async fn serve(stream: TcpStream, connection: usize, state: &State) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut wire = Wire::new(stream);
    while let Some(request) = wire.read().await? {
        let closes = request
            .headers
            .iter()
            .any(|(name, value)| name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close"));
        let (number, fault) = state.note(request, connection);
        let Some(reply) = or_gone(&mut wire, state, number, &fault).await else {
            state.end_request(number, |at| Outcome::Left { at });
            return Ok(());
        };
        let reply = match &fault.answer {
            Answer::Right => reply,
            Answer::Instead(reply) => reply.clone(),
            Answer::Dropped => {
                state.end_request(number, |at| Outcome::Dropped { at });
                return wire.reset();
            }
            Answer::Closed => {
                state.end_request(number, |at| Outcome::Dropped { at });
                return Ok(());
            }
            Answer::Cut => {
                state.end_request(number, |at| Outcome::Dropped { at });
                return wire.send_half(&reply).await;
            }
        };
        // Noted before it is sent: what the worker does next comes after it.
        let (status, body) = (reply.status, reply.body.clone());
        state.end_request(number, |at| Outcome::Answered { at, status, body });
        wire.send(&reply).await?;
        if closes || fault.closes {
            return Ok(());
        }
    }
    Ok(())
}

/// The right answer, after all pauses; nothing if the worker has gone before.
async fn or_gone(wire: &mut Wire, state: &State, number: usize, fault: &Fault) -> Option<Reply> {
    select! {
        // First: a worker that is known to be gone gets no job.
        biased;
        () = wire.gone() => None,
        reply = async {
            pause(fault.waits).await;
            let reply = if fault.has_effect { effect(state, number).await } else { Reply::empty(200) };
            pause(fault.answers_after).await;
            reply
        } => Some(reply),
    }
}

/// No pause gives way to no other request: what was read first has its effect first.
async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

async fn effect(state: &State, number: usize) -> Reply {
    let (route, hold) = {
        let inner = state.lock();
        let seen = &inner.seen[number];
        if seen.route == Route::Unknown {
            return Reply::json(404, &json!({ "error": "not found" }));
        }
        if seen.method != seen.route.method() {
            return Reply::json(405, &json!({ "error": "method not allowed" }));
        }
        if seen.header("authorization") != Some(KEY) {
            return Reply::json(401, &json!({ "error": "unauthorized" }));
        }
        let is_stop = seen.route == Route::Stop;
        (seen.route, if is_stop { inner.options.stop_hold } else { inner.options.take_hold })
    };
    if route.takes() {
        state.lock().takes.insert(number, Take::default());
        state.changed();
        let until = Instant::now() + hold;
        return poll(state, || take(state, number, until)).await;
    }
    if route == Route::Stop {
        let until = Instant::now() + hold;
        return poll(state, || stop(state, number, until)).await;
    }
    let reply = post(state, number);
    state.changed();
    reply
}

/// Asks again whenever something has happened.
async fn poll(state: &State, mut step: impl FnMut() -> Poll) -> Reply {
    let mut changes = state.changes();
    loop {
        changes.mark_unchanged();
        let until = match step() {
            Poll::Answer(reply) => {
                // Jobs have changed hands, and a slow answer may be long in coming.
                state.changed();
                return reply;
            }
            Poll::WaitUntil(until) => until,
        };
        let end = async {
            match until {
                Some(until) => sleep_until(until.into()).await,
                None => future::pending().await,
            }
        };
        select! {
            _ = changes.changed() => {}
            () = end => {}
        }
    }
}

fn take(state: &State, number: usize, until: Instant) -> Poll {
    let inner = &mut *state.lock();
    let now = Instant::now();
    let Some(take) = inner.takes.get_mut(&number) else { return Poll::Answer(Reply::empty(204)) };
    if let Some(reply) = take.release.take() {
        return Poll::Answer(reply);
    }
    if take.held {
        return Poll::WaitUntil(None);
    }
    let seen = &mut inner.seen[number];
    let is_batch = seen.route == Route::TakeBatch;
    let most = if is_batch { seen.parameter("batch_size").and_then(|size| size.parse().ok()).unwrap_or(1) } else { 1 };
    let (ids, mut jobs) = inner.queue.take(&seen.worker, most, now);
    seen.delivered = ids;
    match jobs.len() {
        0 if now < until => Poll::WaitUntil(Some(until)),
        0 => Poll::Answer(Reply::empty(204)),
        _ if is_batch => Poll::Answer(Reply::json(200, &Value::Array(jobs))),
        _ => Poll::Answer(Reply::json(200, &jobs.swap_remove(0))),
    }
}

fn stop(state: &State, number: usize, until: Instant) -> Poll {
    let inner = &mut *state.lock();
    let seen = &mut inner.seen[number];
    seen.stopped = inner.queue.stops(&seen.worker);
    match seen.stopped.is_empty() {
        true if Instant::now() < until => Poll::WaitUntil(Some(until)),
        true => Poll::Answer(Reply::empty(204)),
        false => Poll::Answer(Reply::json(200, &json!({ "jobsToStop": seen.stopped }))),
    }
}

fn post(state: &State, number: usize) -> Reply {
    let inner = &mut *state.lock();
    let (seen, now) = (&inner.seen[number], Instant::now());
    let job = seen.job.as_deref().unwrap_or_default();
    match seen.route {
        Route::Stream => inner.queue.stream(job, &seen.body),
        Route::Ping => {
            inner.queue.ping(&seen.worker, &seen.listed(), now);
            Reply::json(200, &json!({}))
        }
        _ => inner.queue.post(job, &seen.body, &inner.options, now),
    }
}
