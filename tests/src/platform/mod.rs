//! The server's side of RunPod's serverless protocol, with faults.
//!
//! A [`Platform`] has a queue of jobs and speaks to workers as the real one does: long polls that give out jobs and say
//! which to stop, pings, progress, results. It goes wrong as it is told ([`Fault`]), remembers every request as it came
//! ([`Seen`]), and says what was wrong with them ([`Platform::problems`], [`wire_problems`]). Connections are real TCP.
//! It runs on a thread of its own, so a test that blocks does not stop it.

mod checks;
mod environment;
mod fault;
mod held;
mod http;
mod job;
mod pings;
mod queue;
mod record;
mod route;
mod serve;
mod state;
mod wire;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

pub use checks::{answer_problems, most_within, order_problems};
pub use environment::Urls;
pub use fault::{Extent, Fault};
pub use held::HeldTake;
pub use job::{JobView, Status};
pub use pings::{Ping, ping_gap, ping_problems, pings};
pub use record::{Outcome, Seen};
pub use route::Route;
pub use wire::wire_problems;

use state::State;

/// The key workers show, as it is: without `Bearer`.
pub const KEY: &str = "rpa_SIMULATED0KEY";
/// Id of the endpoint.
pub const ENDPOINT: &str = "ep123";
/// Id of the worker unless the test says another.
pub const WORKER: &str = "worker-abc";
/// The kind of GPU in addresses, encoded as the platform encodes it.
pub const GPU: &str = "NVIDIA+A100+80GB+PCIe";

/// How the platform behaves. Every value may be changed while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How long a take without a job is held.
    pub take_hold: Duration,
    /// How long a question for jobs to stop is held.
    pub stop_hold: Duration,
    /// How long a job that was given out may go without a ping that lists it; `None`: for ever. About 40 s on the real one.
    pub redispatch_after: Option<Duration>,
    /// Longest body of a result or a progress.
    pub max_body_bytes: usize,
    /// What workers are told in `RUNPOD_PING_INTERVAL`.
    pub ping_milliseconds: u64,
}

/// The platform, until it is dropped.
pub struct Platform {
    address: SocketAddr,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self {
            take_hold: Duration::from_secs(5),
            stop_hold: Duration::from_secs(5),
            redispatch_after: Some(Duration::from_secs(40)),
            // What is documented for the smaller way in, `/run`; the real limit of results is not.
            max_body_bytes: 10_000_000,
            ping_milliseconds: 10_000,
        }
    }
}

// === impl Platform ===

impl Platform {
    /// Listens on a free port of this machine.
    pub fn start() -> io::Result<Self> {
        Self::start_with(Options::default())
    }

    /// The same with another behaviour.
    pub fn start_with(options: Options) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::new(options));
        // Entered, not blocked on: it may be started inside another runtime.
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(serve::listen(listener, state.clone()));
        runtime.spawn(serve::tick(state.clone()));
        Ok(Self { address, state, runtime: Some(runtime) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a worker is started with.
    pub fn environment(&self, urls: Urls) -> Vec<(String, String)> {
        self.environment_of(WORKER, urls)
    }

    /// What a worker of another id is started with.
    pub fn environment_of(&self, worker: &str, urls: Urls) -> Vec<(String, String)> {
        environment::environment(self.address, worker, urls, self.state.lock().options.ping_milliseconds)
    }

    /// Changes how it behaves from now on.
    pub fn set(&self, change: impl FnOnce(&mut Options)) {
        change(&mut self.state.lock().options);
        self.state.changed();
    }

    /// Queues a job with this input and says its id.
    pub fn submit(&self, input: Value) -> String {
        self.submit_body(json!({ "input": input }))
    }

    /// Queues a job: what a client posts to `/run`, with `policy`, `webhook`, `s3Config`. An `id` may be chosen.
    pub fn submit_body(&self, body: Value) -> String {
        let id = self.state.note_job(body);
        self.state.enqueue(&id);
        id
    }

    /// Gives a job out once more, whatever has become of it.
    pub fn deliver_again(&self, job: &str) {
        self.state.enqueue(job);
    }

    /// Calls a job off, as its client does. Says where it is then; nothing if there is no such job.
    pub fn cancel(&self, job: &str) -> Option<Status> {
        self.state.end_job(job, Status::Cancelled)
    }

    /// Ends a job that has run for too long with the status that is documented for it. A job with a
    /// `policy.executionTimeout` fails by itself, as observed.
    pub fn time_out(&self, job: &str) -> Option<Status> {
        self.state.end_job(job, Status::TimedOut)
    }

    /// A job as its client sees it; nothing once it has expired.
    pub fn job(&self, job: &str) -> Option<JobView> {
        self.state.lock().queue.view(job, Instant::now())
    }

    /// All jobs, by id.
    pub fn jobs(&self) -> Vec<JobView> {
        self.state.lock().queue.views(Instant::now())
    }

    /// How many jobs wait to be given out.
    pub fn waiting(&self) -> usize {
        self.state.lock().queue.waiting()
    }

    /// Lets something go wrong. Faults of one route come one after the other.
    pub fn fault(&self, route: Route, fault: Fault, extent: Extent) {
        self.state.lock().faults.add(route, fault, extent);
    }

    /// Lets nothing go wrong with a route any more.
    pub fn mend(&self, route: Route) {
        self.state.lock().faults.mend(route);
    }

    /// Everything that was asked so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().seen.clone()
    }

    /// What was asked of one route.
    pub fn seen_on(&self, route: Route) -> Vec<Seen> {
        self.state.lock().seen.iter().filter(|seen| seen.route == route).cloned().collect()
    }

    /// How often a route was asked.
    pub fn count(&self, route: Route) -> usize {
        self.state.lock().seen.iter().filter(|seen| seen.route == route).count()
    }

    /// How many requests of a route wait for their answer.
    pub fn in_flight(&self, route: Route) -> usize {
        self.state.lock().seen.iter().filter(|seen| seen.route == route && seen.outcome == Outcome::Open).count()
    }

    /// Time since its start: what the times of [`Seen`] count.
    pub fn clock(&self) -> Duration {
        self.state.clock()
    }

    /// Everything that is wrong with what was asked so far: the wire, the order of progress and results, answers that
    /// miss or are too many, pings that list the wrong jobs. For the end of a test whose workers live. Spacing is checked
    /// by [`order_problems`]; where a worker is killed, it and [`answer_problems`] still hold.
    pub fn problems(&self) -> Vec<String> {
        let seen = self.seen();
        let mut problems: Vec<String> = seen.iter().flat_map(wire_problems).collect();
        problems.extend(order_problems(&seen, Duration::ZERO));
        problems.extend(answer_problems(&seen));
        problems.extend(ping_problems(&seen, pings::SLACK));
        problems
    }

    /// Waits until `find` finds something. `what` says in an error what was waited for.
    pub async fn until<T>(
        &self,
        patience: Duration,
        what: &str,
        mut find: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T> {
        let mut changes = self.state.changes();
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            changes.mark_unchanged();
            if let Some(found) = find(self) {
                return Ok(found);
            }
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                let seen: Vec<String> = self.seen().iter().rev().take(10).map(Seen::line).collect();
                bail!("no {what} within {patience:?}; the last requests, newest first: {seen:#?}");
            }
        }
    }

    /// Waits until a job is where it should be.
    pub async fn until_status(&self, job: &str, status: Status, patience: Duration) -> Result<JobView> {
        let there = |platform: &Self| platform.job(job).filter(|view| view.status == status);
        self.until(patience, &format!("{} of job {job}", status.name()), there).await
    }

    /// Waits until so many requests of a route have been read.
    pub async fn until_count(&self, route: Route, count: usize, patience: Duration) -> Result<()> {
        let there = |platform: &Self| (platform.count(route) >= count).then_some(());
        self.until(patience, &format!("{count} requests of {}", route.name()), there).await
    }

    /// Waits for a take that is in flight and holds it: neither jobs nor time answer it, only the test does.
    pub async fn hold_take(&self, patience: Duration) -> Result<HeldTake> {
        self.until(patience, "take in flight", |platform| HeldTake::claim(&platform.state)).await
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        // Waits for nothing, so it may be dropped inside a runtime.
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

/// A job's body as an object.
fn object(body: Value) -> Map<String, Value> {
    match body {
        Value::Object(body) => body,
        other => panic!("a job is an object, not {other}"),
    }
}
