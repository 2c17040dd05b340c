//! What to do where a run does not fit: every way out is planned before it is named.

use std::fmt;

use serde::Serialize;

use super::table::gigabytes;
use super::{Machine, MachineKind, Plan, Planner};
use crate::Result;
use crate::lora::TargetSet;
use crate::optim::OptimizerKind;
use crate::run::Parameters;
use crate::step::Recompute;
use crate::weights::is_routed_expert;

/// A run that does not fit, and what would.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Refusal {
    /// Name of the machine.
    pub machine: String,
    /// What the run takes at least.
    pub needed_bytes: u64,
    /// What a plan may fill.
    pub usable_bytes: u64,
    /// The machine's memory.
    pub memory_bytes: u64,
    /// Ways that fit, the mildest first.
    pub suggestions: Vec<Suggestion>,
}

/// A change with which the run fits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Suggestion {
    /// What to change, as it is written in a job.
    pub change: String,
    /// The peak with that change.
    pub peak_bytes: u64,
    /// Dollars with that change, where the machine has a price.
    pub usd: Option<f64>,
}

/// Ranks and lengths below which nothing is suggested: adapters and examples that small are of little use.
const LEAST_RANK: usize = 4;
const LEAST_LENGTH: usize = 512;
/// Other machines that are named.
const OTHERS_NAMED: usize = 2;

// === impl Planner ===

impl Planner<'_> {
    /// Why a plan is refused and what would fit: changes of the job on the same machine, then other machines (the list is
    /// taken in its order). `None` where the plan fits.
    pub fn refusal(&self, plan: &Plan, others: &[Machine]) -> Result<Option<Refusal>> {
        if plan.fits {
            return Ok(None);
        }
        let mut suggestions = self.changes(&plan.machine)?;
        let before = suggestions.len();
        for machine in others.iter().filter(|machine| machine.name() != plan.machine.name()) {
            if suggestions.len() - before == OTHERS_NAMED {
                break;
            }
            let other = self.plan(machine)?;
            if other.fits {
                suggestions.push(suggestion(machine.name(), &other));
            }
        }
        Ok(Some(Refusal {
            machine: plan.machine.name(),
            needed_bytes: plan.choice.peak_bytes,
            usable_bytes: plan.usable_bytes,
            memory_bytes: plan.machine.memory_bytes(),
            suggestions,
        }))
    }

    /// Single changes that fit; where there is none, they are made one on top of the other.
    fn changes(&self, machine: &Machine) -> Result<Vec<Suggestion>> {
        let mut fitting: Vec<Suggestion> = self.smaller_pieces(machine)?.into_iter().collect();
        let mut all: Option<(Vec<String>, Parameters)> = None;
        for steps in self.ladders() {
            let mut last = None;
            for (text, parameters) in steps(self.parameters) {
                let plan = self.plan_with(&parameters, machine)?;
                last = Some(text.clone());
                if plan.fits {
                    fitting.push(suggestion(text, &plan));
                    break;
                }
            }
            // Together, each change goes as far as it can.
            let (mut texts, parameters) = all.take().unwrap_or_else(|| (Vec::new(), self.parameters.clone()));
            let together = steps(&parameters).pop().map_or(parameters, |(_, parameters)| parameters);
            texts.extend(last);
            if fitting.is_empty() && texts.len() > 1 {
                let plan = self.plan_with(&together, machine)?;
                if plan.fits {
                    return Ok(vec![suggestion(texts.join(" and "), &plan)]);
                }
            }
            all = Some((texts, together));
        }
        Ok(fitting)
    }

    /// The same job in smaller micro-batches or with less kept of the forward pass, where a plan had no choice.
    fn smaller_pieces(&self, machine: &Machine) -> Result<Option<Suggestion>> {
        let free = self.clone().fixed(None, None).plan(machine)?;
        let mut texts = Vec::new();
        if self.micro_batch_tokens.is_some_and(|tokens| tokens != free.choice.micro_batch_tokens) {
            texts.push(format!("micro_batch_tokens {}", free.choice.micro_batch_tokens));
        }
        let fixed = matches!(machine.kind, MachineKind::Cpu { .. }) && self.recompute.is_some();
        if fixed && self.recompute != Some(free.choice.recompute) {
            texts.push(format!("recompute {}", free.choice.recompute == Recompute::Layers));
        }
        Ok((free.fits && !texts.is_empty()).then(|| suggestion(texts.join(" with "), &free)))
    }

    /// The changes in the order in which they cost the user least, each from mild to strong.
    fn ladders(&self) -> Vec<Ladder> {
        let mut ladders: Vec<Ladder> = vec![lower_rank];
        if self.plan.modules.iter().any(|module| is_routed_expert(&module.path)) {
            ladders.push(experts_off);
        }
        if self.parameters.optimizer == OptimizerKind::AdamW {
            ladders.push(small_moments);
        }
        ladders.push(shorter);
        ladders
    }
}

/// Changed parameters and how the change is written in a job.
type Ladder = fn(&Parameters) -> Vec<(String, Parameters)>;

fn lower_rank(parameters: &Parameters) -> Vec<(String, Parameters)> {
    let mut steps = Vec::new();
    let mut rank = parameters.lora_rank / 2;
    while rank >= LEAST_RANK {
        // The scale stays what it is.
        let share = rank as f64 / parameters.lora_rank as f64;
        let lora_alpha = parameters.lora_alpha * if parameters.use_rslora { share.sqrt() } else { share };
        let expert_rank = parameters.expert_rank.map(|expert| ((expert as f64 * share) as usize).max(1));
        let mut text = format!("lora_rank {rank} with lora_alpha {lora_alpha}");
        if let Some(expert) = expert_rank {
            text.push_str(&format!(" and expert_rank {expert}"));
        }
        steps.push((text, Parameters { lora_rank: rank, lora_alpha, expert_rank, ..parameters.clone() }));
        rank /= 2;
    }
    steps
}

fn experts_off(parameters: &Parameters) -> Vec<(String, Parameters)> {
    vec![(
        "targets \"default\" (no adapters in routed experts)".to_owned(),
        Parameters { targets: TargetSet::Default, expert_rank: None, ..parameters.clone() },
    )]
}

fn small_moments(parameters: &Parameters) -> Vec<(String, Parameters)> {
    vec![(
        "optimizer \"adamw8bit\"".to_owned(),
        Parameters { optimizer: OptimizerKind::AdamW8bit, ..parameters.clone() },
    )]
}

fn shorter(parameters: &Parameters) -> Vec<(String, Parameters)> {
    let mut steps = Vec::new();
    let mut length = parameters.max_seq_length / 2;
    while length >= LEAST_LENGTH {
        steps.push((format!("max_seq_length {length}"), Parameters { max_seq_length: length, ..parameters.clone() }));
        length /= 2;
    }
    steps
}

fn suggestion(change: String, plan: &Plan) -> Suggestion {
    Suggestion { change, peak_bytes: plan.choice.peak_bytes, usd: plan.time.usd }
}

// === impl Refusal ===

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "the run does not fit on {}: it needs {} at least, and {} of {} can be used",
            self.machine,
            gigabytes(self.needed_bytes),
            gigabytes(self.usable_bytes),
            gigabytes(self.memory_bytes)
        )?;
        if self.suggestions.is_empty() {
            return write!(out, "; no smaller rank, length or optimiser state makes it fit");
        }
        write!(out, ". What would fit:")?;
        for suggestion in &self.suggestions {
            write!(out, "\n  - {}: {}", suggestion.change, gigabytes(suggestion.peak_bytes))?;
            if let Some(usd) = suggestion.usd {
                write!(out, ", ${usd:.2}")?;
            }
        }
        Ok(())
    }
}
