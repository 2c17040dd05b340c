//! What the picture shows, and how little of it is enough: a line of 20,000 points looks like one of 1,400.

use crate::artifacts::history::{History, Summary};

/// A value at an optimiser step.
pub type Point = (u64, f64);

/// What the picture shows. Values that are not finite are left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CurveSeries {
    /// Title of the picture.
    pub title: String,
    /// Loss of each step.
    pub training: Vec<Point>,
    /// Smoothed loss of each step.
    pub smoothed: Vec<Point>,
    /// Validation loss, wherever it was measured.
    pub validation: Vec<Point>,
    /// Learning rate of each step.
    pub learning_rate: Vec<Point>,
}

/// Columns of the picture in which a line keeps its extremes.
const COLUMNS: usize = 700;
/// Above so many points a line is thinned.
const MAX_POINTS: usize = 2 * COLUMNS;

// === impl CurveSeries ===

impl CurveSeries {
    /// The lines of a run.
    pub fn of(history: &History, title: impl Into<String>) -> Self {
        let steps = || history.steps();
        let finite = |points: &mut dyn Iterator<Item = Point>| points.filter(|point| point.1.is_finite()).collect();
        Self {
            title: title.into(),
            training: finite(&mut steps().map(|metrics| (metrics.step, metrics.loss))),
            smoothed: finite(&mut steps().map(|metrics| (metrics.step, metrics.smoothed_loss))),
            validation: finite(&mut history.evaluations().map(|evaluation| (evaluation.step, evaluation.loss))),
            learning_rate: finite(&mut steps().map(|metrics| (metrics.step, metrics.learning_rate))),
        }
    }
}

/// What the picture says in words.
pub(super) fn in_words(summary: &Summary) -> String {
    let counted = |count: u64, thing: &str| {
        format!("{} {thing}{}", super::axis::grouped(count as f64), if count == 1 { "" } else { "s" })
    };
    let mut parts = vec![counted(summary.steps, "step")];
    if let (Some(first), Some(last)) = (summary.first_loss, summary.final_loss) {
        parts.push(format!("training loss {} at first, {} at the end (smoothed)", short(first), short(last)));
    }
    if let (Some(best), Some(step)) = (summary.best_validation_loss, summary.best_validation_step) {
        parts.push(format!("best validation loss {} at step {}", short(best), super::axis::grouped(step as f64)));
    }
    parts.join(" · ")
}

/// A loss with four digits that count, three where it is below 1.
pub(in crate::artifacts) fn short(loss: f64) -> String {
    let size = loss.abs();
    let digits = match size {
        _ if size >= 1.0 => 3.0 - size.log10().floor(),
        _ if size > 0.0 => 2.0 - size.log10().floor(),
        _ => 3.0,
    };
    format!("{loss:.*}", digits.clamp(0.0, 6.0) as usize)
}

/// The points of a line that make the same picture: in each column of the paper the lowest and the highest.
pub(super) fn thinned(points: &[Point]) -> Vec<Point> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return Vec::new() };
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let span = (last.0 - first.0).max(1);
    let column = |point: &Point| (u128::from(point.0 - first.0) * COLUMNS as u128 / u128::from(span)) as usize;
    let mut kept = vec![*first];
    for points in points.chunk_by(|a, b| column(a) == column(b)) {
        let lowest = (0..points.len()).min_by(|&a, &b| points[a].1.total_cmp(&points[b].1));
        let highest = (0..points.len()).max_by(|&a, &b| points[a].1.total_cmp(&points[b].1));
        let mut extremes = [lowest, highest];
        extremes.sort_unstable();
        kept.extend(extremes.into_iter().flatten().map(|index| points[index]));
    }
    kept.push(*last);
    kept.dedup_by_key(|point| point.0);
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn four_digits_count() {
        let texts = [0.01234, 0.5, 2.34567, 12.3456, 123.456, 12345.6, 0.0, 1e-9].map(short);
        assert_eq!(
            texts,
            ["0.0123", "0.500", "2.346", "12.35", "123.5", "12346", "0.000", "0.000000"].map(str::to_owned)
        );
    }

    #[test]
    fn short_lines_stay_whole() {
        let points: Vec<Point> = (1..=1400).map(|step| (step, step as f64)).collect();
        assert_eq!(thinned(&points), points);
        assert_eq!(thinned(&[]), []);
    }

    proptest! {
        #[test]
        fn a_thinned_line_keeps_its_ends_and_extremes(count in 1401..6000u64, seed: u64) {
            let value = |step: u64| ((step ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64;
            let points: Vec<Point> = (1..=count).map(|step| (step, value(step))).collect();
            let kept = thinned(&points);
            prop_assert!(kept.len() <= 2 * COLUMNS + 4, "{} points", kept.len());
            prop_assert_eq!((kept[0], kept.last()), (points[0], points.last()));
            prop_assert!(kept.windows(2).all(|pair| pair[0].0 < pair[1].0));
            let extremes = |points: &[Point]| points.iter().fold((f64::MAX, f64::MIN), |(l, h), p| (l.min(p.1), h.max(p.1)));
            prop_assert_eq!(extremes(&kept), extremes(&points));
            prop_assert!(kept.iter().all(|point| points[point.0 as usize - 1] == *point));
        }
    }
}
