//! One decoder layer on a card: `gpu::layer`.

use super::attention::{self, Attention};
use super::delta_net::{self, DeltaNet};
use super::mlp::{self, Mlp};
use super::room::Piece;
use super::walk::Walk;
use crate::config::{LayerConfig, MixerKind};
use crate::plan::adapted::LayerLora;

/// Which layer, and what learns in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) layer: usize,
    pub(super) lora: &'a LayerLora,
}

/// A layer.
pub(super) struct Layer {
    mixer: Mixer,
    mlp: Mlp,
}

enum Mixer {
    Attention(Attention),
    DeltaNet(DeltaNet),
}

enum MixerTape {
    Attention(attention::Tape),
    DeltaNet(delta_net::Tape),
}

/// What a forward pass keeps.
pub(super) struct Tape {
    first: FirstHalf,
    mlp: mlp::Tape,
}

struct FirstHalf {
    x: Piece,
    mixer: MixerTape,
    middle: Piece,
    y: Piece,
}

// === impl Layer ===

impl Layer {
    pub(super) fn of(walk: &Walk<'_>, place: Place<'_>, kind: LayerConfig) -> Self {
        let delta_net = if kind.mixer == MixerKind::DeltaNet { DeltaNet::of(walk, &place) } else { None };
        let mixer = delta_net.map_or_else(|| Mixer::Attention(Attention::of(walk, &place)), Mixer::DeltaNet);
        Self { mixer, mlp: Mlp::of(walk, &place, kind.mlp) }
    }

    /// The output, and what the backward pass needs.
    pub(super) fn forward(&self, walk: &Walk<'_>) -> (Piece, Tape) {
        let first = self.first_half(walk);
        let (out, mlp) = self.mlp.forward(walk);
        (out, Tape { first, mlp })
    }

    /// What the backward pass needs, without the output.
    pub(super) fn forward_again(&self, walk: &Walk<'_>) -> Tape {
        let first = self.first_half(walk);
        Tape { first, mlp: self.mlp.forward_again(walk) }
    }

    fn first_half(&self, walk: &Walk<'_>) -> FirstHalf {
        let x = walk.rows(walk.hidden());
        let (mixed, mixer) = match &self.mixer {
            Mixer::Attention(attention) => {
                let (mixed, tape) = attention.forward(walk);
                (mixed, MixerTape::Attention(tape))
            }
            Mixer::DeltaNet(delta_net) => {
                let (mixed, tape) = delta_net.forward(walk);
                (mixed, MixerTape::DeltaNet(tape))
            }
        };
        let (middle, y) = (walk.rows(walk.hidden()), walk.rows(walk.hidden()));
        drop(mixed);
        FirstHalf { x, mixer, middle, y }
    }

    /// The gradient of the input.
    pub(super) fn backward(&self, walk: &Walk<'_>, tape: Tape) -> Piece {
        let Tape { first: FirstHalf { x: _x, mixer, middle, y }, mlp } = tape;
        let d_y = self.mlp.backward(walk, mlp);
        let _d_middle = walk.rows(walk.hidden());
        drop((d_y, y, middle));
        let _d_x = match (&self.mixer, mixer) {
            (Mixer::Attention(attention), MixerTape::Attention(tape)) => Some(attention.backward(walk, tape)),
            (Mixer::DeltaNet(delta_net), MixerTape::DeltaNet(tape)) => Some(delta_net.backward(walk, tape)),
            _ => None,
        };
        walk.rows(walk.hidden())
    }
}
