//! How long a run still takes, corrected by every step it takes.

use std::collections::VecDeque;

/// Steps that are looked back at: enough that a slow one does not count, few enough that a change of pace shows soon.
const REMEMBERED: usize = 32;

/// Time that is left. The pace is the median of the last steps' seconds a token, where a step counts as much as it has
/// tokens: a pause or a step of two tokens moves it little.
#[derive(Debug, Clone)]
pub struct TimeEstimate {
    total_steps: u64,
    total_tokens: u64,
    /// Seconds a token before a step was measured.
    planned: f64,
    /// Steps and tokens that are done.
    steps: u64,
    tokens: u64,
    /// Seconds a token and tokens of the last steps.
    recent: VecDeque<(f64, u64)>,
}

// === impl TimeEstimate ===

impl TimeEstimate {
    /// For a run of so many steps and tokens; `planned_seconds` is what a plan says its steps take.
    pub fn new(total_steps: u64, total_tokens: u64, planned_seconds: f64) -> Self {
        let planned = planned_seconds / total_tokens.max(1) as f64;
        let recent = VecDeque::with_capacity(REMEMBERED);
        Self { total_steps, total_tokens, planned, steps: 0, tokens: 0, recent }
    }

    /// Tokens that so many steps are likely to have.
    pub fn tokens_of(&self, steps: u64) -> u64 {
        (self.total_tokens as f64 * steps as f64 / self.total_steps.max(1) as f64) as u64
    }

    /// A run that goes on after steps that were taken elsewhere.
    pub fn resume(&mut self, step: u64, tokens: u64) {
        (self.steps, self.tokens) = (step, tokens);
    }

    /// Takes note of a step (counted from 1) of so many tokens; gives the seconds that are left. A time that is none (a clock
    /// that stands still) changes nothing but what is left to do.
    pub fn update(&mut self, step: u64, tokens: u64, seconds: f64) -> f64 {
        self.steps = step;
        self.tokens += tokens;
        if seconds > 0.0 && seconds.is_finite() && tokens > 0 {
            if self.recent.len() == REMEMBERED {
                self.recent.pop_front();
            }
            self.recent.push_back((seconds / tokens as f64, tokens));
        }
        self.seconds_left()
    }

    /// Seconds that are left.
    pub fn seconds_left(&self) -> f64 {
        self.tokens_left() * self.pace()
    }

    /// The tokens that are left: what the plan says, or what the steps so far make likely where it was wrong.
    fn tokens_left(&self) -> f64 {
        let steps_left = self.total_steps.saturating_sub(self.steps) as f64;
        if steps_left == 0.0 {
            return 0.0;
        }
        let planned = self.total_tokens as f64 - self.tokens as f64;
        let mean = self.total_tokens as f64 / self.total_steps.max(1) as f64;
        // More than half a mean step off for every step that is left: the plan's total is not this run's.
        let likely = steps_left * if self.steps == 0 { mean } else { self.tokens as f64 / self.steps as f64 };
        if (planned - likely).abs() <= 0.5 * steps_left * mean { planned } else { likely }
    }

    /// Seconds a token.
    fn pace(&self) -> f64 {
        let mut recent: Vec<(f64, u64)> = self.recent.iter().copied().collect();
        recent.sort_by(|a, b| a.0.total_cmp(&b.0));
        let half = recent.iter().map(|(_, tokens)| *tokens).sum::<u64>().div_ceil(2);
        let mut seen = 0;
        let median = recent.iter().find(|(_, tokens)| {
            seen += tokens;
            seen >= half
        });
        median.map_or(self.planned, |(pace, _)| *pace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_counts_until_a_step_is_measured() {
        let mut estimate = TimeEstimate::new(100, 100_000, 500.0);
        assert_eq!(estimate.seconds_left(), 500.0);
        assert!((estimate.update(1, 1000, 2.0) - 99.0 * 2.0).abs() < 1e-9);
        assert_eq!(estimate.update(2, 1000, 0.0), 98.0 * 2.0);
    }

    #[test]
    fn outliers_do_not_move_it_and_a_change_of_pace_does() {
        let mut estimate = TimeEstimate::new(1000, 1_000_000, 1.0);
        for step in 1..=100 {
            // Every tenth step waits a minute; steps of one token are slow beyond measure.
            let (tokens, seconds) = match step % 10 {
                0 => (1000, 60.0),
                5 => (1, 1.0),
                _ => (1000 + step % 3, 1.0 + 0.01 * (step % 7) as f64),
            };
            let left = estimate.update(step, tokens, seconds);
            let expected = (1_000_000 - estimate.tokens) as f64 * 1.03e-3;
            assert!((left / expected - 1.0).abs() < 0.04, "step {step}: {left} for {expected}");
        }
        for step in 101..=120 {
            estimate.update(step, 1000, 3.0);
        }
        let left = estimate.seconds_left();
        assert!((left / (1_000_000 - estimate.tokens) as f64 / 3e-3 - 1.0).abs() < 0.01, "{left}");
    }

    #[test]
    fn it_ends_at_zero_also_where_the_plan_was_wrong() {
        let mut estimate = TimeEstimate::new(4, 4000, 8.0);
        for step in 1..=3 {
            estimate.update(step, 4000, 4.0);
        }
        assert_eq!(estimate.seconds_left(), 4.0);
        assert_eq!(estimate.update(4, 4000, 4.0), 0.0);
        let mut resumed = TimeEstimate::new(10, 1000, 100.0);
        resumed.resume(5, 500);
        assert_eq!(resumed.update(6, 100, 2.0), 8.0);
    }
}
