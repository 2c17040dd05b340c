//! The base on a card: `gpu::load`, `kernels::nf4::gpu` and `kernels::moe::gpu::experts`.

use brightrun_kernels::gpu::arena::rounded;
use brightrun_kernels::nf4::{BLOCK, NESTED_BLOCK};

use crate::plan::inventory::{Group, PartKind};

/// Numbers of the map of doubly quantised scales.
const MAP: u64 = 256;

/// What tensors that are alike take on a card, where there are so many experts in a layer. `quantised`: with doubly quantised
/// scales or without.
pub(in crate::plan) fn base_bytes(group: &Group, experts: u64, quantised: Option<bool>) -> u64 {
    if group.kind == PartKind::RoutedExperts {
        return group.count / experts.max(1) * layer_of_experts(group, experts, quantised);
    }
    let values = group.values;
    let one = match (&group.linear, quantised) {
        (Some(_), Some(double)) => nf4(1, values, double),
        (Some(_), None) => rounded(2 * values),
        (None, _) if group.kind == PartKind::Embedding => rounded(2 * values),
        (None, _) => rounded(4 * values),
    };
    group.count * one
}

/// All experts of a layer lie in one buffer, gate and up of each beside each other: all of that counts as gate's here.
fn layer_of_experts(group: &Group, experts: u64, quantised: Option<bool>) -> u64 {
    let matrices = match group.linear.as_deref().and_then(|path| path.rsplit('.').next()) {
        Some("gate_proj") => 2 * experts,
        Some("up_proj") => return 0,
        _ => experts,
    };
    match quantised {
        Some(true) => nf4(matrices, group.values, true) + rounded(4 * matrices),
        Some(false) => nf4(matrices, group.values, false),
        None => rounded(2 * matrices * group.values),
    }
}

/// Codes of values, and the scales of their blocks: in `f32`, or as codes with scales of their own.
fn nf4(matrices: u64, values: u64, double: bool) -> u64 {
    let blocks = values.div_ceil(BLOCK as u64);
    let scales = match double {
        true => {
            [matrices * blocks, 4 * matrices * blocks.div_ceil(NESTED_BLOCK as u64), 4 * MAP].map(rounded).iter().sum()
        }
        false => rounded(4 * matrices * blocks),
    };
    rounded(matrices * values.div_ceil(2)) + scales
}
