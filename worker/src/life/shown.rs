//! How far a job is, in the platform's words: what `/status` shows while it runs.

use brightrun_trainer::{
    artifacts::quality::MAX_REPORTED,
    events::{Event, Stage, StepMetrics},
};
use serde::Serialize;

/// 100 is the end, and that is told by the answer.
const MOST_PROGRESS: f64 = 99.0;

/// How far a job is. The platform stores it as a row: whole numbers where it expects them, and nothing that is no number.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Shown {
    status: &'static str,
    stage: Stage,
    progress: f64,
    current_epoch: u32,
    current_step: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<Metrics>,
    error_message: Option<String>,
}

/// The latest numbers; those that the platform would refuse are left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Metrics {
    /// Smoothed: the platform compares the first it has seen with the last.
    training_loss: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    training_loss_raw: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    validation_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    learning_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    throughput: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gradient_norm: Option<f64>,
}

impl Default for Shown {
    fn default() -> Self {
        Self {
            status: "running",
            stage: Stage::Fetching,
            progress: 0.0,
            current_epoch: 0,
            current_step: 0,
            metrics: None,
            error_message: None,
        }
    }
}

// === impl Shown ===

impl Shown {
    /// Takes note of what happened; whether there is something new to show.
    pub(super) fn note(&mut self, event: &Event) -> bool {
        let before = self.clone();
        match event {
            Event::Stage { stage } => self.stage = *stage,
            Event::Resumed { step } => self.current_step = *step,
            Event::Step(step) => self.step(step),
            Event::Evaluation { loss, .. } => {
                if let Some(metrics) = &mut self.metrics {
                    metrics.validation_loss = told(*loss).or(metrics.validation_loss);
                }
            }
            _ => {}
        }
        *self != before
    }

    /// Whether there is a number to show.
    pub(super) fn has_metrics(&self) -> bool {
        self.metrics.is_some()
    }

    fn step(&mut self, step: &StepMetrics) {
        // After an evaluation the run is back at its steps.
        self.stage = Stage::Training;
        self.current_epoch = step.epoch;
        self.current_step = step.step;
        let share = if step.progress.is_finite() { step.progress.clamp(0.0, MOST_PROGRESS) } else { 0.0 };
        self.progress = self.progress.max((share * 10.0).round() / 10.0);
        let validation_loss = self.metrics.as_ref().and_then(|metrics| metrics.validation_loss);
        let Some(training_loss) = told(step.smoothed_loss) else { return };
        self.metrics = Some(Metrics {
            training_loss,
            training_loss_raw: told(step.loss),
            validation_loss,
            learning_rate: told(step.learning_rate),
            throughput: Some(step.tokens_per_second).filter(|speed| speed.is_finite()),
            gradient_norm: told(step.gradient_norm),
        });
    }
}

/// A number that the platform's table takes.
fn told(number: f64) -> Option<f64> {
    (number.is_finite() && number.abs() < MAX_REPORTED).then_some(number)
}

#[cfg(test)]
mod tests {
    use brightrun_trainer::events::StepTime;
    use serde_json::{Value, json};

    use super::*;

    fn step(step: u64, loss: f64) -> Event {
        Event::Step(StepMetrics {
            step,
            epoch: 2,
            progress: 10.0 * step as f64,
            loss,
            smoothed_loss: loss,
            learning_rate: 2e-4,
            gradient_norm: 0.5,
            tokens: 100,
            target_tokens: 40,
            tokens_per_second: 125.5,
            time: StepTime::default(),
            peak_memory_bytes: None,
            experts: None,
        })
    }

    fn evaluation(loss: f64) -> Event {
        Event::Evaluation { step: 1, loss, perplexity: 1.0, best: true, seconds: 1.0 }
    }

    fn after(events: &[Event]) -> Value {
        let mut shown = Shown::default();
        for event in events {
            shown.note(event);
        }
        serde_json::to_value(&shown).unwrap()
    }

    #[test]
    fn status_is_an_object_from_the_beginning_and_has_no_metrics_before_a_loss() {
        let begin = after(&[]);
        let expected = json!({
            "status": "running", "stage": "fetching", "progress": 0.0, "current_epoch": 0, "current_step": 0,
            "error_message": null,
        });
        assert_eq!(begin, expected);
        assert_eq!(after(&[Event::Stage { stage: Stage::Loading }, evaluation(2.0)])["metrics"], Value::Null);
    }

    #[test]
    fn a_step_shows_the_smoothed_loss_and_whole_numbers() {
        let shown = after(&[step(1, 7.0), evaluation(6.5), step(2, 5.0)]);
        assert_eq!((&shown["current_epoch"], &shown["current_step"]), (&json!(2), &json!(2)));
        assert_eq!(shown["progress"], json!(20.0));
        let expected = json!({
            "training_loss": 5.0, "training_loss_raw": 5.0, "validation_loss": 6.5, "learning_rate": 2e-4,
            "throughput": 125.5, "gradient_norm": 0.5,
        });
        assert_eq!((&shown["metrics"], &shown["stage"]), (&expected, &json!("training")));
    }

    #[test]
    fn numbers_that_would_break_the_platforms_row_are_left_out() {
        let Event::Step(mut metrics) = step(1, 7.0) else { unreachable!() };
        metrics.gradient_norm = 10_000.0;
        metrics.loss = f64::NAN;
        metrics.tokens_per_second = f64::INFINITY;
        let shown = after(&[Event::Step(metrics), evaluation(f64::INFINITY)]);
        assert_eq!(shown["metrics"], json!({ "training_loss": 7.0, "learning_rate": 2e-4 }));
        assert_eq!(after(&[step(1, f64::NAN)])["metrics"], Value::Null);
        // A loss that was real stays, where the next one is none.
        assert_eq!(after(&[step(1, 7.0), step(2, 1e9)])["metrics"]["training_loss"], json!(7.0));
    }

    #[test]
    fn progress_never_goes_back_and_ends_with_the_answer() {
        assert_eq!(after(&[step(10, 1.0)])["progress"], json!(99.0));
        assert_eq!(after(&[step(5, 1.0), step(4, 1.0)])["progress"], json!(50.0));
    }

    #[test]
    fn only_what_is_new_is_shown() {
        let mut shown = Shown::default();
        assert!(shown.note(&step(1, 7.0)));
        assert!(!shown.note(&step(1, 7.0)));
        assert!(!shown.note(&Event::Saved { step: 1, bytes: 5 }));
    }
}
