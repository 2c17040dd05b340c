//! How long a job may take: limits of the platform's, for one job or for all.

use std::time::Duration;

use serde_json::Value;

/// Where the operator says what the endpoint's limit is, in seconds: the platform does not tell its workers.
const EXECUTION: &str = "BRIGHTRUN_EXECUTION_TIMEOUT";
/// The platform's limits are between these, in milliseconds.
const SHORTEST_EXECUTION: u64 = 5_000;
const SHORTEST_LIFE: u64 = 10_000;
const LONGEST: u64 = 7 * 24 * 3600 * 1000;
/// RunPod deletes a job that is so old, at work or not, unless its policy says another time.
pub const RUNPODS_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A job ends by itself so long before its limit: for its last checkpoint, the upload and the answer. At most a fifth of all.
const RESERVE: Duration = Duration::from_secs(300);

/// How long a job may take, from the moment in which it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeLimit {
    all: Option<Duration>,
    /// Whether its life is what ends first.
    of_life: bool,
}

// === impl TimeLimit ===

impl TimeLimit {
    /// The narrowest of what a job's policy, the operator and the job's life say. `life`: how long it is where its policy does
    /// not say it. `waited`: how long the job was in the queue, where that is known; its life counts from before.
    pub fn of(policy: &Value, operators: Option<Duration>, life: Option<Duration>, waited: Duration) -> Self {
        let milliseconds = |name: &str, least: u64| {
            policy.get(name).and_then(Value::as_u64).map(|time| Duration::from_millis(time.clamp(least, LONGEST)))
        };
        // What a job says of its execution replaces what the endpoint says.
        let execution = milliseconds("executionTimeout", SHORTEST_EXECUTION).or(operators);
        let life = milliseconds("ttl", SHORTEST_LIFE).or(life).map(|life| life.saturating_sub(waited));
        let of_life = life.is_some_and(|life| execution.is_none_or(|execution| life < execution));
        Self { all: execution.into_iter().chain(life).min(), of_life }
    }

    /// What the operator says; an error names what is wrong with it.
    pub fn of_operator(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Duration>, String> {
        let Some(text) = variable(EXECUTION).filter(|text| !text.trim().is_empty()) else { return Ok(None) };
        let seconds = text.trim().parse::<u64>().ok().filter(|seconds| (1..=LONGEST / 1000).contains(seconds));
        let seconds =
            seconds.ok_or_else(|| format!("{EXECUTION} must be a number of seconds from 1 to {}", LONGEST / 1000))?;
        Ok(Some(Duration::from_secs(seconds)))
    }

    /// So long it may work; the rest is for ending in order. `None`: as long as it takes.
    pub fn to_work(&self) -> Option<Duration> {
        self.all.map(|all| all - RESERVE.min(all / 5))
    }

    /// What a job says to have more time.
    pub fn policy(&self) -> &'static str {
        if self.of_life { "policy.ttl" } else { "policy.executionTimeout" }
    }

    /// All of it.
    pub fn whole(&self) -> Option<Duration> {
        self.all
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn whole(policy: Value, operators: Option<u64>, waited: u64) -> Option<u64> {
        let limit = TimeLimit::of(&policy, operators.map(Duration::from_secs), None, Duration::from_secs(waited));
        limit.whole().map(|time| time.as_secs())
    }

    #[test]
    fn the_narrowest_limit_counts() {
        assert_eq!(whole(Value::Null, None, 50), None);
        assert_eq!(whole(Value::Null, Some(600), 0), Some(600));
        assert_eq!(whole(json!({ "executionTimeout": 3_600_000 }), Some(600), 0), Some(3600));
        assert_eq!(whole(json!({ "executionTimeout": 3_600_000, "ttl": 1_800_000 }), None, 600), Some(1200));
        assert_eq!(whole(json!({ "ttl": 60_000 }), Some(600), 100), Some(0));
    }

    #[test]
    fn the_limit_that_counts_has_a_name() {
        let named =
            |policy: Value| TimeLimit::of(&policy, Some(Duration::from_secs(600)), None, Duration::ZERO).policy();
        assert_eq!(named(json!({ "ttl": 60_000 })), "policy.ttl");
        assert_eq!(named(json!({ "ttl": 3_600_000 })), "policy.executionTimeout");
        assert_eq!(named(json!({ "ttl": 3_600_000, "executionTimeout": 7_200_000 })), "policy.ttl");
        assert_eq!(named(Value::Null), "policy.executionTimeout");
    }

    #[test]
    fn a_life_that_nobody_names_counts_from_the_arrival_in_the_queue() {
        let day = Some(Duration::from_secs(24 * 3600));
        let hours = |policy: Value| TimeLimit::of(&policy, None, day, Duration::from_secs(3600)).whole().unwrap();
        assert_eq!(hours(Value::Null), Duration::from_secs(23 * 3600));
        assert_eq!(hours(json!({ "ttl": 48 * 3_600_000 })), Duration::from_secs(47 * 3600));
    }

    #[test]
    fn odd_limits_are_those_that_the_platform_would_take() {
        assert_eq!(whole(json!({ "executionTimeout": 1 }), None, 0), Some(5));
        assert_eq!(whole(json!({ "executionTimeout": u64::MAX }), None, 0), Some(7 * 24 * 3600));
        assert_eq!(whole(json!({ "executionTimeout": "soon", "ttl": -5 }), Some(600), 0), Some(600));
    }

    #[test]
    fn there_is_time_to_end_in_order() {
        let work = |seconds| {
            TimeLimit { all: Some(Duration::from_secs(seconds)), of_life: false }.to_work().unwrap().as_secs()
        };
        assert_eq!((work(600), work(3600), work(0)), (480, 3300, 0));
    }

    #[test]
    fn the_operators_limit_is_checked() {
        let of = |text: &str| TimeLimit::of_operator(|_| Some(text.to_owned()));
        assert_eq!(of("3600"), Ok(Some(Duration::from_secs(3600))));
        assert_eq!(of(" "), Ok(None));
        assert!(of("1h").unwrap_err().contains("number of seconds"));
    }
}
