//! Which jobs a worker says it has, held against those it has.

use std::time::Duration;

use super::{Route, Seen, checks::stopped};

/// How long a worker may take to notice that it has a job, or has one no more, on a busy machine.
pub(super) const SLACK: Duration = Duration::from_millis(500);

/// A ping that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ping {
    /// When.
    pub at: Duration,
    /// From which worker.
    pub worker: String,
    /// The jobs it lists, in its order.
    pub jobs: Vec<String>,
}

/// A job in a worker's hands: from the answer to its take to the answer to its result, or to the word to stop it.
struct Hands<'a> {
    job: &'a str,
    worker: &'a str,
    from: Duration,
    to: Option<Duration>,
    /// A worker that is told to stop may let go at any time after that.
    stopped: Option<Duration>,
}

/// All pings in order.
pub fn pings(seen: &[Seen]) -> Vec<Ping> {
    let pings = seen.iter().filter(|seen| seen.route == Route::Ping);
    pings.map(|seen| Ping { at: seen.at, worker: seen.worker.clone(), jobs: seen.listed() }).collect()
}

/// The longest time between two pings of a worker, one after the other.
pub fn ping_gap(seen: &[Seen], worker: &str) -> Option<Duration> {
    let times: Vec<Duration> = pings(seen).iter().filter(|ping| ping.worker == worker).map(|ping| ping.at).collect();
    times.windows(2).map(|pair| pair[1] - pair[0]).max()
}

/// Pings that list jobs a worker does not have, or miss jobs it has, and takes whose `job_in_progress` is wrong. A job
/// is in its hands from the take's answer to the answer of its result; `slack` is how long it may take to notice either.
/// Not for tests that kill a worker: it forgets what it had.
pub fn ping_problems(seen: &[Seen], slack: Duration) -> Vec<String> {
    let hands = hands(seen);
    let mut problems = Vec::new();
    for request in seen.iter().filter(|seen| seen.route == Route::Ping || seen.route.takes()) {
        let has = |hands: &&Hands<'_>| hands.worker == request.worker && hands.surely(request.at, slack);
        let may_have = |hands: &&Hands<'_>| hands.worker == request.worker && hands.perhaps(request.at, slack);
        if request.route == Route::Ping {
            // A worker that says it is not healthy lists none.
            if request.parameter("status").is_some() {
                continue;
            }
            let listed = request.listed();
            let missing = hands.iter().filter(has).filter(|hands| !listed.iter().any(|job| job == hands.job));
            problems.extend(missing.map(|hands| format!("ping {} misses job {}", request.number, hands.job)));
            let wrong = |job: &&String| !hands.iter().filter(may_have).any(|hands| hands.job == **job);
            problems.extend(
                listed
                    .iter()
                    .filter(wrong)
                    .map(|job| format!("ping {} lists job {job}, which the worker does not have", request.number)),
            );
            continue;
        }
        let said = request.parameter("job_in_progress");
        let should = match (hands.iter().any(|it| has(&it)), hands.iter().any(|it| may_have(&it))) {
            (true, _) => "1",
            (_, false) => "0",
            _ => continue,
        };
        if said.as_deref().is_some_and(|said| said != should) {
            problems.push(format!("take {} should say job_in_progress={should}", request.number));
        }
    }
    problems
}

fn hands(seen: &[Seen]) -> Vec<Hands<'_>> {
    let mut all = Vec::new();
    for take in seen.iter().filter(|seen| seen.acknowledged()) {
        for job in &take.delivered {
            let from = take.ended().unwrap_or(take.at);
            let is_end = |other: &&Seen| {
                other.route == Route::Done
                    && other.acknowledged()
                    && other.worker == take.worker
                    && other.job.as_ref() == Some(job)
            };
            let to = seen.iter().filter(is_end).filter_map(Seen::ended).filter(|to| *to >= from).min();
            let told = stopped(seen).filter(|(other, it)| other.worker == take.worker && it == job);
            let stopped = told.filter_map(|(other, _)| other.ended()).filter(|at| *at >= from).min();
            all.push(Hands { job, worker: &take.worker, from, to, stopped });
        }
    }
    all
}

// === impl Hands ===

impl Hands<'_> {
    fn surely(&self, at: Duration, slack: Duration) -> bool {
        let let_go = self.to.into_iter().chain(self.stopped).min();
        self.from + slack < at && let_go.is_none_or(|let_go| at < let_go)
    }

    fn perhaps(&self, at: Duration, slack: Duration) -> bool {
        self.from <= at && self.to.is_none_or(|to| at <= to + slack)
    }
}
