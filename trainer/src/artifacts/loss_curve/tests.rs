//! The picture of all kinds of runs.

use super::*;
use crate::{
    artifacts::tests::{evaluation, noise, sample, step_with},
    events::Event,
};

/// Largest drawing that is still quick to show.
const MAX_BYTES: usize = 300_000;

fn drawn(history: &History) -> String {
    LossCurve::new(history, "demo: loss").unwrap().svg()
}

fn run(steps: u64, loss: impl Fn(u64) -> f64) -> History {
    let mut history = History::default();
    let mut smoothed = loss(1);
    for number in 1..=steps {
        smoothed = 0.9 * smoothed + 0.1 * loss(number);
        history.record(&step_with(number, |metrics| {
            metrics.loss = loss(number);
            metrics.smoothed_loss = smoothed;
            metrics.learning_rate = 2e-4 * 0.5 * (1.0 + (std::f64::consts::PI * number as f64 / steps as f64).cos());
        }));
    }
    history
}

/// The same run with a validation loss every so many steps.
fn with_evaluations(run: &History, every: u64) -> History {
    let mut history = History::default();
    for metrics in run.steps() {
        history.record(&Event::Step(metrics.clone()));
        if metrics.step % every == 0 {
            history.record(&evaluation(metrics.step, 2.2 + 1.8 / (1.0 + metrics.step as f64 / 900.0)));
        }
    }
    history
}

/// Runs of every kind, by name.
fn gallery() -> Vec<(&'static str, History)> {
    let falling = |number: u64| 1.8 + 2.4 / (1.0 + number as f64 / 400.0) + 0.3 * noise(number);
    let long = with_evaluations(&run(20_000, falling), 100);
    let spike = |number: u64| if number == 150 { 61.3 } else { 2.0 + 0.1 * noise(number) };
    let mut evaluated = run(3, |number| 4.0 - 0.4 * number as f64);
    evaluated.record(&evaluation(3, 3.1));
    vec![
        ("one", run(1, |_| 2.75)),
        ("three", evaluated),
        ("sixty", sample(60)),
        ("long", long),
        ("spike", run(400, spike)),
        ("flat", run(50, |_| 2.0)),
        ("no-validation", run(300, falling)),
        ("nothing", History::default()),
        ("zero", run(100, |number| 0.4 / number as f64)),
    ]
}

#[test]
fn the_picture_names_everything_it_shows() {
    let svg = drawn(&sample(60));
    for text in [
        "demo: loss",
        "optimiser step",
        "loss (nats per token)",
        "training loss, each step",
        "training loss, smoothed",
        "validation loss (best ringed)",
        "learning rate (right axis)",
    ] {
        assert!(svg.contains(text), "{text:?} is missing");
    }
    assert!(svg.trim_end().ends_with("</svg>"));
    assert_eq!(svg.matches("class=\"validation-point\"").count(), 6);
    assert_eq!(svg.matches("class=\"best\"").count(), 1);
}

#[test]
fn what_is_absent_is_not_in_the_legend() {
    let mut history = History::default();
    (1..=5).for_each(|number| history.record(&step_with(number, |metrics| metrics.learning_rate = 0.0)));
    let svg = drawn(&history);
    assert!(!svg.contains("validation loss") && !svg.contains("class=\"rate-tick\""));
}

#[test]
fn long_runs_are_thinned_and_keep_their_extremes() {
    let outlier = 3.2;
    let history = run(20_000, |number| if number == 12_345 { outlier } else { 2.0 + 0.3 * noise(number) });
    let svg = drawn(&history);
    assert!(svg.len() < MAX_BYTES, "{} bytes", svg.len());
    let line = svg.lines().find(|line| line.contains("class=\"training\"")).unwrap();
    let points = line.split("points=\"").nth(1).unwrap().trim_end_matches("\"/>").split(' ');
    let places: Vec<(f64, f64)> =
        points.map(|p| p.split_once(',').unwrap()).map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).collect();
    assert!((1000..1500).contains(&places.len()), "{} points", places.len());
    // The outlier ends the range, 6 % below the upper edge, at its step's place.
    let highest = places.iter().copied().reduce(|high, next| if next.1 < high.1 { next } else { high }).unwrap();
    assert!((highest.0 - (72.0 + 804.0 * 12_344.0 / 19_999.0)).abs() < 0.02, "{highest:?}");
    assert!((highest.1 - (110.0 + 372.0 * 0.06 / 1.12)).abs() < 0.05, "{highest:?}");
}

#[test]
fn a_spike_is_cut_off_and_said() {
    let svg = drawn(&gallery().into_iter().find(|(name, _)| *name == "spike").unwrap().1);
    assert!(svg.contains("off the scale: 61.30 at step 150"), "{svg}");
    assert_eq!(svg.matches("<polyline class=\"training\"").count(), 2, "before and behind it");
    let calm = drawn(&sample(60));
    assert!(!calm.contains("off the scale"));
}

#[test]
fn no_run_does_harm() {
    for (name, history) in gallery() {
        let curve = LossCurve::new(&history, name).unwrap();
        let svg = curve.svg();
        assert!(svg.len() < MAX_BYTES && !svg.contains("NaN") && !svg.contains("inf"), "{name}");
        assert_eq!(svg.contains("no loss was measured"), name == "nothing");
        let png = curve.png().unwrap();
        assert_eq!(png[16..24], [1920u32.to_be_bytes(), 1080u32.to_be_bytes()].concat(), "{name}");
        assert!(png.len() < MAX_BYTES, "{name}: {} bytes", png.len());
    }
}

#[test]
fn numbers_that_are_none_are_left_out() {
    let mut history = run(5, |_| 2.0);
    history.record(&step_with(6, |metrics| (metrics.loss, metrics.smoothed_loss) = (f64::NAN, f64::INFINITY)));
    history.record(&Event::Evaluation { step: 6, loss: f64::NAN, perplexity: f64::NAN, best: false, seconds: 0.0 });
    let svg = drawn(&history);
    assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("validation loss"), "{svg}");
}
