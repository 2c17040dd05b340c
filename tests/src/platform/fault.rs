//! What goes wrong, where and for how long.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{Route, http::Reply};

/// What goes wrong with a request.
#[derive(Debug, Clone)]
pub struct Fault {
    pub(super) waits: Duration,
    pub(super) has_effect: bool,
    pub(super) answers_after: Duration,
    pub(super) answer: Answer,
    pub(super) closes: bool,
    job: Option<String>,
}

/// How a request is answered.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Right,
    Instead(Reply),
    Dropped,
    Closed,
    Cut,
}

/// How long something goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// For so many requests.
    Times(u32),
    /// For so long, counted from the first request it meets.
    Lasting(Duration),
    /// Until the route is mended.
    UntilMended,
}

/// What goes wrong and has not ended, in the order it was asked for.
#[derive(Default)]
pub(super) struct Faults(VecDeque<Script>);

struct Script {
    route: Route,
    fault: Fault,
    extent: Extent,
    met: Option<Instant>,
}

// === impl Fault ===

impl Fault {
    const NONE: Self = Self {
        waits: Duration::ZERO,
        has_effect: true,
        answers_after: Duration::ZERO,
        answer: Answer::Right,
        closes: false,
        job: None,
    };

    /// Refused with a status; the platform takes no note of the request.
    pub fn status(status: u16) -> Self {
        Self::instead(Reply { body: br#"{"error":"planted"}"#.to_vec(), ..Reply::empty(status) })
    }

    /// The connection is reset without an answer; the platform takes no note of the request.
    pub fn dropped() -> Self {
        Self { has_effect: false, answer: Answer::Dropped, ..Self::NONE }
    }

    /// The connection is closed in good order but without an answer; the platform takes no note of the request.
    pub fn closed() -> Self {
        Self { has_effect: false, answer: Answer::Closed, ..Self::NONE }
    }

    /// The answer ends in its middle; the platform takes no note of the request.
    pub fn cut() -> Self {
        Self { has_effect: false, answer: Answer::Cut, ..Self::NONE }
    }

    /// The platform does what it should at once and answers after a pause.
    pub fn slow(pause: Duration) -> Self {
        Self { answers_after: pause, ..Self::NONE }
    }

    /// All is well, and then the connection is closed without a word, as idle ones are.
    pub fn closing() -> Self {
        Self { closes: true, ..Self::NONE }
    }

    /// A status, a content type and a body of the test's own; the platform takes no note of the request.
    pub fn reply(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self::instead(Reply { status, content_type, body: body.into() })
    }

    /// 200, called JSON, and none.
    pub fn no_json() -> Self {
        Self::reply(200, "application/json", "{\"id\": \"half a j")
    }

    /// 200 and a page for people.
    pub fn html() -> Self {
        Self::reply(200, "text/html", "<html><body>Be right back.</body></html>")
    }

    /// 200 without a body.
    pub fn empty() -> Self {
        Self::reply(200, "application/json", "")
    }

    /// 200 and a job that has no id.
    pub fn job_without_id() -> Self {
        Self::reply(200, "application/json", r#"{"delayTime":1,"input":{"dataset_url":"https://example.com"}}"#)
    }

    /// The platform does what it should and only then goes wrong: the worker cannot know.
    pub fn after_effect(self) -> Self {
        Self { has_effect: true, ..self }
    }

    /// Nothing happens for a while, then this.
    pub fn waiting(self, pause: Duration) -> Self {
        Self { waits: pause, ..self }
    }

    /// Only where the address names this job.
    pub fn for_job(self, job: &str) -> Self {
        Self { job: Some(job.to_owned()), ..self }
    }

    fn instead(reply: Reply) -> Self {
        Self { has_effect: false, answer: Answer::Instead(reply), ..Self::NONE }
    }
}

// === impl Faults ===

impl Faults {
    pub(super) fn add(&mut self, route: Route, fault: Fault, extent: Extent) {
        self.0.push_back(Script { route, fault, extent, met: None });
    }

    pub(super) fn mend(&mut self, route: Route) {
        self.0.retain(|script| script.route != route);
    }

    /// What goes wrong with this request. The oldest fault that is not over has it.
    pub(super) fn next(&mut self, route: Route, job: Option<&str>, now: Instant) -> Fault {
        let over = |script: &Script| match script.extent {
            Extent::Times(left) => left == 0,
            Extent::Lasting(time) => script.met.is_some_and(|met| now > met + time),
            Extent::UntilMended => false,
        };
        self.0.retain(|script| !over(script));
        let meets = |script: &&mut Script| {
            script.route == route && script.fault.job.as_deref().is_none_or(|wanted| Some(wanted) == job)
        };
        let Some(script) = self.0.iter_mut().find(meets) else { return Fault::NONE };
        script.met.get_or_insert(now);
        if let Extent::Times(left) = &mut script.extent {
            *left -= 1;
        }
        script.fault.clone()
    }
}
