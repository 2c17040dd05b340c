//! Attention over packed documents, one of them padded, with shared key heads.

use super::values::{Random, gradients, values, variable};
use super::{Comparison, Sink};
use crate::attention::{Heads, attention, reference};
use crate::{Documents, Result};

const OP: &str = "attention";
const FORWARD: f64 = 2e-6;
const GRADIENT: f64 = 5e-6;

pub(super) fn compare_all(random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    // Blocks of 64 tokens that are full, begun and one over.
    let documents = Documents::from_padded_lengths(&[(70, 41), (1, 1), (65, 65)])?;
    compare(Heads { query: 6, key_value: 2, width: 9 }, &documents, random, sink)
}

/// One shape.
pub(crate) fn compare(heads: Heads, documents: &Documents, random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let rows = documents.tokens();
    let (queries, keys) = (heads.query * heads.width, heads.key_value * heads.width);
    let (q, k, v) = (random.values(rows * queries), random.values(rows * keys), random.values(rows * keys));
    let upstream = random.values(rows * queries);
    let expected = reference::forward(&heads, &q, &k, &v, documents);
    let (dq, dk, dv) = reference::backward(&heads, &q, &k, &v, documents, &upstream);

    let (q, k, v) = (variable(&q, (rows, queries))?, variable(&k, (rows, keys))?, variable(&v, (rows, keys))?);
    let out = attention(&q, &k, &v, heads, documents)?;
    sink(&Comparison { op: OP, what: "forward", found: &values(&out)?, expected: &expected, tolerance: FORWARD });
    let found = gradients(&out, &upstream, [&q, &k, &v])?;
    let names = ["gradient of q", "gradient of k", "gradient of v"];
    for ((what, found), expected) in names.into_iter().zip(&found).zip([&dq, &dk, &dv]) {
        sink(&Comparison { op: OP, what, found, expected, tolerance: GRADIENT });
    }
    Ok(())
}
