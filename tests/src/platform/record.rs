//! What was asked, and what came of it.

use std::time::Duration;

use serde_json::Value;

use super::{
    Route,
    http::Request,
    route::{Target, decoded, parameters},
};

/// A request as it was received. Times count from the start of the platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its place in the order of all requests.
    pub number: usize,
    /// When it had been read.
    pub at: Duration,
    /// The connection it came by, counted from 0.
    pub connection: usize,
    /// What it is.
    pub route: Route,
    /// Id of the worker, as its address has it.
    pub worker: String,
    /// Id of the job, where its address has one.
    pub job: Option<String>,
    /// Its method.
    pub method: String,
    /// Its target as it came: path and query.
    pub target: String,
    /// Its headers as they came.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
    /// Jobs the platform handed out for it, also where the answer never arrived.
    pub delivered: Vec<String>,
    /// Jobs the platform said to stop.
    pub stopped: Vec<String>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It waits for its answer.
    Open,
    /// It was answered.
    Answered {
        /// When the answer was sent.
        at: Duration,
        /// The status.
        status: u16,
        /// The body.
        body: Vec<u8>,
    },
    /// The platform closed the connection without a whole answer.
    Dropped {
        /// When that was.
        at: Duration,
    },
    /// The worker closed the connection before the answer.
    Left {
        /// When that was.
        at: Duration,
    },
}

// === impl Seen ===

impl Seen {
    pub(super) fn new(request: Request, number: usize, connection: usize, at: Duration) -> Self {
        let Target { route, worker, job } = Target::parse(&request.target, &request.body);
        let Request { method, target, headers, body } = request;
        let (delivered, stopped, outcome) = (Vec::new(), Vec::new(), Outcome::Open);
        Self { number, at, connection, route, worker, job, method, target, headers, body, delivered, stopped, outcome }
    }

    /// The value of a header, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The value of a parameter of the query, escapes resolved.
    pub fn parameter(&self, name: &str) -> Option<String> {
        parameters(self).into_iter().find(|(known, _)| *known == name).map(|(_, value)| decoded(value))
    }

    /// Its body, if that is JSON.
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// The ids a ping lists.
    pub fn listed(&self) -> Vec<String> {
        let ids = self.parameter("job_id").unwrap_or_default();
        ids.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect()
    }

    /// The status it was answered with.
    pub fn status(&self) -> Option<u16> {
        match self.outcome {
            Outcome::Answered { status, .. } => Some(status),
            _ => None,
        }
    }

    /// Whether it was answered with a 2xx.
    pub fn acknowledged(&self) -> bool {
        self.status().is_some_and(|status| (200..300).contains(&status))
    }

    /// When it was over, however.
    pub fn ended(&self) -> Option<Duration> {
        match self.outcome {
            Outcome::Open => None,
            Outcome::Answered { at, .. } | Outcome::Dropped { at } | Outcome::Left { at } => Some(at),
        }
    }

    /// One line for people: when, what, and what came of it.
    pub fn line(&self) -> String {
        let came = match &self.outcome {
            Outcome::Open => "open".to_owned(),
            Outcome::Answered { status, .. } => status.to_string(),
            Outcome::Dropped { .. } => "dropped".to_owned(),
            Outcome::Left { .. } => "left".to_owned(),
        };
        let body: String = String::from_utf8_lossy(&self.body).chars().take(200).collect();
        format!("{:9.3} {} {} -> {came} {body}", self.at.as_secs_f64(), self.method, self.target)
    }

    /// Whether this job was handed out for it and the answer was sent.
    pub fn delivers(&self, job: &str) -> bool {
        self.acknowledged() && self.delivered.iter().any(|known| known == job)
    }
}
