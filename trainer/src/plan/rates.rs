//! Which share of a card's published rate each kind of op reaches. Computed by counting instructions and bytes of the kernels
//! (`benches/LOG.md`, the table of predictions; the lower end of each range); none of them is measured.

use super::compute::ByOp;
use super::machine::{Machine, MachineKind};

/// Shares of the published rate of dense bf16 products.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rates {
    linears: f64,
    /// In tiles that are full.
    experts: f64,
    attention: f64,
    delta_rule: f64,
    head: f64,
}

/// Those of both ways through the layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Directions {
    pub(super) forward: Rates,
    pub(super) backward: Rates,
}

/// Cards whose tensor cores `mma.sync` keeps busy.
const FORWARD: Rates = Rates { linears: 0.60, experts: 0.60, attention: 0.50, delta_rule: 0.18, head: 0.75 };
const BACKWARD_ATTENTION: f64 = 0.33;
/// Cards with tensor cores so fast that it does not.
const FAST_FORWARD: Rates = Rates { linears: 0.55, experts: 0.36, attention: 0.28, delta_rule: 0.18, head: 0.45 };
const FAST_BACKWARD_ATTENTION: f64 = 0.22;
/// Operations a second, in 10^12, that tell the two: an A100 has 312, an H100 989.
const FAST: f64 = 600.0;

/// Rows of a tile of the experts' products, and the mean rows of an expert up to which tiles are small: an expert with fewer
/// rows computes a whole tile all the same.
const TILE: f64 = 128.0;
const SMALL_TILE: f64 = 64.0;
const FEW_ROWS: f64 = 96.0;

// === impl Rates ===

impl Rates {
    /// Where an expert has so many rows on average: its last tile is half full.
    pub(super) fn of(machine: &Machine, rows: f64) -> Directions {
        let fast = matches!(machine.kind, MachineKind::Gpu { bf16_tflops, .. } if bf16_tflops > FAST);
        let (rates, backward) =
            if fast { (FAST_FORWARD, FAST_BACKWARD_ATTENTION) } else { (FORWARD, BACKWARD_ATTENTION) };
        let tile = if rows <= FEW_ROWS { SMALL_TILE } else { TILE };
        let filled = rows / (rows + tile / 2.0).max(tile);
        let forward = Self { experts: rates.experts * filled, ..rates };
        Directions { forward, backward: Self { attention: backward, ..forward } }
    }

    /// How many operations at the published rate take as long as these do.
    pub(super) fn slowed(&self, operations: &ByOp) -> f64 {
        operations.linears / self.linears
            + operations.experts / self.experts
            + operations.attention / self.attention
            + operations.delta_rule / self.delta_rule
            + operations.head / self.head
    }
}
