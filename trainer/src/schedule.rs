//! Learning rate of every step: a linear warm-up from 0, then a decay, as the schedules of transformers.
//!
//! ```text
//! step < warm-up:  peak · step / warm-up                    (so the first step of a warm-up has the rate 0)
//! after it, with progress = (step - warm-up) / (total - warm-up):
//!   cosine         peak · (1 + cos(π · progress)) / 2
//!   linear         peak · (1 - progress), at least 0
//!   constant       peak
//! ```
//!
//! A run of a single step has no warm-up, which would be all of it, and nothing would be learnt (transformers has the rate 0 there).
//!
//! Steps count from 0, as transformers evaluates its schedule for the update that comes next.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What the learning rate does after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Falls to 0 along half a cosine.
    Cosine,
    /// Falls to 0 along a line.
    Linear,
    /// Stays.
    Constant,
}

/// How long the learning rate rises from 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WarmUp {
    /// A number of optimiser steps. More than the run has are allowed: it then ends before its peak.
    Steps(u64),
    /// A part of all steps, rounded up.
    Ratio(f64),
}

/// The learning rate over a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest learning rate.
    pub peak: f64,
    /// What comes after the warm-up.
    pub decay: Decay,
    /// How the run begins.
    pub warm_up: WarmUp,
    /// Number of optimiser steps of the run.
    pub total_steps: u64,
}

impl Schedule {
    /// A schedule whose numbers make sense.
    pub fn new(peak: f64, decay: Decay, warm_up: WarmUp, total_steps: u64) -> Result<Self> {
        if !(peak.is_finite() && peak >= 0.0) {
            return Err(Error::Invalid(format!("learning rate {peak}: it must be at least 0 and finite")));
        }
        if total_steps == 0 {
            return Err(Error::Invalid("a schedule of 0 steps: a run needs at least 1".into()));
        }
        if let WarmUp::Ratio(ratio) = warm_up
            && !(0.0..=1.0).contains(&ratio)
        {
            return Err(Error::Invalid(format!("warm-up ratio {ratio}: it must be between 0 and 1")));
        }
        Ok(Self { peak, decay, warm_up, total_steps })
    }

    /// Number of steps of the warm-up.
    pub fn warm_up_steps(&self) -> u64 {
        match self.warm_up {
            _ if self.total_steps == 1 => 0,
            WarmUp::Steps(steps) => steps,
            WarmUp::Ratio(ratio) => (self.total_steps as f64 * ratio).ceil() as u64,
        }
    }

    /// The learning rate of an optimiser step, counted from 0.
    pub fn learning_rate(&self, step: u64) -> f64 {
        self.peak * self.factor(step)
    }

    fn factor(&self, step: u64) -> f64 {
        let warm_up = self.warm_up_steps();
        if step < warm_up {
            return step as f64 / warm_up as f64;
        }
        let decay_steps = self.total_steps.saturating_sub(warm_up).max(1) as f64;
        match self.decay {
            Decay::Cosine => 0.5 * (1.0 + (PI * ((step - warm_up) as f64 / decay_steps)).cos()),
            Decay::Linear => self.total_steps.saturating_sub(step) as f64 / decay_steps,
            Decay::Constant => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(decay, warm-up steps, total steps, learning rates)` of transformers 5.23 with a peak of 2e-4, including steps
    /// after the end.
    const GOLDEN: [(Decay, u64, u64, &[f64]); 12] = [
        (
            Decay::Cosine,
            0,
            7,
            &[
                0.0002,
                0.0001900968867902419,
                0.00016234898018587337,
                0.00012225209339563145,
                7.774790660436858e-05,
                3.7651019814126654e-05,
                9.903113209758096e-06,
                0.0,
                9.903113209758086e-06,
            ],
        ),
        (
            Decay::Cosine,
            3,
            10,
            &[
                0.0,
                6.666666666666667e-05,
                0.00013333333333333334,
                0.0002,
                0.0001900968867902419,
                0.00016234898018587337,
                0.00012225209339563145,
                7.774790660436858e-05,
                3.7651019814126654e-05,
                9.903113209758096e-06,
                0.0,
                9.903113209758086e-06,
            ],
        ),
        (Decay::Cosine, 4, 4, &[0.0, 5e-05, 0.0001, 0.00015000000000000001, 0.0002, 0.0]),
        (
            Decay::Cosine,
            9,
            5,
            &[
                0.0,
                2.2222222222222223e-05,
                4.4444444444444447e-05,
                6.666666666666667e-05,
                8.888888888888889e-05,
                0.00011111111111111112,
                0.00013333333333333334,
                0.00015555555555555556,
                0.00017777777777777779,
                0.0002,
                0.0,
            ],
        ),
        (
            Decay::Linear,
            0,
            7,
            &[
                0.0002,
                0.00017142857142857143,
                0.00014285714285714287,
                0.00011428571428571428,
                8.571428571428571e-05,
                5.714285714285714e-05,
                2.857142857142857e-05,
                0.0,
                0.0,
            ],
        ),
        (
            Decay::Linear,
            3,
            10,
            &[
                0.0,
                6.666666666666667e-05,
                0.00013333333333333334,
                0.0002,
                0.00017142857142857143,
                0.00014285714285714287,
                0.00011428571428571428,
                8.571428571428571e-05,
                5.714285714285714e-05,
                2.857142857142857e-05,
                0.0,
                0.0,
            ],
        ),
        (Decay::Linear, 4, 4, &[0.0, 5e-05, 0.0001, 0.00015000000000000001, 0.0, 0.0]),
        (
            Decay::Linear,
            9,
            5,
            &[
                0.0,
                2.2222222222222223e-05,
                4.4444444444444447e-05,
                6.666666666666667e-05,
                8.888888888888889e-05,
                0.00011111111111111112,
                0.00013333333333333334,
                0.00015555555555555556,
                0.00017777777777777779,
                0.0,
                0.0,
            ],
        ),
        (Decay::Constant, 0, 7, &[0.0002, 0.0002, 0.0002, 0.0002, 0.0002, 0.0002, 0.0002, 0.0002, 0.0002]),
        (
            Decay::Constant,
            3,
            10,
            &[
                0.0,
                6.666666666666667e-05,
                0.00013333333333333334,
                0.0002,
                0.0002,
                0.0002,
                0.0002,
                0.0002,
                0.0002,
                0.0002,
                0.0002,
                0.0002,
            ],
        ),
        (Decay::Constant, 4, 4, &[0.0, 5e-05, 0.0001, 0.00015000000000000001, 0.0002, 0.0002]),
        (
            Decay::Constant,
            9,
            5,
            &[
                0.0,
                2.2222222222222223e-05,
                4.4444444444444447e-05,
                6.666666666666667e-05,
                8.888888888888889e-05,
                0.00011111111111111112,
                0.00013333333333333334,
                0.00015555555555555556,
                0.00017777777777777779,
                0.0002,
                0.0002,
            ],
        ),
    ];

    #[test]
    fn the_only_step_of_a_run_has_the_whole_rate() {
        for warm_up in [WarmUp::Ratio(0.1), WarmUp::Steps(10)] {
            for decay in [Decay::Cosine, Decay::Linear, Decay::Constant] {
                assert_eq!(Schedule::new(2e-4, decay, warm_up, 1).unwrap().learning_rate(0), 2e-4);
            }
        }
    }

    #[test]
    fn rates_are_those_of_transformers() {
        for (decay, warm_up, total, rates) in GOLDEN {
            let schedule = Schedule::new(2e-4, decay, WarmUp::Steps(warm_up), total).unwrap();
            for (step, &expected) in rates.iter().enumerate() {
                let rate = schedule.learning_rate(step as u64);
                assert!(
                    (rate - expected).abs() <= 1e-15 * 2e-4,
                    "{decay:?} {warm_up} {total} {step}: {rate} {expected}"
                );
            }
        }
    }

    #[test]
    fn ratios_round_up() {
        // math.ceil(total * ratio), where 100 * 0.07 is a little more than 7.
        for (ratio, total, expected) in [
            (0.03, 10, 1),
            (0.1, 30, 3),
            (0.3, 10, 3),
            (0.07, 100, 8),
            (0.29, 100, 29),
            (1e-9, 5, 1),
            (0.0, 5, 0),
            (1.0, 5, 5),
        ] {
            let schedule = Schedule::new(1.0, Decay::Cosine, WarmUp::Ratio(ratio), total).unwrap();
            assert_eq!(schedule.warm_up_steps(), expected, "{ratio} of {total}");
            let in_steps = Schedule::new(1.0, Decay::Cosine, WarmUp::Steps(expected), total).unwrap();
            assert_eq!(schedule.learning_rate(total - 1), in_steps.learning_rate(total - 1));
        }
    }

    #[test]
    fn impossible_schedules_are_refused() {
        let build = |peak, warm_up, total| Schedule::new(peak, Decay::Linear, warm_up, total).is_ok();
        assert!(build(1e-4, WarmUp::Ratio(0.1), 10));
        assert!(!build(f64::NAN, WarmUp::Ratio(0.1), 10));
        assert!(!build(-1e-4, WarmUp::Ratio(0.1), 10));
        assert!(!build(1e-4, WarmUp::Ratio(0.1), 0));
        for ratio in [-0.1, 1.1, f64::NAN] {
            assert!(!build(1e-4, WarmUp::Ratio(ratio), 10));
        }
    }
}
