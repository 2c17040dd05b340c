//! Numbers for Prometheus. Nothing that a stranger has written is in their labels.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Mutex, PoisonError},
};

use serde_json::Value;

use super::{queue::Queue, record::Status};
use crate::this_machine;

/// Bounds of the histogram of times between submission and start, in seconds.
const BOUNDS: [f64; 10] = [0.01, 0.05, 0.1, 0.5, 1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0];

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    answers: BTreeMap<(&'static str, u16), u64>,
    ended: BTreeMap<Status, u64>,
    starts: [u64; BOUNDS.len()],
    started: u64,
    start_seconds: f64,
}

// === impl Metrics ===

impl Metrics {
    /// A request was answered.
    pub(super) fn answered(&self, route: &'static str, code: u16) {
        self.with(|counts| *counts.answers.entry((route, code)).or_default() += 1);
    }

    /// A job began after so many milliseconds.
    pub(super) fn began(&self, waited: i64) {
        let seconds = waited as f64 / 1000.0;
        self.with(|counts| {
            let bounds = BOUNDS.iter().zip(&mut counts.starts).filter(|(bound, _)| seconds <= **bound);
            bounds.for_each(|(_, count)| *count += 1);
            counts.started += 1;
            counts.start_seconds += seconds;
        });
    }

    /// A job ended so.
    pub(super) fn ended(&self, status: Status) {
        self.with(|counts| *counts.ended.entry(status).or_default() += 1);
    }

    /// All of it, as Prometheus reads it.
    pub(super) fn text(&self, queue: &Queue) -> String {
        let mut page = Page::default();
        let (jobs, _) = queue.counts();
        page.head("brightrun_jobs", "gauge", "Jobs that are remembered.");
        for (status, count) in jobs {
            page.line("brightrun_jobs", &format!("{{status=\"{}\"}}", status.name()), count as f64);
        }
        let waiting = jobs.iter().find(|(status, _)| *status == Status::InQueue).map_or(0, |(_, count)| *count);
        page.single("brightrun_queue_length", "gauge", "Jobs that wait.", Some(waiting as f64));
        self.with(|counts| counts.write(&mut page));
        let latest = queue.latest();
        let number = |path: &str| latest.as_ref()?.pointer(path).and_then(Value::as_f64);
        for (name, path, help) in [
            ("brightrun_job_step", "/current_step", "Steps of the job that runs."),
            ("brightrun_job_progress_percent", "/progress", "How much of the job that runs is done."),
            ("brightrun_job_training_loss", "/metrics/training_loss", "Smoothed training loss of the job that runs."),
            ("brightrun_job_tokens_per_second", "/metrics/throughput", "Speed of the job that runs."),
        ] {
            page.single(name, "gauge", help, number(path));
        }
        let memory = this_machine::resident_memory().map(|bytes| bytes as f64);
        page.single("process_resident_memory_bytes", "gauge", "Memory of this process.", memory);
        page.single("process_cpu_seconds_total", "counter", "Time on processors.", this_machine::processor_seconds());
        page.0
    }

    fn with<T>(&self, act: impl FnOnce(&mut Counts) -> T) -> T {
        act(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// === impl Counts ===

impl Counts {
    fn write(&self, page: &mut Page) {
        page.head("brightrun_jobs_ended_total", "counter", "Jobs that ended since this program began.");
        for status in [Status::Completed, Status::Failed, Status::Cancelled] {
            let count = self.ended.get(&status).copied().unwrap_or_default();
            page.line("brightrun_jobs_ended_total", &format!("{{status=\"{}\"}}", status.name()), count as f64);
        }
        let name = "brightrun_job_start_seconds";
        page.head(name, "histogram", "From a job's submission to its start.");
        for (bound, count) in BOUNDS.iter().zip(self.starts) {
            page.line(&format!("{name}_bucket"), &format!("{{le=\"{bound}\"}}"), count as f64);
        }
        page.line(&format!("{name}_bucket"), "{le=\"+Inf\"}", self.started as f64);
        page.line(&format!("{name}_sum"), "", self.start_seconds);
        page.line(&format!("{name}_count"), "", self.started as f64);
        page.head("brightrun_http_requests_total", "counter", "Requests that were answered.");
        for ((route, code), count) in &self.answers {
            let labels = format!("{{route=\"{route}\",code=\"{code}\"}}");
            page.line("brightrun_http_requests_total", &labels, *count as f64);
        }
    }
}

/// A text in Prometheus' format.
#[derive(Default)]
struct Page(String);

// === impl Page ===

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // A text takes everything.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn line(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    /// Without labels, and only where there is a value.
    fn single(&mut self, name: &str, kind: &str, help: &str, value: Option<f64>) {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            self.head(name, kind, help);
            self.line(name, "", value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_counted_in_all_bounds_above_them() {
        let metrics = Metrics::default();
        [5, 70, 70_000_000].into_iter().for_each(|waited| metrics.began(waited));
        let mut page = Page::default();
        metrics.with(|counts| counts.write(&mut page));
        for line in [
            "brightrun_job_start_seconds_bucket{le=\"0.01\"} 1\n",
            "brightrun_job_start_seconds_bucket{le=\"0.1\"} 2\n",
            "brightrun_job_start_seconds_bucket{le=\"21600\"} 2\n",
            "brightrun_job_start_seconds_bucket{le=\"+Inf\"} 3\n",
            "brightrun_job_start_seconds_count 3\n",
            "brightrun_job_start_seconds_sum 70000.075\n",
        ] {
            assert!(page.0.contains(line), "{line}{}", page.0);
        }
    }
}
