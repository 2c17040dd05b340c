//! Head and loss in one, over a vocabulary of more than one block of sums, with rows that have no target.

use super::values::{Random, gradients, narrow, values, variable};
use super::{Comparison, Sink};
use crate::cross_entropy::{Lora, fused, reference};
use crate::dropout::Dropout;
use crate::{FrozenWeight, Result};

const OP: &str = "cross_entropy";
const TOLERANCE: f64 = 1e-5;
const VOCABULARY: usize = 9001;
const WIDTH: usize = 9;
const RANK: usize = 3;
const SCALE: f64 = 0.5;
const CHUNK_ROWS: usize = 3;

pub(super) fn compare_all(random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let targets = [Some(0), Some(VOCABULARY as u32 - 1), None, Some(17), Some(4711), None, Some(17)];
    let (hidden, weight) = (random.values(targets.len() * WIDTH), random.values(VOCABULARY * WIDTH));
    let (a, b) = (random.values(RANK * WIDTH), random.values(VOCABULARY * RANK));
    let dropout = Some(Dropout::keyed(0.3, &[random.key()]));
    let lora = reference::Lora { a: &a, b: &b, scale: SCALE, dropout };
    let expected = reference::loss(&hidden, WIDTH, &weight, Some(lora), &targets);

    let hidden = variable(&hidden, (targets.len(), WIDTH))?;
    let (a, b) = (variable(&a, (RANK, WIDTH))?, variable(&b, (VOCABULARY, RANK))?);
    let weight = FrozenWeight::plain(narrow(&weight), VOCABULARY, WIDTH)?;
    let lora = Lora { a: &a, b: &b, scale: SCALE as f32, dropout };
    let loss = fused(&hidden, Some(lora), &weight, &targets, CHUNK_ROWS)?;
    let [d_hidden, d_a, d_b] = gradients(&loss, &[1.0], [&hidden, &a, &b])?;
    for (what, found, expected) in [
        ("forward", values(&loss)?, &vec![expected.loss]),
        ("gradient of the rows", d_hidden, &expected.d_hidden),
        ("gradient of A", d_a, &expected.d_a),
        ("gradient of B", d_b, &expected.d_b),
    ] {
        sink(&Comparison { op: OP, what, found: &found, expected, tolerance: TOLERANCE });
    }
    Ok(())
}
