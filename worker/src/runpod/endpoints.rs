//! The platform's addresses, from templates in the environment.

use std::{fmt::Write, time::Duration};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use thiserror::Error;
use url::{Url, form_urlencoded};

use crate::redacted::Redacted;

/// Where the platform's jobs come from; without it there is no platform.
const TAKE: &str = "RUNPOD_WEBHOOK_GET_JOB";
const DONE: &str = "RUNPOD_WEBHOOK_POST_OUTPUT";
const PING: &str = "RUNPOD_WEBHOOK_PING";
const INTERVAL: &str = "RUNPOD_PING_INTERVAL";
const KEY: &str = "RUNPOD_AI_API_KEY";
const WORKER: &str = "RUNPOD_POD_ID";
const HOSTNAME: &str = "RUNPOD_POD_HOSTNAME";
const GPU: [&str; 2] = ["RUNPOD_GPU_TYPE_ID", "RUNPOD_GPU_NAME"];

/// Where templates say so, a worker's or a job's name is put.
const ID: &str = "$ID";
const WORKER_ID: &str = "$RUNPOD_POD_ID";
const GPU_ID: &str = "$RUNPOD_GPU_TYPE_ID";

/// The part of the address of jobs that is another one in the addresses beside it.
const TAKE_PATH: &str = "/job-take/";
const BATCH_PATH: &str = "/job-take-batch/";
const STOP_PATH: &str = "/job-stop/";

/// What stands for itself in no part of an address.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What every ping says of its sender.
const VERSION: (&str, &str) = ("runpod_version", env!("CARGO_PKG_VERSION"));
/// Letters of a reason that the platform takes.
const MAX_REASON: usize = 256;

/// Between two pings, unless the platform says otherwise.
const USUAL_INTERVAL: Duration = Duration::from_secs(10);
/// What the platform says is believed between these.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// The platform's addresses for one worker.
#[derive(Debug, Clone)]
pub struct Endpoints {
    /// Name of this worker.
    pub worker: String,
    /// Name of its machine, for error reports.
    pub hostname: String,
    /// Between two pings.
    pub interval: Duration,
    pub(super) key: Option<Redacted<String>>,
    take: String,
    done: String,
    ping: Option<String>,
}

/// Why the platform's addresses cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum EndpointsError {
    /// A variable is missing.
    #[error("{0} is not set, but RUNPOD_WEBHOOK_GET_JOB is; the platform sets both")]
    Missing(&'static str),
    /// It is no address.
    #[error("{name} is no http:// or https:// address; the platform sets it, so it should not be changed")]
    NoAddress {
        /// The variable.
        name: &'static str,
    },
}

// === impl Endpoints ===

impl Endpoints {
    /// The addresses that the environment names; nothing where this is no worker of the platform's.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, EndpointsError> {
        let value = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let Some(take) = value(TAKE) else { return Ok(None) };
        let done = value(DONE).ok_or(EndpointsError::Missing(DONE))?;
        let key = value(KEY).map(Redacted::hidden);
        let worker = value(WORKER);
        // Without a key or a name the platform would not know whose ping it is.
        let ping = value(PING).filter(|_| key.is_some() && worker.is_some());
        let worker = worker.unwrap_or_else(|| format!("worker-{:016x}", fastrand::u64(..)));
        let gpu = GPU.iter().find_map(|name| value(name)).unwrap_or_default();
        let fill =
            |template: String| template.replace(WORKER_ID, &encoded(&worker)).replace(GPU_ID, &encoded_once(&gpu));
        let milliseconds = value(INTERVAL).and_then(|text| text.parse().ok());
        let interval = milliseconds.map_or(USUAL_INTERVAL, Duration::from_millis);
        let endpoints = Self {
            take: fill(take).replace(ID, &encoded(&worker)),
            done: fill(done),
            ping: ping.map(fill),
            interval: interval.clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL),
            hostname: value(HOSTNAME).unwrap_or_else(|| "unknown".to_owned()),
            key,
            worker,
        };
        endpoints.check()?;
        Ok(Some(endpoints))
    }

    fn check(&self) -> Result<(), EndpointsError> {
        let is_address =
            |text: &str| Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let done = self.done.replace(ID, "job");
        let all = [(TAKE, Some(&self.take)), (DONE, Some(&done)), (PING, self.ping.as_ref())];
        match all.into_iter().find(|(_, text)| text.is_some_and(|text| !is_address(text))) {
            Some((name, _)) => Err(EndpointsError::NoAddress { name }),
            None => Ok(()),
        }
    }

    /// Where one job is asked for, or several at once. `busy`: jobs are here already.
    pub(super) fn take(&self, count: usize, busy: bool) -> Option<Url> {
        let busy = u8::from(busy).to_string();
        let batch = count.to_string();
        match self.take.contains(TAKE_PATH) && count > 1 {
            true => {
                let address = self.take.replacen(TAKE_PATH, BATCH_PATH, 1);
                with_query(&address, &[("batch_size", &batch), ("job_in_progress", &busy)])
            }
            false => with_query(&self.take, &[("job_in_progress", &busy)]),
        }
    }

    /// Where it is asked which jobs are to be stopped; nothing where the platform has no such address.
    pub(super) fn stop(&self) -> Option<Url> {
        let has = self.take.contains(TAKE_PATH);
        has.then(|| self.take.replacen(TAKE_PATH, STOP_PATH, 1)).and_then(|address| with_query(&address, &[]))
    }

    /// Where something is said of a job.
    pub(super) fn done(&self, job: &str) -> Option<Url> {
        with_query(&self.done.replace(ID, &encoded(job)), &[("isStream", "false")])
    }

    /// Where a sign of life goes, with the jobs that are here; nothing where none is wanted.
    pub(super) fn ping(&self, jobs: &[String]) -> Option<Url> {
        let jobs = jobs.join(",");
        let listed = (!jobs.is_empty()).then_some(("job_id", jobs.as_str()));
        let query: Vec<_> = listed.into_iter().chain([VERSION]).collect();
        with_query(self.ping.as_ref()?, &query)
    }

    /// Where it is told that this worker cannot work, and why.
    pub(super) fn unhealthy(&self, check: &str, reason: &str) -> Option<Url> {
        let reason: String = reason.chars().take(MAX_REASON).collect();
        with_query(self.ping.as_ref()?, &[("status", "unhealthy"), ("check", check), ("reason", &reason), VERSION])
    }
}

/// A query is begun, or goes on, whichever the template needs.
fn with_query(address: &str, query: &[(&str, &str)]) -> Option<Url> {
    let mut address = address.trim_end_matches(['?', '&']).to_owned();
    for (name, value) in query {
        address.push(if address.contains('?') { '&' } else { '?' });
        let value: String = form_urlencoded::byte_serialize(value.as_bytes()).collect();
        // Writing to a string does not fail.
        let _ = write!(address, "{name}={value}");
    }
    Url::parse(&address).ok()
}

/// A name as one part of a path.
fn encoded(name: &str) -> String {
    utf8_percent_encode(name, RESERVED).to_string()
}

/// The platform has encoded the names of GPUs already: `NVIDIA+GeForce+RTX+4090`.
fn encoded_once(name: &str) -> String {
    if name.contains([' ', '&', '#']) {
        form_urlencoded::byte_serialize(name.as_bytes()).collect()
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "https://api.runpod.ai/v2/ep123";

    fn endpoints(variables: &[(&str, &str)]) -> Result<Option<Endpoints>, EndpointsError> {
        Endpoints::from_variables(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn usual() -> Endpoints {
        let (take, done) = (
            format!("{BASE}/job-take/$ID?gpu=NVIDIA+A100"),
            format!("{BASE}/job-done/$RUNPOD_POD_ID/$ID?gpu=NVIDIA+A100"),
        );
        let ping = format!("{BASE}/ping/$RUNPOD_POD_ID");
        let variables = [
            (TAKE, take.as_str()),
            (DONE, &done),
            (PING, &ping),
            (KEY, "rpa_S3CR3T"),
            (WORKER, "w-1"),
            (INTERVAL, "4000"),
        ];
        endpoints(&variables).unwrap().unwrap()
    }

    fn text(url: Option<Url>) -> String {
        url.unwrap().to_string()
    }

    #[test]
    fn the_usual_templates_are_filled() {
        let usual = usual();
        assert_eq!(text(usual.take(1, false)), format!("{BASE}/job-take/w-1?gpu=NVIDIA+A100&job_in_progress=0"));
        let batch = format!("{BASE}/job-take-batch/w-1?gpu=NVIDIA+A100&batch_size=3&job_in_progress=1");
        assert_eq!(text(usual.take(3, true)), batch);
        assert_eq!(text(usual.stop()), format!("{BASE}/job-stop/w-1?gpu=NVIDIA+A100"));
        assert_eq!(text(usual.done("j-u1")), format!("{BASE}/job-done/w-1/j-u1?gpu=NVIDIA+A100&isStream=false"));
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(text(usual.ping(&[])), format!("{BASE}/ping/w-1?runpod_version={version}"));
        let two = ["a".to_owned(), "b".to_owned()];
        assert_eq!(text(usual.ping(&two)), format!("{BASE}/ping/w-1?job_id=a%2Cb&runpod_version={version}"));
        let unhealthy = text(usual.unhealthy("disk", &"no room ".repeat(100)));
        assert!(unhealthy.starts_with(&format!("{BASE}/ping/w-1?status=unhealthy&check=disk&reason=no+room+no")));
        assert!(unhealthy.len() < 400 && unhealthy.ends_with(&format!("&runpod_version={version}")));
        assert_eq!(usual.interval, Duration::from_secs(4));
        assert!(!format!("{usual:?}").contains("S3CR3T"));
    }

    #[test]
    fn the_hub_harness_has_shorter_ones() {
        let take = "http://127.0.0.1:80/v2/IDE/job-take/$RUNPOD_POD_ID";
        let done = "http://127.0.0.1:80/v2/IDE/job-done/$RUNPOD_POD_ID/$ID?gpu=$RUNPOD_GPU_TYPE_ID";
        let hub = endpoints(&[(TAKE, take), (DONE, done), (WORKER, "p")]).unwrap().unwrap();
        assert_eq!(text(hub.take(1, false)), "http://127.0.0.1/v2/IDE/job-take/p?job_in_progress=0");
        assert_eq!(text(hub.done("0")), "http://127.0.0.1/v2/IDE/job-done/p/0?gpu=&isStream=false");
        assert_eq!(hub.ping(&[]), None);
        let named = [(TAKE, take), (DONE, done), (WORKER, "p"), ("RUNPOD_GPU_NAME", "NVIDIA+GeForce+RTX+4090")];
        let named = endpoints(&named).unwrap().unwrap();
        assert!(text(named.done("0")).contains("gpu=NVIDIA+GeForce+RTX+4090&"));
    }

    #[test]
    fn a_template_of_another_shape_has_neither_batches_nor_stops() {
        let odd = endpoints(&[(TAKE, "http://h/jobs?worker=$ID"), (DONE, "http://h/done/$ID")]).unwrap().unwrap();
        assert_eq!(text(odd.take(3, true)), format!("http://h/jobs?worker={}&job_in_progress=1", odd.worker));
        assert_eq!(odd.stop(), None);
        assert!(odd.worker.starts_with("worker-"));
    }

    #[test]
    fn names_of_jobs_cannot_leave_their_place() {
        assert_eq!(
            text(usual().done("../../x?y#z")),
            format!("{BASE}/job-done/w-1/..%2F..%2Fx%3Fy%23z?gpu=NVIDIA+A100&isStream=false")
        );
    }

    #[test]
    fn what_cannot_work_is_named() {
        assert!(endpoints(&[]).unwrap().is_none());
        assert_eq!(endpoints(&[(TAKE, "http://h/job-take/$ID")]).unwrap_err(), EndpointsError::Missing(DONE));
        let error = endpoints(&[(TAKE, "JOB_TAKE_URL"), (DONE, "http://h/$ID")]).unwrap_err();
        assert_eq!(error, EndpointsError::NoAddress { name: TAKE });
    }

    #[test]
    fn intervals_that_would_spin_or_starve_are_corrected() {
        let with = |interval: &str| {
            let variables = [(TAKE, "http://h/$ID"), (DONE, "http://h/$ID"), (INTERVAL, interval)];
            endpoints(&variables).unwrap().unwrap().interval
        };
        assert_eq!((with("0"), with("999999999"), with("soon")), (SHORTEST_INTERVAL, LONGEST_INTERVAL, USUAL_INTERVAL));
    }
}
