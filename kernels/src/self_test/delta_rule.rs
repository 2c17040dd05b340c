//! The gated delta rule over documents around the size of its chunks.

use super::values::{Random, gradients, narrow, values, variable};
use super::{Comparison, Sink};
use crate::conv::HeadGroups;
use crate::delta_rule::{Parameters, delta_rule, reference};
use crate::{Documents, Result};

const OP: &str = "delta_rule";
const FORWARD: f64 = 1e-5;
const GRADIENT: f64 = 1e-5;

pub(super) fn compare_all(random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let groups = HeadGroups { key_heads: 2, value_heads: 4, key_dim: 11, value_dim: 13 };
    let parameters = parameters(groups, random);
    compare(&parameters, &Documents::from_lengths(&[65, 1, 3, 64])?, random, sink)
}

/// Decays of all speeds.
pub(crate) fn parameters(groups: HeadGroups, random: &mut Random) -> Parameters {
    let a_log: Vec<f32> = narrow(&random.values(groups.value_heads)).iter().map(|value| 2.0 * value - 1.0).collect();
    Parameters { groups, a_log: a_log.into(), dt_bias: narrow(&random.values(groups.value_heads)).into() }
}

/// One shape.
pub(crate) fn compare(p: &Parameters, documents: &Documents, random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let (rows, width, gates) = (documents.tokens(), p.qkv_width(), 2 * p.groups.value_heads);
    let (qkv, ba) = (random.values(rows * width), random.values(rows * gates));
    let upstream = random.values(rows * p.groups.value_width());
    let expected = reference::packed(p, &qkv, &ba, documents, &upstream);

    let (qkv, ba) = (variable(&qkv, (rows, width))?, variable(&ba, (rows, gates))?);
    let out = delta_rule(&qkv, &ba, p, documents)?;
    let [dqkv, dba] = gradients(&out, &upstream, [&qkv, &ba])?;
    for (what, found, expected, tolerance) in [
        ("forward", values(&out)?, &expected.out, FORWARD),
        ("gradient of qkv", dqkv, &expected.qkv, GRADIENT),
        ("gradient of ba", dba, &expected.ba, GRADIENT),
    ] {
        sink(&Comparison { op: OP, what, found: &found, expected, tolerance });
    }
    Ok(())
}
