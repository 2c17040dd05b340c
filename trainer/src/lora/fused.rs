//! The layout of transformers 5 and PEFT 0.21, where the experts of a layer are two parameters, `gate_up_proj [E, 2I, H]`
//! and `down_proj [E, H, I]`, and each has one pair of LoRA matrices for all experts:
//!
//! * `A [E * R, in]`: row `e * R + k` is row `k` of expert `e`,
//! * `B [out, R * E]`: column `k * E + e` is column `k` of expert `e`.
//!
//! `gate` and `up` of rank `r` become one pair of rank `R = 2r`: their `A` stacked, their `B` on the diagonal of blocks.

use std::ops::Range;

use super::{Adapter, Matrix};
use crate::config::{MlpKind, ModelConfig};
use crate::weights::{PROJECTIONS, TensorSpec, expert_list, is_routed_expert};

/// The parameter that holds gate and up of all experts.
pub(super) const GATE_UP: &str = "gate_up_proj";
/// The parameter that holds down of all experts.
pub(super) const DOWN: &str = "down_proj";
/// Which of [`PROJECTIONS`] the first holds.
pub(super) const OF_GATE_UP: Range<usize> = 0..2;
/// Which of [`PROJECTIONS`] the second holds.
pub(super) const OF_DOWN: Range<usize> = 2..3;

/// The path of a parameter of a layer's experts.
pub(super) fn parameter(list: &str, name: &str) -> String {
    format!("{list}.{name}")
}

/// PEFT wraps a module once for each adapted parameter, one wrapper round the other, `gate_up_proj` first. The outer
/// wrapper, or the only one, has the path of the experts; this is the inner one of two.
pub(super) fn inner_wrapper(list: &str) -> String {
    format!("{list}.base_layer")
}

/// What PEFT adapts for a linear that is no routed expert's: a module, or the parameter of one.
///
/// PEFT 0.21 takes these four names in `target_modules` for the routed experts and the router, whatever stands before
/// them, and leaves a shared expert or a dense MLP without an adapter, silently. As parameters they are what they say.
pub(super) fn target_name(path: &str) -> String {
    let leaf = path.rsplit('.').next().unwrap_or(path);
    match PROJECTIONS.contains(&leaf) || leaf == "gate" {
        true => format!("{path}.weight"),
        false => path.to_owned(),
    }
}

/// Everything that transformers 5 has names for.
pub(super) struct Names {
    /// Modules with a weight.
    pub(super) modules: Vec<String>,
    /// Parameters.
    pub(super) parameters: Vec<String>,
}

// === impl Names ===

impl Names {
    pub(super) fn of(config: &ModelConfig, tensors: &[TensorSpec]) -> Self {
        let is_kept = |tensor: &&TensorSpec| !tensor.module().is_some_and(is_routed_expert);
        let kept: Vec<&TensorSpec> = tensors.iter().filter(is_kept).collect();
        let modules = kept.iter().filter_map(|tensor| tensor.module().map(str::to_owned)).collect();
        let mut parameters: Vec<String> = kept.iter().map(|tensor| tensor.name.clone()).collect();
        for list in expert_lists(config) {
            parameters.extend([GATE_UP, DOWN].map(|name| parameter(&list, name)));
        }
        Self { modules, parameters }
    }
}

/// The paths of all layers' experts.
pub(super) fn expert_lists(config: &ModelConfig) -> impl Iterator<Item = String> + '_ {
    let sparse = config.layers.iter().enumerate().filter(|(_, layer)| layer.mlp == MlpKind::Sparse);
    sparse.map(|(number, _)| expert_list(number))
}

/// The parts of one fused parameter for one expert, top to bottom: gate and up, or down alone.
pub(super) type Parts<'a> = Vec<&'a Adapter>;

/// `A` of all experts.
pub(super) fn join_a(experts: &[Parts]) -> Vec<f32> {
    experts.iter().flatten().flat_map(|part| part.a.values.iter().copied()).collect()
}

/// `B` of all experts.
pub(super) fn join_b(experts: &[Parts]) -> Vec<f32> {
    let count = experts.len();
    let rows: usize = experts[0].iter().map(|part| part.b.rows).sum();
    let rank: usize = experts[0].iter().map(|part| part.b.columns).sum();
    let mut joined = vec![0.0; rows * rank * count];
    for (expert, parts) in experts.iter().enumerate() {
        let (mut first_row, mut first_column) = (0, 0);
        for part in parts {
            for row in 0..part.b.rows {
                for column in 0..part.b.columns {
                    let place = (first_row + row) * rank * count + (first_column + column) * count + expert;
                    joined[place] = part.b.values[row * part.b.columns + column];
                }
            }
            first_row += part.b.rows;
            first_column += part.b.columns;
        }
    }
    joined
}

/// The pair of one expert.
pub(super) fn expert(joined: &Adapter, experts: usize, number: usize) -> Adapter {
    let Adapter { a, b } = joined;
    let rank = a.rows / experts;
    let block = rank * a.columns;
    let values = (0..b.rows * rank).map(|index| {
        let (row, column) = (index / rank, index % rank);
        b.values[row * b.columns + column * experts + number]
    });
    Adapter {
        a: Matrix { rows: rank, columns: a.columns, values: a.values[number * block..][..block].to_vec() },
        b: Matrix { rows: b.rows, columns: rank, values: values.collect() },
    }
}

/// Whether the `B` of all gates and ups, of this rank, has its values only in the two blocks on the diagonal, as two
/// separate adapters have them, and adapters that were never trained.
pub(super) fn is_block_diagonal(joined: &Matrix, rank: usize) -> bool {
    // Columns are ordered by rank before expert, so halves of the rank are halves of the columns.
    let (half_rows, half_columns) = (joined.rows / 2, joined.columns / 2);
    let off_diagonal = |row: usize| if row < half_rows { half_columns..joined.columns } else { 0..half_columns };
    let is_zero =
        |row: usize| joined.values[row * joined.columns..][off_diagonal(row)].iter().all(|value| *value == 0.0);
    rank.is_multiple_of(2) && (0..joined.rows).all(is_zero)
}

/// Gate and up of one expert. Off the diagonal of blocks they share all of `A`, so that each keeps the whole rank.
pub(super) fn split_gate_up(fused: &Adapter, block_diagonal: bool) -> [Adapter; 2] {
    let rank = if block_diagonal { fused.a.rows / 2 } else { fused.a.rows };
    let width = fused.b.rows / 2;
    [0, 1].map(|part| {
        let first = if block_diagonal { part * rank } else { 0 };
        let a = fused.a.values[first * fused.a.columns..][..rank * fused.a.columns].to_vec();
        let rows = fused.b.values.chunks_exact(fused.b.columns).skip(part * width).take(width);
        let b = rows.flat_map(|row| row[first..first + rank].iter().copied()).collect();
        Adapter {
            a: Matrix { rows: rank, columns: fused.a.columns, values: a },
            b: Matrix { rows: width, columns: rank, values: b },
        }
    })
}
