//! Heads before and after attention: norm and partial rotation out of a gated projection, and the output gate.

use super::values::{Random, gradients, narrow, values, variable};
use super::{Comparison, Sink};
use crate::norm::Kind;
use crate::rope::{HeadNorm, HeadNormRope, HeadShape, RopeTable, head_norm_rope, reference, sigmoid_gate};
use crate::{Documents, Result};

const TOLERANCE: f64 = 3e-6;
const HEADS: usize = 3;
const HEAD_DIM: usize = 21;
const GATES: f64 = 8.0;

pub(super) fn compare_all(random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let positions: std::sync::Arc<[u32]> = Documents::from_lengths(&[50, 1, 40])?.positions().into();
    let rope = |stride: usize, norm: Option<HeadNorm>| -> Result<HeadNormRope> {
        Ok(HeadNormRope {
            shape: HeadShape { heads: HEADS, head_dim: HEAD_DIM, source_stride: stride },
            norm,
            table: RopeTable::new(10, 1e4, 64)?,
            positions: positions.clone(),
        })
    };
    let weight = narrow(&random.values(HEAD_DIM)).into();
    let norm = HeadNorm { weight, kind: Kind::ZeroCentred, epsilon: 1e-6 };
    compare_heads("rope", rope(HEAD_DIM, None)?, random, sink)?;
    compare_heads("rope with norm", rope(2 * HEAD_DIM, Some(norm))?, random, sink)?;
    compare_gate(positions.len(), random, sink)
}

fn compare_heads(op: &'static str, rope: HeadNormRope, random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let (rows, width) = (rope.positions.len(), HEADS * rope.shape.source_stride);
    let (x, upstream) = (random.values(rows * width), random.values(rows * HEADS * HEAD_DIM));
    let expected = reference::forward(&x, &rope);
    let gradient = reference::backward(&x, &rope, &upstream);
    let x = variable(&x, (rows, width))?;
    let out = head_norm_rope(&x, rope)?;
    let [found] = gradients(&out, &upstream, [&x])?;
    sink(&Comparison { op, what: "forward", found: &values(&out)?, expected: &expected, tolerance: TOLERANCE });
    sink(&Comparison { op, what: "gradient of x", found: &found, expected: &gradient, tolerance: TOLERANCE });
    Ok(())
}

fn compare_gate(rows: usize, random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let width = HEADS * HEAD_DIM;
    let (attention, raw) = (random.values(rows * width), random.within(GATES, 2 * rows * width));
    let upstream = random.values(rows * width);
    let expected = reference::gate_forward(&attention, &raw, HEAD_DIM);
    let (d_attention, d_raw) = reference::gate_backward(&attention, &raw, HEAD_DIM, &upstream);
    let (attention, raw) = (variable(&attention, (rows, width))?, variable(&raw, (rows, 2 * width))?);
    let out = sigmoid_gate(&attention, &raw, HEADS, HEAD_DIM)?;
    let [found_attention, found_raw] = gradients(&out, &upstream, [&attention, &raw])?;
    for (what, found, expected) in [
        ("forward", values(&out)?, &expected),
        ("gradient of attention", found_attention, &d_attention),
        ("gradient of the projection", found_raw, &d_raw),
    ] {
        sink(&Comparison { op: "attention's output gate", what, found: &found, expected, tolerance: TOLERANCE });
    }
    Ok(())
}
