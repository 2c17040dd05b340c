//! What a request of a worker is, read from its target.

use super::{ENDPOINT, Seen};

/// What a worker asks of the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// `job-take`: one job.
    Take,
    /// `job-take-batch`: several jobs.
    TakeBatch,
    /// `job-done` with the status `IN_PROGRESS`: how far a job is.
    Progress,
    /// `job-done` without it: a job's result.
    Done,
    /// `job-stream`: a piece of a job's output.
    Stream,
    /// `ping`: the worker lives and has these jobs.
    Ping,
    /// `job-stop`: which jobs are to be stopped.
    Stop,
    /// Nothing the platform knows.
    Unknown,
}

/// A target taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) route: Route,
    pub(super) worker: String,
    pub(super) job: Option<String>,
}

// === impl Route ===

impl Route {
    /// Every route a worker knows.
    pub const ALL: [Self; 7] =
        [Self::Take, Self::TakeBatch, Self::Progress, Self::Done, Self::Stream, Self::Ping, Self::Stop];

    /// Its name in texts and commands.
    pub fn name(self) -> &'static str {
        match self {
            Self::Take => "job-take",
            Self::TakeBatch => "job-take-batch",
            Self::Progress => "progress",
            Self::Done => "job-done",
            Self::Stream => "job-stream",
            Self::Ping => "ping",
            Self::Stop => "job-stop",
            Self::Unknown => "unknown",
        }
    }

    /// The route of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|route| route.name() == name)
    }

    /// Whether it is one of the two ways to take jobs.
    pub fn takes(self) -> bool {
        matches!(self, Self::Take | Self::TakeBatch)
    }

    /// The method it is asked with.
    pub fn method(self) -> &'static str {
        if matches!(self, Self::Progress | Self::Done | Self::Stream) { "POST" } else { "GET" }
    }
}

// === impl Target ===

impl Target {
    /// `body` tells progress from a result: both have one address.
    pub(super) fn parse(target: &str, body: &[u8]) -> Self {
        let unknown = Self { route: Route::Unknown, worker: String::new(), job: None };
        let (path, _) = split(target);
        let Some(rest) = path.strip_prefix("/v2/").and_then(|rest| rest.strip_prefix(ENDPOINT)) else { return unknown };
        let parts: Vec<&str> = rest.split('/').skip(1).collect();
        let with_job = |route, worker: &str, job: &str| Self { route, worker: worker.into(), job: Some(job.into()) };
        let without = |route, worker: &str| Self { route, worker: worker.into(), job: None };
        match parts[..] {
            ["job-take", worker] => without(Route::Take, worker),
            ["job-take-batch", worker] => without(Route::TakeBatch, worker),
            ["job-stop", worker] => without(Route::Stop, worker),
            ["ping", worker] => without(Route::Ping, worker),
            ["job-done", worker, job] if is_progress(body) => with_job(Route::Progress, worker, job),
            ["job-done", worker, job] => with_job(Route::Done, worker, job),
            ["job-stream", worker, job] => with_job(Route::Stream, worker, job),
            _ => unknown,
        }
    }
}

/// Path and query. A query may begin with `&`: the official SDK appends its parameters like that to an address without one.
pub(super) fn split(target: &str) -> (&str, &str) {
    match target.find(['?', '&']) {
        Some(at) => (&target[..at], &target[at + 1..]),
        None => (target, ""),
    }
}

/// The parameters of a query as they came, in order.
pub(super) fn parameters(seen: &Seen) -> Vec<(&str, &str)> {
    let (_, query) = split(&seen.target);
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect()
}

/// Percent signs and plus signs resolved; what is no escape stays.
pub(super) fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = text.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (bytes[at], escape) {
            (b'%', Some(byte)) => {
                plain.push(byte);
                at += 2;
            }
            (b'+', _) => plain.push(b' '),
            (byte, _) => plain.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&plain).into_owned()
}

fn is_progress(body: &[u8]) -> bool {
    let body: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    body.is_some_and(|body| body.get("status").and_then(|status| status.as_str()) == Some("IN_PROGRESS"))
}
