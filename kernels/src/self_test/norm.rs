//! The norms, with rows for more than one task.

use super::values::{Random, gradients, narrow, values, variable};
use super::{Comparison, Sink};
use crate::Result;
use crate::conv::HeadGroups;
use crate::norm::{Kind, gated, reference, rms};

const TOLERANCE: f64 = 3e-6;
const EPSILON: f64 = 1e-6;

pub(super) fn compare_all(random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    compare_rms("norm, plain", Kind::Plain, random, sink)?;
    compare_rms("norm, zero-centred", Kind::ZeroCentred, random, sink)?;
    compare_gated(random, sink)
}

fn compare_rms(op: &'static str, kind: Kind, random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let (rows, width) = (131, 133);
    let (x, weight, upstream) = (random.values(rows * width), random.values(width), random.values(rows * width));
    let expected = reference::forward(&x, &weight, kind, EPSILON);
    let gradient = reference::backward(&x, &weight, kind, EPSILON, &upstream);
    let x = variable(&x, (rows, width))?;
    let out = rms(&x, &narrow(&weight).into(), kind, EPSILON as f32)?;
    let [found] = gradients(&out, &upstream, [&x])?;
    sink(&Comparison { op, what: "forward", found: &values(&out)?, expected: &expected, tolerance: TOLERANCE });
    sink(&Comparison { op, what: "gradient of x", found: &found, expected: &gradient, tolerance: TOLERANCE });
    Ok(())
}

fn compare_gated(random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let op = "norm, gated";
    let groups = HeadGroups { key_heads: 2, value_heads: 6, key_dim: 5, value_dim: 37 };
    let rows = 17;
    let (o, qkvz) = (random.values(rows * groups.value_width()), random.values(rows * groups.projection_width()));
    let (weight, upstream) = (random.values(groups.value_dim), random.values(o.len()));
    let expected = reference::gated_forward(&o, &qkvz, &weight, &groups, EPSILON);
    let (d_o, d_qkvz) = reference::gated_backward(&o, &qkvz, &weight, &groups, EPSILON, &upstream);
    let o = variable(&o, (rows, groups.value_width()))?;
    let qkvz = variable(&qkvz, (rows, groups.projection_width()))?;
    let out = gated(&o, &qkvz, &narrow(&weight).into(), &groups, EPSILON as f32)?;
    let [found_o, found_qkvz] = gradients(&out, &upstream, [&o, &qkvz])?;
    for (what, found, expected) in [
        ("forward", values(&out)?, &expected),
        ("gradient of o", found_o, &d_o),
        ("gradient of qkvz", found_qkvz, &d_qkvz),
    ] {
        sink(&Comparison { op, what, found: &found, expected, tolerance: TOLERANCE });
    }
    Ok(())
}
