//! What a run tells whoever started it, while it goes. Times in them are those of the run's
//! [`Clock`](crate::clock::Clock).

use serde::{Deserialize, Deserializer, Serialize};

/// Something that happened in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// What the run will take was worked out, before anything large was read.
    Planned {
        /// What it runs on.
        machine: String,
        /// Memory at its peak.
        peak_bytes: u64,
        /// Memory that it may take.
        usable_bytes: u64,
        /// Optimiser steps.
        steps: u64,
        /// Tokens of all steps.
        tokens: u64,
        /// Time of all steps.
        seconds: f64,
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
        #[serde(deserialize_with = "number_or_null")]
        loss: f64,
        /// `exp(loss)`.
        #[serde(deserialize_with = "number_or_null")]
        perplexity: f64,
        /// No evaluation before it had a lower loss.
        best: bool,
        /// How long it took.
        seconds: f64,
    },
    /// How the routed experts are used and how far the adapters have come, layer by layer.
    Health {
        /// After this optimiser step.
        step: u64,
        /// Every layer with routed experts, and every layer with an adapter.
        layers: Vec<LayerHealth>,
    },
    /// The run goes on from a checkpoint.
    Resumed {
        /// Steps that are taken already.
        step: u64,
    },
    /// A checkpoint is complete.
    Saved {
        /// After this optimiser step.
        step: u64,
        /// Its size.
        bytes: u64,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Counted from 1.
    pub step: u64,
    /// The pass over the data this step belongs to, counted from 1.
    pub epoch: u32,
    /// Share of all steps that is done, 0 to 100.
    pub progress: f64,
    /// Mean loss per target token of this step.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// Exponential mean of the losses so far.
    #[serde(deserialize_with = "number_or_null")]
    pub smoothed_loss: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// Norm of all gradients before clipping.
    #[serde(deserialize_with = "number_or_null")]
    pub gradient_norm: f64,
    /// Tokens of this step.
    pub tokens: u64,
    /// Tokens of this step that had a target.
    pub target_tokens: u64,
    /// Tokens a second of this step; 0 where the clock stands still.
    pub tokens_per_second: f64,
    /// Where the step's time went.
    pub time: StepTime,
    /// Most memory in use so far, where the caller can tell.
    pub peak_memory_bytes: Option<u64>,
    /// How the routed experts were used, where the model has any.
    pub experts: Option<ExpertUse>,
}

/// Where a step's time went, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct StepTime {
    /// All of the step, from the end of the one before; evaluations and waiting for checkpoints are not in it.
    pub total: f64,
    /// Reading and packing.
    pub data: f64,
    /// Forward passes and the loss.
    pub forward: f64,
    /// Backward passes, recomputing included.
    pub backward: f64,
    /// Clipping and the optimiser.
    pub optimizer: f64,
    /// What is left of the total.
    pub idle: f64,
}

/// How the routed experts of all layers were used in one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ExpertUse {
    /// Share of all routed experts that got no token.
    pub idle_share: f64,
    /// Tokens of a layer's busiest expert over those of its average one; the mean over layers.
    pub imbalance: f64,
    /// Entropy of the router's choice over a layer's experts, as a share of the greatest possible; the mean over layers.
    pub router_entropy: f64,
}

/// One layer of [`Event::Health`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerHealth {
    /// Counted from 0.
    pub layer: usize,
    /// Tokens of every expert since the last such event; empty where the layer has none.
    pub tokens_per_expert: Vec<u64>,
    /// As in [`ExpertUse`], for this layer; `None` where it has no experts.
    pub router_entropy: Option<f64>,
    /// Norm of the update `scale · B·A` of all its adapters together; `None` where it has none.
    pub adapter_norm: Option<f64>,
}

/// JSON has no infinity and no NaN: they are written as `null`, and that is read as NaN.
fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
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
            tokens_per_second: 50.0,
            time: StepTime { total: 2.0, ..StepTime::default() },
            peak_memory_bytes: None,
            experts: None,
        });
        let json = serde_json::to_value(&step).unwrap();
        assert_eq!(json["event"], "step");
        assert_eq!(json["epoch"], 1);
        assert_eq!(json["progress"], 37.5);
        let stage = serde_json::to_string(&Event::Stage { stage: Stage::Loading }).unwrap();
        assert_eq!(stage, r#"{"event":"stage","stage":"loading"}"#);
    }
}
