//! Stars: the platform's judgement of a run, by its own formula, so that it and we say the same.
//!
//! `reduction = (first - last) / first * 100` of the reported (smoothed) losses: above 50 five stars, above 30 four, above
//! 15 three, above 5 two, else one. A validation loss of more than 0.5 above the training loss is overfitting: one star
//! less, and never under two. Without losses: three, unknown.

use serde::{Deserialize, Serialize};

use super::history::{self, History};

/// Losses at or above this are not reported to the platform, whose database refuses them.
pub const MAX_REPORTED: f64 = 10_000.0;
/// Reductions in percent that must be exceeded, best first.
const LEVELS: [(f64, u8, Convergence); 4] = [
    (50.0, 5, Convergence::Excellent),
    (30.0, 4, Convergence::Good),
    (15.0, 3, Convergence::Fair),
    (5.0, 2, Convergence::Poor),
];
/// A validation loss so far above the training loss is overfitting.
const OVERFIT_GAP: f64 = 0.5;
/// Overfitting alone does not take more stars than down to this.
const OVERFIT_FLOOR: u8 = 2;

/// The platform's judgement, under its names.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Stars, 1 to 5.
    pub overall_score: u8,
    /// The same as a word.
    pub convergence_quality: Convergence,
    /// How much the reported loss fell, in percent of the first; negative where it rose.
    pub loss_reduction_percent: Option<f64>,
    /// `exp` of the last validation loss.
    pub perplexity: Option<f64>,
    /// Last validation loss minus last training loss.
    pub validation_gap: Option<f64>,
}

/// The word for a number of stars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Convergence {
    /// Five stars.
    Excellent,
    /// Four.
    Good,
    /// Three.
    Fair,
    /// One or two.
    Poor,
    /// The validation loss is far above the training loss.
    Overfit,
    /// Nothing was measured.
    Unknown,
}

// === impl Quality ===

impl Quality {
    /// Judges the reported losses of a run and its last validation loss. Values that the platform would not be told count
    /// as not there.
    pub fn of(reported: &[f64], validation: Option<f64>) -> Self {
        let told = |loss: &f64| loss.is_finite() && *loss < MAX_REPORTED;
        let validation = validation.filter(told);
        let mut losses = reported.iter().copied().filter(told);
        let mut quality = Self {
            overall_score: 3,
            convergence_quality: Convergence::Unknown,
            loss_reduction_percent: None,
            perplexity: validation.and_then(history::perplexity),
            validation_gap: None,
        };
        let Some(first) = losses.next() else { return quality };
        let last = losses.next_back().unwrap_or(first);
        let reduction = history::finite((first - last) / first * 100.0);
        quality.loss_reduction_percent = reduction;
        // A first loss of 0 leaves no reduction, and what is no number is above nothing.
        let level = LEVELS.iter().find(|(least, ..)| reduction.is_some_and(|reduction| reduction > *least));
        (quality.overall_score, quality.convergence_quality) =
            level.map_or((1, Convergence::Poor), |(_, stars, word)| (*stars, *word));
        quality.validation_gap = validation.map(|validation| validation - last);
        if quality.validation_gap.is_some_and(|gap| gap > OVERFIT_GAP) {
            quality.overall_score = quality.overall_score.saturating_sub(1).max(OVERFIT_FLOOR);
            quality.convergence_quality = Convergence::Overfit;
        }
        quality
    }

    /// Judges a whole run.
    pub fn of_history(history: &History) -> Self {
        let reported: Vec<f64> = history.steps().map(|metrics| metrics.smoothed_loss).collect();
        Self::of(&reported, history.summary().last_validation_loss)
    }

    /// The stars as a person sees them.
    pub fn stars(&self) -> String {
        let full = usize::from(self.overall_score.min(5));
        "★".repeat(full) + &"☆".repeat(5 - full)
    }
}

// === impl Convergence ===

impl Convergence {
    /// The platform's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Excellent => "excellent",
            Self::Good => "good",
            Self::Fair => "fair",
            Self::Poor => "poor",
            Self::Overfit => "overfit",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Convergence::*, *};

    fn judged(reported: &[f64], validation: Option<f64>) -> (u8, Convergence) {
        let quality = Quality::of(reported, validation);
        (quality.overall_score, quality.convergence_quality)
    }

    #[test]
    fn stars_follow_the_reduction() {
        // What is exactly at a threshold is not above it.
        for (first, last, wanted) in [
            (2.0, 0.5, (5, Excellent)),
            (2.0, 0.999, (5, Excellent)),
            (2.0, 1.0, (4, Good)),
            (4.0, 2.8125, (3, Fair)),
            (10.0, 7.0, (3, Fair)),
            (10.0, 6.99, (4, Good)),
            (20.0, 17.0, (2, Poor)),
            (20.0, 16.99, (3, Fair)),
            (20.0, 19.0, (1, Poor)),
            (20.0, 18.99, (2, Poor)),
            (2.0, 2.0, (1, Poor)),
            (2.0, 8.0, (1, Poor)),
        ] {
            assert_eq!(judged(&[first, 100.0, last], None), wanted, "{first} to {last}");
        }
    }

    #[test]
    fn no_losses_are_three_stars_and_unknown() {
        assert_eq!(judged(&[], None), (3, Unknown));
        assert_eq!(judged(&[f64::NAN, f64::INFINITY, 10_000.0], None), (3, Unknown));
        let quality = Quality::of(&[], Some(1.0));
        assert_eq!((quality.overall_score, quality.perplexity), (3, Some(1f64.exp())));
        assert_eq!(quality.loss_reduction_percent, None);
    }

    #[test]
    fn one_loss_has_not_fallen() {
        assert_eq!(judged(&[2.0], None), (1, Poor));
        assert_eq!(Quality::of(&[2.0], None).loss_reduction_percent, Some(0.0));
    }

    #[test]
    fn overfitting_costs_a_star_and_leaves_two() {
        assert_eq!(judged(&[2.0, 0.5], Some(1.0)), (5, Excellent), "a gap of 0.5 is not above it");
        assert_eq!(judged(&[2.0, 0.5], Some(1.001)), (4, Overfit));
        assert_eq!(judged(&[2.0, 1.0], Some(9.0)), (3, Overfit));
        assert_eq!(judged(&[10.0, 8.0], Some(9.0)), (2, Overfit));
        assert_eq!(judged(&[10.0, 9.0], Some(11.0)), (2, Overfit));
        assert_eq!(judged(&[2.0, 2.0], Some(3.0)), (2, Overfit), "under two is lifted to two");
        assert_eq!(Quality::of(&[2.0, 0.5], Some(1.25)).validation_gap, Some(0.75));
    }

    #[test]
    fn a_first_loss_of_zero_and_numbers_that_are_none_do_no_harm() {
        let zero = Quality::of(&[0.0, 1.0], None);
        assert_eq!((zero.overall_score, zero.loss_reduction_percent), (1, None));
        assert_eq!(judged(&[0.0, 0.0], None), (1, Poor));
        assert_eq!(judged(&[f64::NAN, 4.0, f64::NAN, 1.0, f64::INFINITY], Some(f64::NAN)), (5, Excellent));
        let quality = Quality::of(&[4.0, 1.0], Some(9_999.0));
        assert_eq!(quality.perplexity, None, "too great for a number");
    }

    #[test]
    fn names_are_the_platforms() {
        let json = serde_json::to_value(Quality::of(&[4.0, 2.0], Some(2.0))).unwrap();
        assert_eq!(json["overall_score"], 4);
        assert_eq!(json["convergence_quality"], "good");
        assert_eq!(json["loss_reduction_percent"], 50.0);
        assert_eq!(json["perplexity"], 2f64.exp());
        for word in [Excellent, Good, Fair, Poor, Overfit, Unknown] {
            assert_eq!(serde_json::to_value(word).unwrap(), word.name());
        }
        assert_eq!(Quality::of(&[4.0, 2.0], None).stars(), "★★★★☆");
    }
}
