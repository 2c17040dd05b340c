//! The gated delta rule: documents that end at and beside the ends of chunks, decays of all speeds.

use half::bf16;

use super::{BF16, BF16_GRADIENT, Checks, Sizes};
use crate::conv::HeadGroups;
use crate::delta_rule::{GpuChunks, GpuDeltaRule, Parameters, reference};
use crate::gpu::Buffer;
use crate::self_test::values::narrow;
use crate::{Documents, Result};

/// Key heads, value heads, their sizes; lengths of documents; what is added to the logarithm of all decays' rates, and to
/// all queries, keys and values: with 1, keys are alike as they are behind a convolution's activation, and a chunk's
/// inverse is far from the identity.
const SMALL: [([usize; 4], &[usize], f64, f64); 11] = [
    ([1, 1, 16, 16], &[1], 0.0, 0.0),
    ([2, 4, 16, 16], &[65, 1, 3, 64], 0.0, 0.0),
    ([1, 2, 32, 32], &[63, 128, 1, 1, 2], 0.0, 0.0),
    ([1, 3, 16, 48], &[17, 129], 0.0, 0.0),
    ([2, 2, 32, 80], &[70], 0.0, 0.0),
    // Hardly any decay, over several chunks; and so much of it that a chunk forgets all.
    ([1, 2, 16, 32], &[200], -6.0, 0.0),
    ([1, 2, 16, 32], &[130, 7], 3.0, 0.0),
    ([1, 1, 32, 32], &[150], -6.0, 0.5),
    ([1, 1, 32, 32], &[66], 0.0, 1.0),
    ([1, 2, 112, 32], &[2, 65], 0.0, 0.3),
    ([1, 1, 128, 48], &[66], -2.0, 0.0),
];
const REAL: [([usize; 4], &[usize], f64, f64); 5] = [
    ([8, 16, 128, 128], &[63, 1, 200, 64], 0.0, 0.0),
    ([2, 4, 128, 128], &[500], -6.0, 0.0),
    ([2, 2, 128, 128], &[500], -4.0, 0.5),
    ([2, 2, 128, 128], &[257, 128], 3.0, 0.0),
    ([2, 4, 64, 96], &[127, 129], -1.0, 1.0),
];

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    let shapes: &[_] = if checks.sizes == Sizes::Small { &SMALL } else { &REAL };
    for &([key_heads, value_heads, key_dim, value_dim], lengths, rate, alike) in shapes {
        let groups = HeadGroups { key_heads, value_heads, key_dim, value_dim };
        checks.case(format!("delta rule {lengths:?} x {groups:?}, rates of decay e^{rate}, alike {alike}"));
        let a_log: Vec<f64> = checks.random.values(value_heads).iter().map(|value| 2.0 * value - 1.0 + rate).collect();
        let dt_bias = narrow(&checks.random.values(value_heads));
        let parameters = Parameters { groups, a_log: narrow(&a_log).into(), dt_bias: dt_bias.into() };
        one(checks, &parameters, &Documents::from_lengths(lengths)?, alike)?;
    }
    Ok(())
}

fn one(checks: &mut Checks<'_>, parameters: &Parameters, documents: &Documents, alike: f64) -> Result<()> {
    let (groups, tokens) = (&parameters.groups, documents.tokens());
    let (width, gates) = (groups.convolved_width(), 2 * groups.value_heads);
    let qkv: Vec<bf16> =
        checks.random.values(tokens * width).iter().map(|value| bf16::from_f64(value + alike)).collect();
    let (qkv, wide_qkv) = (checks.gpu.of(&qkv)?, qkv.iter().map(|value| value.to_f64()).collect::<Vec<_>>());
    let (ba, wide_ba) = checks.bf16_within(3.0, tokens * gates)?;
    let (dout, wide_dout) = checks.bf16(tokens * groups.value_width())?;
    let expected = reference::packed(parameters, &wide_qkv, &wide_ba, documents, &wide_dout);

    let gpu = checks.gpu;
    let (rule, chunks) = (GpuDeltaRule::of(gpu, parameters)?, GpuChunks::of(gpu, documents)?);
    let mut out: Buffer<bf16> = gpu.empty(dout.len())?;
    rule.forward(&qkv, &ba, &chunks, &mut out)?;
    checks.compare("forward", &out, &expected.out, BF16)?;
    let mut out: Buffer<bf16> = gpu.empty(dout.len())?;
    let saved = rule.forward_saving(&qkv, &ba, &chunks, &mut out)?;
    checks.compare("forward that saves", &out, &expected.out, BF16)?;
    let (mut d_qkv, mut d_ba) = (gpu.empty(qkv.len())?, gpu.empty(ba.len())?);
    rule.backward(&qkv, &ba, &chunks, &saved, &dout, (&mut d_qkv, &mut d_ba))?;

    let keys = groups.key_width();
    for (what, from, to) in
        [("gradient of q", 0, keys), ("gradient of k", keys, 2 * keys), ("gradient of v", 2 * keys, width)]
    {
        columns(checks, what, (&d_qkv, &expected.qkv), |at| (from..to).contains(&(at % width)))?;
    }
    let per_key = groups.values_per_key();
    columns(checks, "gradient of b", (&d_ba, &expected.ba), |at| at % (2 * per_key) < per_key)?;
    columns(checks, "gradient of a", (&d_ba, &expected.ba), |at| at % (2 * per_key) >= per_key)
}

/// Compares those values of a gradient by themselves, which else would vanish beside larger ones.
fn columns(
    checks: &mut Checks<'_>,
    what: &'static str,
    (found, expected): (&Buffer<bf16>, &[f64]),
    wanted: impl Fn(usize) -> bool,
) -> Result<()> {
    let found = found.download()?;
    let found: Vec<bf16> = (0..found.len()).filter(|at| wanted(*at)).map(|at| found[at]).collect();
    let expected: Vec<f64> = (0..expected.len()).filter(|at| wanted(*at)).map(|at| expected[at]).collect();
    let found = checks.gpu.of(&found)?;
    checks.compare(what, &found, &expected, BF16_GRADIENT)
}
