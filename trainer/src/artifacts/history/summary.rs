//! What the measurements of a run say together. Numbers that are not finite count nowhere.

use serde::{Deserialize, Serialize};

use super::History;
use crate::events::{ExpertUse, StepMetrics, StepTime};

/// What the measurements of a run say together; nothing where nothing was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Optimiser steps taken.
    pub steps: u64,
    /// Passes over the data, begun ones included.
    pub epochs: u32,
    /// Share of the planned steps that was taken, 0 to 100.
    pub progress: f64,
    /// Loss of the first step.
    pub first_loss: Option<f64>,
    /// Loss of the last step.
    pub last_loss: Option<f64>,
    /// Smallest loss of a step.
    pub lowest_loss: Option<f64>,
    /// Greatest loss of a step.
    pub highest_loss: Option<f64>,
    /// Mean loss of all steps.
    pub mean_loss: Option<f64>,
    /// Smoothed loss after the first step.
    pub first_smoothed_loss: Option<f64>,
    /// Smoothed loss after the last step.
    pub final_loss: Option<f64>,
    /// How often the validation sequences were looked at.
    pub evaluations: u64,
    /// The first validation loss.
    pub first_validation_loss: Option<f64>,
    /// The last validation loss.
    pub last_validation_loss: Option<f64>,
    /// The lowest validation loss.
    pub best_validation_loss: Option<f64>,
    /// The step after which it was first reached.
    pub best_validation_step: Option<u64>,
    /// `exp` of the last validation loss.
    pub perplexity: Option<f64>,
    /// `exp` of the lowest validation loss.
    pub best_perplexity: Option<f64>,
    /// Learning rate of the last step.
    pub last_learning_rate: Option<f64>,
    /// Gradient norm of the last step, before clipping.
    pub last_gradient_norm: Option<f64>,
    /// Greatest gradient norm of a step, before clipping.
    pub max_gradient_norm: Option<f64>,
    /// Tokens seen.
    pub tokens: u64,
    /// Tokens that had a target.
    pub target_tokens: u64,
    /// Time of all steps.
    pub training_seconds: f64,
    /// Time of all evaluations.
    pub evaluation_seconds: f64,
    /// Tokens of all steps by the time of all steps.
    pub mean_tokens_per_second: Option<f64>,
    /// Half of the steps were no faster.
    pub median_tokens_per_second: Option<f64>,
    /// Where the time of the steps went.
    pub time_shares: Option<TimeShares>,
    /// Most memory in use.
    pub peak_memory_bytes: Option<u64>,
    /// How the routed experts were used.
    pub experts: Option<ExpertSummary>,
}

/// Shares of the time of all steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TimeShares {
    /// Reading and packing.
    pub data: f64,
    /// Forward passes and the loss.
    pub forward: f64,
    /// Backward passes, recomputing included.
    pub backward: f64,
    /// Clipping and the optimiser.
    pub optimizer: f64,
    /// The rest.
    pub idle: f64,
}

/// How the routed experts were used in the whole run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ExpertSummary {
    /// Share of all routed experts that a step gave no token; the mean over steps.
    pub mean_idle_share: f64,
    /// The same in the last step.
    pub last_idle_share: f64,
    /// Tokens of a layer's busiest expert over those of its average one; the mean over layers and steps.
    pub mean_imbalance: f64,
    /// Entropy of the router's choice as a share of the greatest possible; the mean over layers and steps.
    pub mean_router_entropy: f64,
    /// Share of all routed experts that got no token up to the last look at the layers, where there was one.
    pub never_used_share: Option<f64>,
}

// === impl Summary ===

impl Summary {
    pub(super) fn of(history: &History) -> Self {
        let steps = || history.steps();
        let (first, last) = (steps().next(), steps().next_back());
        let loss = |metrics: &StepMetrics| metrics.loss;
        let validation = || history.evaluations().filter(|evaluation| evaluation.loss.is_finite());
        // The first of equal ones.
        let best = validation().reduce(|best, next| if next.loss < best.loss { next } else { best });
        let last_validation_loss = history.evaluations().next_back().and_then(|evaluation| finite(evaluation.loss));
        let tokens: u64 = steps().map(|metrics| metrics.tokens).sum();
        let training_seconds: f64 = steps().map(|metrics| metrics.time.total).sum();
        Self {
            steps: last.map_or(0, |metrics| metrics.step),
            epochs: last.map_or(0, |metrics| metrics.epoch),
            progress: last.map_or(0.0, |metrics| metrics.progress),
            first_loss: first.map(loss).and_then(finite),
            last_loss: last.map(loss).and_then(finite),
            lowest_loss: steps().map(loss).filter_map(finite).reduce(f64::min),
            highest_loss: steps().map(loss).filter_map(finite).reduce(f64::max),
            mean_loss: mean(steps().map(loss)),
            first_smoothed_loss: first.and_then(|metrics| finite(metrics.smoothed_loss)),
            final_loss: last.and_then(|metrics| finite(metrics.smoothed_loss)),
            evaluations: history.evaluations().count() as u64,
            first_validation_loss: history.evaluations().next().and_then(|evaluation| finite(evaluation.loss)),
            last_validation_loss,
            best_validation_loss: best.map(|evaluation| evaluation.loss),
            best_validation_step: best.map(|evaluation| evaluation.step),
            perplexity: last_validation_loss.and_then(perplexity),
            best_perplexity: best.and_then(|evaluation| perplexity(evaluation.loss)),
            last_learning_rate: last.map(|metrics| metrics.learning_rate),
            last_gradient_norm: last.and_then(|metrics| finite(metrics.gradient_norm)),
            max_gradient_norm: steps().filter_map(|metrics| finite(metrics.gradient_norm)).reduce(f64::max),
            tokens,
            target_tokens: steps().map(|metrics| metrics.target_tokens).sum(),
            training_seconds,
            evaluation_seconds: history.evaluations().map(|evaluation| evaluation.seconds).sum(),
            mean_tokens_per_second: (training_seconds > 0.0).then(|| tokens as f64 / training_seconds),
            median_tokens_per_second: median(
                steps().map(|metrics| metrics.tokens_per_second).filter(|speed| *speed > 0.0).collect(),
            ),
            time_shares: time_shares(history, training_seconds),
            peak_memory_bytes: steps().filter_map(|metrics| metrics.peak_memory_bytes).max(),
            experts: experts(history),
        }
    }
}

/// `exp(loss)`, as long as that is a number.
pub(in crate::artifacts) fn perplexity(loss: f64) -> Option<f64> {
    finite(loss.exp())
}

/// The number, if it is one.
pub(in crate::artifacts) fn finite(number: f64) -> Option<f64> {
    number.is_finite().then_some(number)
}

fn mean(numbers: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = numbers.filter_map(finite).fold((0u64, 0.0), |(count, sum), number| (count + 1, sum + number));
    (count > 0).then(|| sum / count as f64)
}

/// The middle one of some numbers, or the mean of the two in the middle.
fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_unstable_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match numbers.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(numbers[middle]),
        _ => Some((numbers[middle - 1] + numbers[middle]) / 2.0),
    }
}

fn time_shares(history: &History, all: f64) -> Option<TimeShares> {
    let share = |part: fn(&StepTime) -> f64| history.steps().map(|metrics| part(&metrics.time)).sum::<f64>() / all;
    (all > 0.0).then(|| TimeShares {
        data: share(|time| time.data),
        forward: share(|time| time.forward),
        backward: share(|time| time.backward),
        optimizer: share(|time| time.optimizer),
        idle: share(|time| time.idle),
    })
}

fn experts(history: &History) -> Option<ExpertSummary> {
    let each = || history.steps().filter_map(|metrics| metrics.experts);
    let mean_of = |part: fn(ExpertUse) -> f64| mean(each().map(part));
    Some(ExpertSummary {
        mean_idle_share: mean_of(|experts| experts.idle_share)?,
        last_idle_share: each().filter_map(|experts| finite(experts.idle_share)).next_back()?,
        mean_imbalance: mean_of(|experts| experts.imbalance)?,
        mean_router_entropy: mean_of(|experts| experts.router_entropy)?,
        never_used_share: never_used_share(history),
    })
}

/// Adds up the tokens of every expert of every layer.
fn never_used_share(history: &History) -> Option<f64> {
    let mut used: Vec<Vec<bool>> = Vec::new();
    for layer in history.health().flat_map(|(_, layers)| layers) {
        if used.len() <= layer.layer {
            used.resize(layer.layer + 1, Vec::new());
        }
        let used = &mut used[layer.layer];
        used.resize(used.len().max(layer.tokens_per_expert.len()), false);
        used.iter_mut().zip(&layer.tokens_per_expert).for_each(|(used, tokens)| *used |= *tokens > 0);
    }
    let all = used.iter().flatten().count();
    let never = used.iter().flatten().filter(|used| !**used).count();
    (all > 0).then(|| never as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{evaluation, health, step, step_with};
    use super::*;

    fn history(events: &[crate::events::Event]) -> History {
        let mut history = History::default();
        events.iter().for_each(|event| history.record(event));
        history
    }

    #[test]
    fn nothing_measured_gives_nothing() {
        let json = serde_json::to_value(History::default().summary()).unwrap();
        let numbers: Vec<_> = json.as_object().unwrap().iter().filter(|(_, value)| !value.is_null()).collect();
        assert!(numbers.iter().all(|(_, value)| value.as_f64() == Some(0.0)), "{numbers:?}");
    }

    #[test]
    fn losses_are_those_of_the_right_steps() {
        let summary = history(&[
            step(1, 4.0),
            step(2, 6.0),
            evaluation(2, 3.0),
            step(3, f64::NAN),
            evaluation(3, 2.5),
            step(4, 2.0),
            evaluation(4, 2.5),
            step(5, 3.0),
            evaluation(5, 2.75),
        ])
        .summary();
        assert_eq!((summary.steps, summary.evaluations), (5, 4));
        assert_eq!((summary.first_loss, summary.last_loss), (Some(4.0), Some(3.0)));
        assert_eq!((summary.lowest_loss, summary.highest_loss, summary.mean_loss), (Some(2.0), Some(6.0), Some(3.75)));
        assert_eq!((summary.first_validation_loss, summary.last_validation_loss), (Some(3.0), Some(2.75)));
        assert_eq!((summary.best_validation_loss, summary.best_validation_step), (Some(2.5), Some(3)));
        assert_eq!((summary.perplexity, summary.best_perplexity), (Some(2.75f64.exp()), Some(2.5f64.exp())));
        assert_eq!(summary.evaluation_seconds, 1.0);
    }

    #[test]
    fn speeds_and_shares_follow_from_times() {
        let timed = |number, total, tokens| {
            step_with(number, |metrics| {
                metrics.tokens = tokens;
                metrics.tokens_per_second = tokens as f64 / total;
                metrics.time = StepTime {
                    total,
                    data: 0.0,
                    forward: total / 4.0,
                    backward: total / 2.0,
                    optimizer: 0.0,
                    idle: total / 4.0,
                };
                metrics.gradient_norm = number as f64;
                metrics.peak_memory_bytes = Some(1000 - number);
            })
        };
        let summary =
            history(&[timed(1, 1.0, 100), timed(2, 1.0, 300), timed(3, 2.0, 400), timed(4, 4.0, 400)]).summary();
        assert_eq!((summary.tokens, summary.training_seconds), (1200, 8.0));
        assert_eq!((summary.mean_tokens_per_second, summary.median_tokens_per_second), (Some(150.0), Some(150.0)));
        let shares = summary.time_shares.unwrap();
        assert_eq!((shares.data, shares.forward, shares.backward, shares.idle), (0.0, 0.25, 0.5, 0.25));
        assert_eq!((summary.max_gradient_norm, summary.last_gradient_norm), (Some(4.0), Some(4.0)));
        assert_eq!(summary.peak_memory_bytes, Some(999));
    }

    #[test]
    fn an_expert_counts_as_used_when_any_look_saw_a_token() {
        let used = |number, idle_share| {
            step_with(number, |metrics| {
                metrics.experts = Some(ExpertUse { idle_share, imbalance: 2.0, router_entropy: 0.5 });
            })
        };
        let summary = history(&[
            used(1, 0.5),
            health(1, &[&[3, 0, 0, 1], &[], &[0, 0, 0, 9]]),
            used(2, 0.25),
            health(2, &[&[0, 1, 0, 0], &[], &[1, 0, 0, 0]]),
        ])
        .summary();
        let experts = summary.experts.unwrap();
        assert_eq!((experts.mean_idle_share, experts.last_idle_share), (0.375, 0.25));
        assert_eq!((experts.mean_imbalance, experts.mean_router_entropy), (2.0, 0.5));
        assert_eq!(experts.never_used_share, Some(3.0 / 8.0));
    }
}
