//! Where a walk through a step takes its pieces.

use super::card::Card;
use super::linear::Linear;
use super::room::{Piece, Room};
use crate::config::ModelConfig;
use crate::plan::BatchShape;
use crate::plan::adapted::LayerLora;
use crate::weights::BasePrecision;

/// A walk through what a step does with memory, written as the step itself is: what is taken is held by a variable, and given
/// back where that is dropped.
#[derive(Clone)]
pub(super) struct Walk<'a> {
    pub(super) room: Room,
    pub(super) config: &'a ModelConfig,
    pub(super) precision: &'a BasePrecision,
    pub(super) batch: BatchShape,
    pub(super) card: Card,
}

// === impl Walk ===

impl Walk<'_> {
    /// The same in an empty room.
    pub(super) fn elsewhere(&self) -> Self {
        Self { room: Room::new(), ..self.clone() }
    }

    pub(super) fn tokens(&self) -> u64 {
        self.batch.tokens
    }

    pub(super) fn hidden(&self) -> u64 {
        self.config.hidden_size as u64
    }

    /// So many values of bf16.
    pub(super) fn halves(&self, count: u64) -> Piece {
        self.room.take(2 * count)
    }

    /// So many values of `f32` or `u32`.
    pub(super) fn floats(&self, count: u64) -> Piece {
        self.room.take(4 * count)
    }

    /// Activations: so many values of bf16 for each token.
    pub(super) fn rows(&self, width: u64) -> Piece {
        self.halves(self.tokens() * width)
    }

    /// A linear below a layer.
    pub(super) fn linear(&self, lora: &LayerLora, layer: usize, path: &str, inputs: u64, outputs: u64) -> Linear {
        let quantised = self.precision.quantises(&format!("model.layers.{layer}.{path}")).is_some();
        Linear { inputs, outputs, rank: lora.rank(path).map(|rank| rank as u64), quantised }
    }
}
