//! Frozen linears with and without an update, their weight plain and in NF4.

use super::values::{Random, gradients, narrow, values, variable, wide};
use super::{Comparison, Sink};
use crate::dropout::Dropout;
use crate::lora_linear::reference::{Shape, backward, forward};
use crate::lora_linear::{FrozenLinear, Lora, frozen_linear, lora_linear};
use crate::nf4::Nf4Matrix;
use crate::{FrozenWeight, Result};

/// Error for the root of the number of terms of the longest sum.
const PER_ROOT: f64 = 5e-7;
const DROPOUT: f32 = 0.3;

pub(super) fn compare_all(random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let small = Shape { rows: 33, inputs: 67, outputs: 45, rank: 5, scale: 1.75 };
    let weight = narrow(&random.values(small.outputs * small.inputs));
    let plain = FrozenWeight::plain(weight, small.outputs, small.inputs)?;
    compare("lora_linear, plain", &small, plain, DROPOUT, random, sink)?;
    // More than one decoded block, so that several are put together.
    let large = Shape { rows: 3, inputs: 701, outputs: 801, rank: 2, scale: 0.5 };
    let weight = narrow(&random.values(large.outputs * large.inputs));
    let matrix = Nf4Matrix::quantize(&weight, large.outputs, large.inputs, true)?;
    compare("lora_linear, NF4", &large, FrozenWeight::Nf4(matrix.into()), DROPOUT, random, sink)?;
    let weight = narrow(&random.values(small.outputs * small.inputs));
    let matrix = Nf4Matrix::quantize(&weight, small.outputs, small.inputs, false)?;
    compare_frozen("frozen_linear, NF4", &small, FrozenWeight::Nf4(matrix.into()), random, sink)
}

/// One shape, on the values that the weight decodes to.
pub(crate) fn compare(
    op: &'static str,
    s: &Shape,
    weight: FrozenWeight,
    probability: f32,
    random: &mut Random,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let (x, bias) = (random.values(s.rows * s.inputs), random.values(s.outputs));
    let (a, b) = (random.values(s.rank * s.inputs), random.values(s.outputs * s.rank));
    let upstream = random.values(s.rows * s.outputs);
    let dropout = (probability > 0.0).then(|| Dropout::keyed(probability, &[random.key()]));
    let mask: Vec<f64> = (0..x.len()).map(|i| dropout.map_or(1.0, |d| f64::from(d.factor(i as u64)))).collect();
    let w = wide(&weight.to_f32());
    let expected = forward(s, &x, &w, &bias, &a, &b, &mask);
    let gradient = backward(s, &x, &w, &a, &b, &mask, &upstream);

    let linear = FrozenLinear { weight, bias: Some(narrow(&bias).into()) };
    let lora = Lora { rank: s.rank, scale: s.scale as f32, dropout };
    let x = variable(&x, (s.rows, s.inputs))?;
    let (a, b) = (variable(&a, (s.rank, s.inputs))?, variable(&b, (s.outputs, s.rank))?);
    let out = lora_linear(&x, &a, &b, &linear, lora)?;
    let [dx, da, db] = gradients(&out, &upstream, [&x, &a, &b])?;
    for (what, found, expected) in [
        ("forward", values(&out)?, &expected),
        ("gradient of x", dx, &gradient.x),
        ("gradient of A", da, &gradient.a),
        ("gradient of B", db, &gradient.b),
    ] {
        sink(&Comparison { op, what, found: &found, expected, tolerance: tolerance(s) });
    }
    Ok(())
}

/// Without an update.
fn compare_frozen(
    op: &'static str,
    shape: &Shape,
    weight: FrozenWeight,
    random: &mut Random,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let s = &Shape { rank: 0, ..*shape };
    let (x, upstream) = (random.values(s.rows * s.inputs), random.values(s.rows * s.outputs));
    let w = wide(&weight.to_f32());
    let mask = vec![1.0; x.len()];
    let expected = forward(s, &x, &w, &vec![0.0; s.outputs], &[], &[], &mask);
    let gradient = backward(s, &x, &w, &[], &[], &mask, &upstream);

    let x = variable(&x, (s.rows, s.inputs))?;
    let out = frozen_linear(&x, &FrozenLinear { weight, bias: None })?;
    let [dx] = gradients(&out, &upstream, [&x])?;
    for (what, found, expected) in [("forward", values(&out)?, &expected), ("gradient of x", dx, &gradient.x)] {
        sink(&Comparison { op, what, found: &found, expected, tolerance: tolerance(s) });
    }
    Ok(())
}

fn tolerance(s: &Shape) -> f64 {
    PER_ROOT * (s.inputs.max(s.outputs).max(s.rows) as f64).sqrt()
}
