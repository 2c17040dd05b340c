//! The machine a request asks for.

use super::fields::{Field, Findings, Object, Problem, shown};
use crate::prices;

/// Most GPUs a request may name.
const MOST_GPUS: f64 = 64.0;
/// Most memory of one, in GB.
const MOST_MEMORY: f64 = 4096.0;
/// Highest price of an hour, in dollars.
const HIGHEST_PRICE: f64 = 10_000.0;
/// Longest name of a kind.
const LONGEST_KIND: usize = 64;

/// `gpu_config`: what the platform rents, as far as it says so.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct GpuRequest {
    /// As in `H100`.
    pub(crate) kind: Option<String>,
    /// How many.
    pub(crate) count: Option<u64>,
    /// Memory of each.
    pub(crate) memory_gb: Option<f64>,
    /// Dollars an hour for each.
    pub(crate) usd_per_hour: Option<f64>,
}

// === impl GpuRequest ===

impl GpuRequest {
    /// What is to be said of the number of GPUs on a machine that has so many; a problem where it has fewer. A machine
    /// without any trains one job on its processor.
    pub(crate) fn check(&self, there: u64) -> Result<Option<String>, Problem> {
        let asked = self.count.unwrap_or(1);
        if asked > there.max(1) {
            let message = format!("is {asked}, and this machine has {}", count_of_gpus(there));
            return Err(Problem::new("gpu_config.num_gpus", message));
        }
        Ok((asked > 1).then(|| format!("gpu_config.num_gpus is {asked}; one GPU is used")))
    }

    /// What an hour of such a card usually costs.
    pub(crate) fn usual_price(&self) -> Option<f64> {
        prices::find(self.kind.as_deref()?)?.usd_per_hour()
    }
}

fn count_of_gpus(count: u64) -> String {
    match count {
        0 => "none; without gpu_config, or with 1, its processor trains".to_owned(),
        1 => "one".to_owned(),
        more => more.to_string(),
    }
}

/// Reads `gpu_config`.
pub(super) fn read(field: Option<Field<'_>>, findings: &mut Findings) -> GpuRequest {
    let object = field.and_then(|(_, value)| Object::new("gpu_config", value, findings));
    let Some(mut object) = object else { return GpuRequest::default() };
    let kind = object.take(&["gpu_type", "type"], findings);
    let count = object.take(&["num_gpus", "count"], findings);
    let memory = object.take(&["gpu_memory_gb", "memory_gb"], findings);
    let price = object.take(&["cost_per_gpu_hour", "cost_per_hour"], findings);
    object.finish(findings);
    let whole = |count: &f64| count.fract() == 0.0;
    let count = number(count, 1.0, MOST_GPUS, findings).filter(whole);
    GpuRequest {
        kind: text(kind, findings),
        count: count.map(|count| count as u64),
        memory_gb: number(memory, 1.0, MOST_MEMORY, findings),
        usd_per_hour: number(price, 0.0, HIGHEST_PRICE, findings),
    }
}

fn number(field: Option<Field<'_>>, least: f64, most: f64, findings: &mut Findings) -> Option<f64> {
    let (path, value) = field?;
    let number = value.as_f64().filter(|number| (least..=most).contains(number));
    if number.is_none() {
        findings.problem(path, format!("must be a number from {least} to {most}, not {}", shown(value)));
    }
    number
}

fn text(field: Option<Field<'_>>, findings: &mut Findings) -> Option<String> {
    let (path, value) = field?;
    let plain = |text: &&str| (1..=LONGEST_KIND).contains(&text.len()) && text.chars().all(|c| !c.is_control());
    let text = value.as_str().filter(plain);
    if text.is_none() {
        findings.problem(path, format!("must be a name of at most {LONGEST_KIND} letters, not {}", shown(value)));
    }
    text.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read_value(value: &Value) -> (GpuRequest, Findings) {
        let mut findings = Findings::default();
        let request = read(Some(("gpu_config".into(), value)), &mut findings);
        (request, findings)
    }

    #[test]
    fn both_spellings_are_understood() {
        let full = json!({ "gpu_type": "H100", "num_gpus": 1, "gpu_memory_gb": 80, "cost_per_gpu_hour": 3.35 });
        let expected =
            GpuRequest { kind: Some("H100".into()), count: Some(1), memory_gb: Some(80.0), usd_per_hour: Some(3.35) };
        let (request, findings) = read_value(&full);
        assert_eq!((request, findings.problems.len(), findings.warnings.len()), (expected, 0, 0));
        let (request, findings) = read_value(&json!({ "type": "A100", "count": 2 }));
        assert_eq!((request.kind.as_deref(), request.count), (Some("A100"), Some(2)));
        assert!(findings.warnings.is_empty());
    }

    #[test]
    fn more_gpus_than_there_are_is_a_problem_and_more_than_one_is_told() {
        let request = |count| GpuRequest { count, ..GpuRequest::default() };
        assert_eq!(request(None).check(0), Ok(None));
        assert_eq!(request(Some(1)).check(0), Ok(None));
        assert_eq!(request(Some(2)).check(4), Ok(Some("gpu_config.num_gpus is 2; one GPU is used".into())));
        for (asked, there) in [(2, 0), (2, 1), (5, 4)] {
            let problem = request(Some(asked)).check(there).unwrap_err().to_string();
            assert!(
                problem.starts_with(&format!("gpu_config.num_gpus: is {asked}, and this machine has ")),
                "{problem}"
            );
        }
    }

    #[test]
    fn every_mistake_is_named() {
        let wrong = json!({ "gpu_type": 7, "num_gpus": 0, "gpu_memory_gb": -1, "cost_per_gpu_hour": "3.35" });
        let (request, findings) = read_value(&wrong);
        assert_eq!((request, findings.problems.len()), (GpuRequest::default(), 4));
        assert_eq!(read_value(&json!([])).1.problems.len(), 1);
    }
}
