//! When a run ends by itself, because going on would waste what it costs.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Parameters;

/// Losses whose mean is compared.
const WINDOW: usize = 10;
/// A loss that is next to nothing may well be three times as large as before.
const LEAST_LOSS: f64 = 0.1;
/// Steps in a row without any gradient after which nothing can be learnt.
const STEPS_WITHOUT_GRADIENT: u32 = 10;

/// What the rules remember from step to step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Rules {
    recent: VecDeque<f64>,
    lowest_mean: Option<f64>,
    without_gradient: u32,
    since_best: u32,
    best: Option<Best>,
}

/// The best evaluation so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Best {
    pub(super) step: u64,
    pub(super) loss: f64,
}

// === impl Rules ===

impl Rules {
    /// Takes note of a step; says why the run has to end, if it has to.
    pub(super) fn after_step(&mut self, parameters: &Parameters, loss: f64, gradient_norm: f64) -> Option<String> {
        self.without_gradient = if gradient_norm == 0.0 { self.without_gradient + 1 } else { 0 };
        if self.without_gradient >= STEPS_WITHOUT_GRADIENT {
            return Some(format!(
                "no gradient has reached the adapter for {STEPS_WITHOUT_GRADIENT} steps, so nothing is learnt; \
                 try a lower learning rate if something was learnt before, else look at the targets and at what is masked \
                 (brightrun validate --dump)"
            ));
        }
        self.recent.push_back(loss);
        if self.recent.len() < WINDOW {
            return None;
        }
        self.recent.drain(..self.recent.len() - WINDOW);
        let mean = self.recent.iter().sum::<f64>() / WINDOW as f64;
        let lowest = *self.lowest_mean.get_or_insert(mean);
        self.lowest_mean = Some(lowest.min(mean));
        let growth = parameters.max_loss_growth;
        (growth > 0.0 && mean > growth * lowest.max(LEAST_LOSS)).then(|| {
            format!(
                "the loss has grown: its mean over {WINDOW} steps is {mean:.3} and was {lowest:.3} at its lowest; try a \
                 lower learning rate, or set max_loss_growth"
            )
        })
    }

    /// Takes note of an evaluation; says whether it is the best so far.
    pub(super) fn after_evaluation(&mut self, parameters: &Parameters, step: u64, loss: f64) -> bool {
        let better = self.best.is_none_or(|best| loss < best.loss - parameters.early_stopping_threshold);
        if better {
            self.best = Some(Best { step, loss });
        }
        self.since_best = if better { 0 } else { self.since_best + 1 };
        better
    }

    /// Why the run ends early and well, if it does.
    pub(super) fn early_end(&self, parameters: &Parameters) -> Option<String> {
        let (patience, best) = (parameters.early_stopping_patience?, self.best?);
        (self.since_best >= patience).then(|| {
            format!(
                "ended early: the last {patience} evaluations were no better than that of step {} ({:.4})",
                best.step, best.loss
            )
        })
    }

    /// The best evaluation.
    pub(super) fn best(&self) -> Option<Best> {
        self.best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends_at(losses: impl IntoIterator<Item = f64>, norm: f64) -> Option<usize> {
        let (mut rules, parameters) = (Rules::default(), Parameters::default());
        losses.into_iter().position(|loss| rules.after_step(&parameters, loss, norm).is_some())
    }

    #[test]
    fn a_loss_that_grows_ends_the_run_and_a_spike_does_not() {
        let falling = (0..40).map(|step| 4.0 - 0.05 * f64::from(step));
        assert_eq!(ends_at(falling.clone(), 1.0), None);
        let spike = falling.clone().chain([9.0, 2.0, 2.0]);
        assert_eq!(ends_at(spike, 1.0), None);
        let diverged = falling.chain([12.0; 20]);
        assert!(ends_at(diverged, 1.0).is_some_and(|step| step > 40));
        assert_eq!(ends_at([1e-4; 10].into_iter().chain([3e-2; 20]), 1.0), None);
    }

    #[test]
    fn steps_without_a_gradient_end_the_run() {
        assert_eq!(ends_at([2.0; 50], 0.0), Some(STEPS_WITHOUT_GRADIENT as usize - 1));
    }

    #[test]
    fn patience_counts_evaluations_without_a_better_one() {
        let parameters =
            Parameters { early_stopping_patience: Some(2), early_stopping_threshold: 0.05, ..Parameters::default() };
        let mut rules = Rules::default();
        let better: Vec<bool> = [3.0, 2.0, 1.97, 1.99]
            .into_iter()
            .enumerate()
            .map(|(step, loss)| {
                assert_eq!(rules.early_end(&parameters), None);
                rules.after_evaluation(&parameters, step as u64, loss)
            })
            .collect();
        assert_eq!(better, [true, true, false, false]);
        assert!(rules.early_end(&parameters).unwrap().contains("that of step 1 (2.0000)"));
        assert_eq!(rules.early_end(&Parameters::default()), None);
    }
}
