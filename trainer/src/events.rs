//! What a run tells whoever started it, while it goes. Events carry no wall time: who receives them has a clock.

use serde::Serialize;

/// Something that happened in a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The run entered a stage.
    Stage {
        /// Which one.
        stage: Stage,
    },
    /// A part of the dataset was read and tokenised.
    Reading {
        /// Bytes of the file that were read.
        bytes: u64,
        /// Size of the file.
        total: u64,
    },
    /// Model and data are ready and the first step is about to begin.
    Started {
        /// Parameters that are trained.
        trainable_parameters: u64,
        /// Parameters of the frozen base.
        base_parameters: u64,
        /// Training sequences.
        sequences: u64,
        /// Validation sequences.
        validation_sequences: u64,
        /// Optimiser steps the run will take.
        steps: u64,
        /// Passes over the training sequences.
        epochs: u32,
    },
    /// An optimiser step is done.
    Step(StepMetrics),
    /// The validation sequences were looked at.
    Evaluation {
        /// After this optimiser step.
        step: u64,
        /// Mean loss per target token.
        loss: f64,
        /// `exp(loss)`.
        perplexity: f64,
    },
    /// Something that does not stop the run and that its owner should know.
    Warning {
        /// What, and what was done about it.
        message: String,
    },
    /// All files are written.
    Finished {
        /// Optimiser steps taken.
        steps: u64,
        /// The smoothed training loss at the end.
        final_loss: f64,
    },
}

/// Where a run is; the names are those the platform shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The dataset is read.
    Fetching,
    /// The base model is read.
    Loading,
    /// Optimiser steps.
    Training,
    /// The validation loss is measured.
    Evaluating,
    /// Adapter and curves are written.
    Saving,
    /// Files go to where the platform finds them.
    Uploading,
}

/// One optimiser step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepMetrics {
    /// Counted from 1.
    pub step: u64,
    /// The pass over the data this step belongs to, counted from 1.
    pub epoch: u32,
    /// Share of all steps that is done, 0 to 100.
    pub progress: f64,
    /// Mean loss per target token of this step.
    pub loss: f64,
    /// Exponential mean of the losses so far.
    pub smoothed_loss: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// Norm of all gradients before clipping.
    pub gradient_norm: f64,
    /// Tokens of this step.
    pub tokens: u64,
    /// Tokens of this step that had a target.
    pub target_tokens: u64,
}

/// Receives a run's events. It must be quick, and cannot fail: a run never waits for whoever watches it.
pub trait EventSink: Send + Sync {
    /// Takes note of an event.
    fn emit(&self, event: &Event);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_flat_json_objects_with_a_name() {
        let step = Event::Step(StepMetrics {
            step: 3,
            epoch: 1,
            progress: 37.5,
            loss: 2.5,
            smoothed_loss: 2.75,
            learning_rate: 1e-3,
            gradient_norm: 0.5,
            tokens: 100,
            target_tokens: 40,
        });
        let json = serde_json::to_value(&step).unwrap();
        assert_eq!(json["event"], "step");
        assert_eq!(json["epoch"], 1);
        assert_eq!(json["progress"], 37.5);
        let stage = serde_json::to_string(&Event::Stage { stage: Stage::Loading }).unwrap();
        assert_eq!(stage, r#"{"event":"stage","stage":"loading"}"#);
    }
}
