//! The table of addresses: what is there, and what it is for. The server answers out of it, and `/openapi.json` describes it.

use hyper::Method;
use serde_json::{Value, json};

/// What an address does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Run,
    RunSync,
    Status,
    StatusSync,
    Stream,
    Cancel,
    Retry,
    Health,
    PurgeQueue,
    Requests,
    Metrics,
    OpenApi,
}

/// An address.
#[derive(Debug)]
pub(super) struct Route {
    /// Its path, without the job's id.
    pub(super) name: &'static str,
    pub(super) operation: Operation,
    pub(super) methods: Methods,
    /// Whether the id of a job follows.
    pub(super) of_job: bool,
    /// Whether one can wait there, and how long by default, in milliseconds.
    pub(super) wait: Option<u64>,
    pub(super) summary: &'static str,
    /// A schema of its answer, in `components` of the description.
    pub(super) answers: &'static str,
}

/// The most that a client can wait, in milliseconds; RunPod's limit.
pub(super) const LONGEST_WAIT: u64 = 300_000;
/// Unless it says how long.
const USUAL_WAIT: u64 = 90_000;

/// How one may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Methods {
    Get,
    Post,
    /// Clients differ: some ask for a status with GET, some with POST.
    Both,
}

/// All of them.
pub(super) const ROUTES: &[Route] = &[
    route("run", Operation::Run, Methods::Post, false, None, "Puts a job into the queue.", "Job"),
    route(
        "runsync",
        Operation::RunSync,
        Methods::Post,
        false,
        Some(USUAL_WAIT),
        "Puts a job into the queue and waits for its end.",
        "Job",
    ),
    route("status", Operation::Status, Methods::Both, true, None, "How far a job is, and what came out of it.", "Job"),
    route(
        "status-sync",
        Operation::StatusSync,
        Methods::Both,
        true,
        Some(USUAL_WAIT),
        "The same, once the job is over.",
        "Job",
    ),
    route(
        "stream",
        Operation::Stream,
        Methods::Both,
        true,
        Some(0),
        "What a job has shown since this was asked last.",
        "Stream",
    ),
    route("cancel", Operation::Cancel, Methods::Post, true, None, "Ends a job.", "Job"),
    route(
        "retry",
        Operation::Retry,
        Methods::Post,
        true,
        None,
        "Puts a job that failed into the queue once more.",
        "Job",
    ),
    route("health", Operation::Health, Methods::Both, false, None, "How many jobs there are of each kind.", "Health"),
    route("purge-queue", Operation::PurgeQueue, Methods::Post, false, None, "Forgets all jobs that wait.", "Purged"),
    route(
        "requests",
        Operation::Requests,
        Methods::Both,
        false,
        None,
        "All jobs that are remembered, the newest first.",
        "Requests",
    ),
    route("metrics", Operation::Metrics, Methods::Get, false, None, "Numbers for Prometheus.", ""),
    route("openapi.json", Operation::OpenApi, Methods::Get, false, None, "This description.", "Description"),
];

const fn route(
    name: &'static str,
    operation: Operation,
    methods: Methods,
    of_job: bool,
    wait: Option<u64>,
    summary: &'static str,
    answers: &'static str,
) -> Route {
    Route { name, operation, methods, of_job, wait, summary, answers }
}

/// The address of a path, and the job's id: `/x`, `/{endpoint}/x` and `/v2/{endpoint}/x` are the same.
pub(super) fn find(path: &str) -> Option<(&'static Route, Option<&str>)> {
    let path = path.strip_prefix('/')?;
    let parts: Vec<&str> = path.strip_suffix('/').unwrap_or(path).splitn(5, '/').collect();
    let alone = |name: &str| ROUTES.iter().find(|route| !route.of_job && route.name == name);
    let of_job = |name: &str| ROUTES.iter().find(|route| route.of_job && route.name == name);
    let id = |text: &str| {
        (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    let found = match parts[..] {
        [name] => (alone(name)?, None),
        // An endpoint is not called like an address.
        [name, job] if of_job(name).is_some() && id(job) => (of_job(name)?, Some(job)),
        [endpoint, name] if !endpoint.is_empty() => (alone(name)?, None),
        ["v2", endpoint, name] if !endpoint.is_empty() && alone(name).is_some() => (alone(name)?, None),
        [endpoint, name, job] if !endpoint.is_empty() && id(job) => (of_job(name)?, Some(job)),
        ["v2", endpoint, name, job] if !endpoint.is_empty() && id(job) => (of_job(name)?, Some(job)),
        _ => return None,
    };
    Some(found)
}

// === impl Methods ===

impl Methods {
    pub(super) fn take(self, method: &Method) -> bool {
        (self != Self::Post && method == Method::GET) || (self != Self::Get && method == Method::POST)
    }

    /// As a header says it.
    pub(super) fn allowed(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Both => "GET, POST",
        }
    }
}

// === impl Route ===

impl Route {
    /// Its path, as a description writes it.
    pub(super) fn path(&self) -> String {
        if self.of_job { format!("/{}/{{id}}", self.name) } else { format!("/{}", self.name) }
    }

    /// What can be said in its address.
    pub(super) fn parameters(&self) -> Vec<Value> {
        let id = json!({
            "name": "id", "in": "path", "required": true, "description": "The id that /run gave.",
            "schema": { "type": "string" },
        });
        let wait = self.wait.map(|usual| {
            json!({
                "name": "wait", "in": "query", "description": "So many milliseconds are waited at most.",
                "schema": { "type": "integer", "minimum": 0, "maximum": LONGEST_WAIT, "default": usual },
            })
        });
        self.of_job.then_some(id).into_iter().chain(wait).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str) -> Option<(Operation, Option<&str>)> {
        find(path).map(|(route, id)| (route.operation, id))
    }

    #[test]
    fn every_address_is_there_in_all_three_forms() {
        for route in ROUTES {
            let id = route.of_job.then_some("7c-u1");
            let path = route.path().replace("{id}", "7c-u1");
            for prefix in ["", "/my-endpoint", "/v2/my-endpoint", "/v2"] {
                assert_eq!(found(&format!("{prefix}{path}")), Some((route.operation, id)), "{prefix}{path}");
            }
            assert_eq!(found(&format!("{path}/")), Some((route.operation, id)));
        }
    }

    #[test]
    fn other_paths_are_nowhere() {
        for path in [
            "/",
            "",
            "run",
            "/x",
            "/status",
            "/status/",
            "/run/x",
            "//run",
            "/v2//run",
            "/v1/e/run",
            "/v2/e/x/run",
            "/status/a/b",
            "/status/..",
            "/status/a%2fb",
            "/e/status/",
            "/v2/e/status/a/b",
            "/v2/e/status/a b",
            "/RUN",
        ] {
            assert_eq!(found(path), None, "{path}");
        }
        assert_eq!(found(&format!("/status/{}", "x".repeat(129))), None);
    }

    #[test]
    fn a_job_may_be_called_like_an_address() {
        assert_eq!(found("/status/health"), Some((Operation::Status, Some("health"))));
        assert_eq!(found("/e/status/run"), Some((Operation::Status, Some("run"))));
    }
}
