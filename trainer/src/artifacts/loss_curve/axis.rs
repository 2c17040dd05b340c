//! Axes: where a number is on the paper, and which round numbers stand beside it.

/// A range of numbers along a stretch of paper.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Axis {
    /// The smallest and the greatest number.
    pub(super) numbers: (f64, f64),
    /// Where they are.
    pub(super) paper: (f64, f64),
}

/// A number beside an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    /// Where it is.
    pub(super) place: f64,
    /// The number.
    pub(super) value: f64,
    /// How it is written.
    pub(super) label: String,
}

/// How the numbers of an axis are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Whole numbers, thousands set apart.
    Whole,
    /// With as many digits behind the point as tell two ticks apart.
    Decimal,
    /// `1.5e-4`.
    Scientific,
}

// === impl Axis ===

impl Axis {
    /// Where a number is.
    pub(super) fn place(&self, number: f64) -> f64 {
        let (low, high) = self.numbers;
        let (start, end) = self.paper;
        start + (number - low) / (high - low) * (end - start)
    }

    /// Round numbers, about `wanted` of them.
    pub(super) fn ticks(&self, wanted: usize, style: Style) -> Vec<Tick> {
        let (low, high) = self.numbers;
        let mut step = round_step((high - low) / wanted as f64);
        if style == Style::Whole {
            step = step.max(1.0);
        }
        // A hair of room, so that the ends count where they are multiples themselves.
        let first = (low / step - 1e-9).ceil();
        let count = ((high / step + 1e-9).floor() - first).max(-1.0) as usize + 1;
        let values: Vec<f64> = (0..count).map(|index| (first + index as f64) * step).collect();
        let greatest = values.iter().fold(0.0, |greatest: f64, value| greatest.max(value.abs()));
        let label = |value| match style {
            Style::Whole => grouped(value),
            Style::Decimal => format!("{value:.*}", digits_behind_point(step)),
            Style::Scientific => scientific(value, greatest, step),
        };
        values.into_iter().map(|value| Tick { place: self.place(value), value, label: label(value) }).collect()
    }
}

/// The smallest of 1, 2, 5 times a power of ten that is not below `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    // A hair of room again: 2.0000000001 is 2.
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= least * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

fn digits_behind_point(step: f64) -> usize {
    (-(step.log10() + 1e-9).floor()).clamp(0.0, 12.0) as usize
}

/// A whole number with a comma before every three digits.
pub(super) fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = String::from(if number < 0.0 { "-" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// With the power of ten of the greatest number of the axis.
fn scientific(value: f64, greatest: f64, step: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let exponent = (greatest.log10() + 1e-9).floor();
    let power = 10f64.powf(exponent);
    format!("{:.*}e{exponent}", digits_behind_point(step / power), value / power)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(low: f64, high: f64, wanted: usize, style: Style) -> Vec<String> {
        let axis = Axis { numbers: (low, high), paper: (0.0, 100.0) };
        axis.ticks(wanted, style).into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(labels(0.0, 60.0, 6, Style::Whole), ["0", "10", "20", "30", "40", "50", "60"]);
        assert_eq!(labels(1.0, 3.0, 10, Style::Whole), ["1", "2", "3"], "nothing lies between two steps");
        assert_eq!(labels(0.0, 20_000.0, 5, Style::Whole), ["0", "5,000", "10,000", "15,000", "20,000"]);
        assert_eq!(labels(1.93, 2.61, 6, Style::Decimal), ["2.0", "2.2", "2.4", "2.6"]);
        assert_eq!(labels(0.0, 0.5, 5, Style::Decimal), ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5"]);
        assert_eq!(labels(0.0, 2.3e-4, 5, Style::Scientific), ["0", "0.5e-4", "1.0e-4", "1.5e-4", "2.0e-4"]);
        assert_eq!(labels(0.0, 1.15e-3, 3, Style::Scientific), ["0", "0.5e-3", "1.0e-3"]);
        assert_eq!(grouped(1_234_567.0), "1,234,567");
    }

    proptest! {
        #[test]
        fn ticks_lie_on_the_axis_and_are_neither_few_nor_many(low in -1e3..1e3f64, exponent in -6..6i32, wanted in 3..12usize) {
            let high = low + 10f64.powi(exponent);
            let axis = Axis { numbers: (low, high), paper: (50.0, 550.0) };
            let ticks = axis.ticks(wanted, Style::Decimal);
            prop_assert!(!ticks.is_empty() && ticks.len() <= wanted + 1, "{ticks:?}");
            prop_assert!(ticks.iter().all(|tick| (49.9..550.1).contains(&tick.place)), "{ticks:?}");
            prop_assert!(ticks.windows(2).all(|pair| pair[0].label != pair[1].label), "{ticks:?}");
        }
    }
}
