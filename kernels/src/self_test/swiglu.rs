//! The activation and the shared expert's gate, with values for more than one task and gates far from zero.

use super::values::{Random, gradients, values, variable};
use super::{Comparison, Sink};
use crate::Result;
use crate::swiglu::{reference, scale_rows, swiglu};

const TOLERANCE: f64 = 5e-6;
/// Sums over a row.
const ROW: f64 = 1e-5;
const GATES: f64 = 12.0;

pub(super) fn compare_all(random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let (rows, width) = (131, 133);
    let count = rows * width;
    let (gate, up, upstream) = (random.within(GATES, count), random.values(count), random.values(count));
    let expected = reference::forward(&gate, &up);
    let (d_gate, d_up) = reference::backward(&gate, &up, &upstream);
    let (gate, up) = (variable(&gate, (rows, width))?, variable(&up, (rows, width))?);
    let out = swiglu(&gate, &up)?;
    let [found_gate, found_up] = gradients(&out, &upstream, [&gate, &up])?;
    for (what, found, expected) in [
        ("forward", values(&out)?, &expected),
        ("gradient of gate", found_gate, &d_gate),
        ("gradient of up", found_up, &d_up),
    ] {
        sink(&Comparison { op: "swiglu", what, found: &found, expected, tolerance: TOLERANCE });
    }
    compare_scale(rows, width, random, sink)
}

fn compare_scale(rows: usize, width: usize, random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let (y, g, upstream) = (random.values(rows * width), random.within(GATES, rows), random.values(rows * width));
    let expected = reference::scale_forward(&y, &g);
    let (d_y, d_g) = reference::scale_backward(&y, &g, &upstream);
    let (y, g) = (variable(&y, (rows, width))?, variable(&g, (rows, 1))?);
    let out = scale_rows(&y, &g)?;
    let [found_y, found_g] = gradients(&out, &upstream, [&y, &g])?;
    for (what, found, expected, tolerance) in [
        ("forward", values(&out)?, &expected, TOLERANCE),
        ("gradient of y", found_y, &d_y, TOLERANCE),
        ("gradient of the gate", found_g, &d_g, ROW),
    ] {
        sink(&Comparison { op: "shared expert's gate", what, found: &found, expected, tolerance });
    }
    Ok(())
}
