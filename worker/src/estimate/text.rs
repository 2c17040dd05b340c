//! An estimate for people and for programs.

use std::fmt::Write;

use brightrun_trainer::plan::{Plan, duration, gigabytes};
use serde_json::json;

use super::{Answer, Estimate};

impl Answer {
    /// What is printed: JSON and estimates on standard output, what went wrong on standard error.
    pub(crate) fn render(&self, as_json: bool) -> String {
        match (self, as_json) {
            (Self::Planned(estimate), true) => format!("{:#}\n", serde_json::to_value(estimate).unwrap_or_default()),
            (Self::Planned(estimate), false) => estimate.text(),
            (Self::Refused(problems), true) => {
                format!("{:#}\n", json!({ "fits": false, "error": problems.join("; "), "problems": problems }))
            }
            (Self::Refused(problems), false) => format!("Nothing was estimated:\n  {}\n", problems.join("\n  ")),
            (Self::Failed(error), true) => format!("{:#}\n", json!({ "fits": false, "error": error })),
            (Self::Failed(error), false) => format!("The job cannot be estimated: {error}\n"),
        }
    }
}

// === impl Estimate ===

impl Estimate {
    fn text(&self) -> String {
        let mut text = self.table();
        // The plan that was asked for, or the cheapest that fits, in full.
        if let Some(plan) = self.shown() {
            let _ = write!(text, "\n{plan}");
        }
        text.push('\n');
        self.notes.iter().for_each(|note| text.push_str(&format!("Note        {note}\n")));
        text.push_str(&format!("Prices      {}\n", self.prices));
        let place = self.asked.as_deref().unwrap_or("a machine of the list");
        match &self.refusal {
            None => text.push_str(&format!("Verdict     it fits on {place}\n")),
            Some(refusal) => text.push_str(&format!("Refused     {refusal}\n")),
        }
        text
    }

    fn shown(&self) -> Option<&Plan> {
        let named = |name: &String| self.plans.iter().find(|plan| plan.machine.name() == *name);
        self.asked.as_ref().and_then(named).or_else(|| self.cheapest())
    }

    /// Of the plans that fit, the one with the lowest cost; this machine where nothing else fits.
    fn cheapest(&self) -> Option<&Plan> {
        let price = |plan: &&Plan| plan.time.usd.unwrap_or(f64::INFINITY);
        let fitting = self.plans.iter().filter(|plan| plan.fits);
        fitting.min_by(|a, b| price(a).total_cmp(&price(b)))
    }

    fn table(&self) -> String {
        let mut text = String::from(
            "machine         memory   fits      peak  micro-batch  recompute  tokens/s         time       cost\n",
        );
        for plan in &self.plans {
            let choice = serde_json::to_value(plan.choice).unwrap_or_default();
            let cost = plan.time.usd.map_or_else(|| "-".to_owned(), |usd| format!("${usd:.2}"));
            let _ = writeln!(
                text,
                "{:<15} {:>6}   {:<5} {:>8}  {:>11}  {:<9} {:>9.0} {:>12} {:>10}",
                plan.machine.name(),
                gigabytes(plan.machine.memory_bytes()),
                if plan.fits { "yes" } else { "no" },
                gigabytes(plan.choice.peak_bytes),
                plan.choice.micro_batch_tokens,
                choice["recompute"].as_str().unwrap_or_default(),
                plan.time.tokens_per_second,
                duration(plan.time.total_seconds),
                cost
            );
        }
        text
    }
}
