//! What must hold between requests: rates, order, exactly one answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Route, Seen};

/// What matters to one job, in order.
enum Event<'a> {
    GivenOut(&'a Seen),
    Posted(&'a Seen),
}

/// What is known of a job since it was given out last.
#[derive(Default)]
struct Run<'a> {
    workers: Vec<&'a str>,
    last_progress: Option<&'a Seen>,
    last_result: Option<&'a Seen>,
    acknowledged: bool,
}

/// The most requests of a route within any window of this length.
pub fn most_within(seen: &[Seen], route: Route, window: Duration) -> usize {
    let times: Vec<Duration> = seen.iter().filter(|seen| seen.route == route).map(|seen| seen.at).collect();
    let within =
        |(first, at): (usize, &Duration)| times[first..].iter().take_while(|time| **time - *at < window).count();
    times.iter().enumerate().map(within).max().unwrap_or(0)
}

/// What is wrong with the order of a job's posts: before it was given out or by another worker; progress or stream
/// after the result; a result while a progress is unanswered; a second result; progress less than `spacing` apart.
/// A job that is given out again starts anew.
pub fn order_problems(seen: &[Seen], spacing: Duration) -> Vec<String> {
    let jobs = events(seen);
    jobs.into_iter().flat_map(|(job, events)| order_of_one(job, events, spacing)).collect()
}

/// Jobs that a worker was given and has not answered for, or answered for too often. Only a result with an answer 2xx
/// counts; a job that was to be stopped needs none; one that was given out twice may be answered twice, in the same
/// words. For the end of a test: a job that still runs has no answer yet.
pub fn answer_problems(seen: &[Seen]) -> Vec<String> {
    let stopped: BTreeSet<&str> = stopped(seen).map(|(_, job)| job).collect();
    let mut problems = Vec::new();
    for (job, events) in events(seen) {
        let given_out = events.iter().filter(|event| matches!(event, Event::GivenOut(_))).count();
        let results: Vec<&Seen> = events
            .iter()
            .filter_map(|event| match event {
                Event::Posted(seen) if seen.route == Route::Done && seen.acknowledged() => Some(*seen),
                _ => None,
            })
            .collect();
        if results.is_empty() && given_out > 0 && !stopped.contains(job) {
            problems.push(format!("job {job} was given out and never answered"));
        }
        if results.len() > given_out {
            problems.push(format!("job {job} was given out {given_out} times and answered {} times", results.len()));
        }
        if results.windows(2).any(|pair| pair[0].body != pair[1].body) {
            problems.push(format!("the answers for job {job} differ"));
        }
    }
    problems
}

/// Every job a worker was told to stop, with the request that was answered so.
pub(super) fn stopped(seen: &[Seen]) -> impl Iterator<Item = (&Seen, &str)> {
    let told = seen.iter().filter(|seen| seen.acknowledged());
    told.flat_map(|seen| seen.stopped.iter().map(move |job| (seen, job.as_str())))
}

/// By job, in the order of time: a job is given out when the take is answered.
fn events(seen: &[Seen]) -> BTreeMap<&str, Vec<Event<'_>>> {
    let mut all: Vec<(Duration, &str, Event<'_>)> = Vec::new();
    for seen in seen {
        for job in seen.delivered.iter().filter(|_| seen.acknowledged()) {
            all.push((seen.ended().unwrap_or(seen.at), job, Event::GivenOut(seen)));
        }
        if let (Route::Progress | Route::Done | Route::Stream, Some(job)) = (seen.route, &seen.job) {
            all.push((seen.at, job, Event::Posted(seen)));
        }
    }
    all.sort_by_key(|(at, ..)| *at);
    let mut jobs: BTreeMap<&str, Vec<Event<'_>>> = BTreeMap::new();
    for (_, job, event) in all {
        jobs.entry(job).or_default().push(event);
    }
    jobs
}

fn order_of_one(job: &str, events: Vec<Event<'_>>, spacing: Duration) -> Vec<String> {
    let mut problems = Vec::new();
    let mut run = Run::default();
    for event in events {
        let seen = match event {
            // Progress goes on where the same worker has the job twice.
            Event::GivenOut(seen) => {
                run.workers.push(&seen.worker);
                (run.last_result, run.acknowledged) = (None, false);
                continue;
            }
            Event::Posted(seen) => seen,
        };
        let found = match seen.route {
            Route::Done => run.result(seen),
            _ => run.progress(seen, spacing),
        };
        let who = match run.workers.contains(&seen.worker.as_str()) {
            true => None,
            false if run.workers.is_empty() => Some("it had not been given out".to_owned()),
            false => Some(format!("worker {} was not given it", seen.worker)),
        };
        let name = seen.route.name();
        problems.extend(
            found.into_iter().chain(who).map(|text| format!("job {job}: {name} of request {}: {text}", seen.number)),
        );
    }
    problems
}

// === impl Run ===

impl<'a> Run<'a> {
    fn result(&mut self, seen: &'a Seen) -> Vec<String> {
        let mut problems = Vec::new();
        if self.acknowledged {
            problems.push("it had its result already".to_owned());
        }
        // An open progress could still arrive after it.
        if let Some(progress) = self.last_progress.filter(|last| last.ended().is_none_or(|ended| ended > seen.at)) {
            problems.push(format!("request {} with progress had no answer yet", progress.number));
        }
        // Another text is only right where the platform did not like the first.
        let refused = |last: &Seen| last.status().is_some_and(|status| (400..500).contains(&status));
        if self.last_result.is_some_and(|last| !self.acknowledged && !refused(last) && last.body != seen.body) {
            problems.push("another result than the attempt before".to_owned());
        }
        self.acknowledged |= seen.acknowledged();
        self.last_result = Some(seen);
        problems
    }

    fn progress(&mut self, seen: &'a Seen, spacing: Duration) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(result) = self.last_result {
            problems.push(format!("it comes after the result of request {}", result.number));
        }
        if seen.route == Route::Progress {
            if let Some(last) = self.last_progress.filter(|last| seen.at < last.at + spacing) {
                problems.push(format!("only {:?} after the one before", seen.at - last.at));
            }
            self.last_progress = Some(seen);
        }
        problems
    }
}
