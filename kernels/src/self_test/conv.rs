//! The causal convolution over documents shorter and longer than its taps.

use super::values::{Random, gradients, narrow, values, variable};
use super::{Comparison, Sink};
use crate::conv::{ConvWeight, HeadGroups, causal_conv_silu, reference};
use crate::{Documents, Result};

const OP: &str = "conv";
const TOLERANCE: f64 = 2e-6;
const TAPS: usize = 4;

pub(super) fn compare_all(random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let groups = HeadGroups { key_heads: 2, value_heads: 6, key_dim: 5, value_dim: 7 };
    let documents = Documents::from_lengths(&[1, 67, 2, 41])?;
    let (rows, width) = (documents.tokens(), groups.projection_width());
    let x = random.values(rows * width);
    let weight = random.values(groups.convolved_width() * TAPS);
    let upstream = random.values(rows * groups.convolved_width());
    let expected = reference::forward(&x, &weight, TAPS, &groups, &documents);
    let dx = reference::backward(&x, &weight, TAPS, &groups, &documents, &upstream);

    let x = variable(&x, (rows, width))?;
    let weight = ConvWeight::new(&narrow(&weight), groups.convolved_width(), TAPS)?;
    let out = causal_conv_silu(&x, &weight, &groups, &documents)?;
    let [found] = gradients(&out, &upstream, [&x])?;
    sink(&Comparison { op: OP, what: "forward", found: &values(&out)?, expected: &expected, tolerance: TOLERANCE });
    sink(&Comparison { op: OP, what: "gradient of qkvz", found: &found, expected: &dx, tolerance: TOLERANCE });
    Ok(())
}
