//! The gated delta rule: documents that end at and beside the ends of chunks, decays of all speeds.

use half::bf16;

use super::{BF16, BF16_GRADIENT, Checks, Random, Sizes};
use crate::conv::HeadGroups;
use crate::delta_rule::{GpuChunks, GpuDeltaRule, Parameters, reference};
use crate::gpu::Buffer;
use crate::self_test::values::{narrow, wide};
use crate::{Documents, Result};

/// A row of documents, and what is peculiar about its arguments.
#[derive(Debug)]
struct Case {
    /// Key heads, value heads, and the sizes of both.
    heads: [usize; 4],
    lengths: &'static [usize],
    /// Added to the logarithms of the rates of decay.
    rate: f64,
    /// The inputs of decay and of the writes' strength are between plus and minus this,
    gates: f64,
    /// and this is added to the latter.
    strength: f64,
    /// Added to all queries, keys and values: with 1, keys are alike as they are behind a convolution's activation, and a
    /// chunk's inverse is far from the identity.
    alike: f64,
    /// Which part of a key is the same for all tokens of a head.
    same: f64,
    /// What queries and keys are multiplied by.
    length: f64,
    /// How many tokens at the end of each document are all zeros, as is the gradient of their outputs.
    padding: usize,
    /// What is allowed for the outputs, for all gradients, and for that of the decay's input.
    allowed: [f64; 3],
}

/// Nothing peculiar.
const fn plain(heads: [usize; 4], lengths: &'static [usize]) -> Case {
    Case {
        heads,
        lengths,
        rate: 0.0,
        gates: 3.0,
        strength: 0.0,
        alike: 0.0,
        same: 0.0,
        length: 1.0,
        padding: 0,
        allowed: [BF16, BF16_GRADIENT, BF16_GRADIENT],
    }
}

/// No decay at all, in effect.
const NEVER: f64 = -30.0;
/// What is allowed where keys are alike and nothing decays: each write takes back the one before, and what is left, above all
/// the gradient of the decay, is a small difference of large sums. The same formulas in `f64` with nothing rounded to bf16 but
/// what is an operand of a product (and U by columns, as here) are off by 1.2e-2, 2.8e-2 and 3.8e-2 at most of eight draws; this
/// kernel was by 1.1e-2, 2.3e-2 and 5.2e-2. Where keys are all the same the arguments themselves determine no more: their last
/// bit of bf16 changes the three by 2e-2, 2e-2 and 2e-1.
const CANCELLED: [f64; 3] = [1.5e-2, 4e-2, 8e-2];

const SMALL: &[Case] = &[
    // Heads enough that none whose gradient is nearly nothing decides.
    plain([4, 8, 16, 16], &[1]),
    plain([2, 4, 16, 16], &[65, 1, 3, 64]),
    plain([1, 2, 32, 32], &[63, 128, 1, 1, 2]),
    plain([1, 3, 16, 48], &[17, 129]),
    plain([2, 2, 32, 80], &[70]),
    plain([1, 2, 16, 32], &[64, 1, 1, 1, 64, 128]),
    Case { alike: 0.3, ..plain([1, 2, 112, 32], &[2, 65]) },
    Case { rate: -2.0, ..plain([1, 1, 128, 48], &[66]) },
    // Hardly any decay, over several chunks; and so much of it that a chunk, or a token, forgets all.
    Case { rate: -6.0, ..plain([1, 2, 16, 32], &[200]) },
    Case { rate: 3.0, ..plain([1, 2, 16, 32], &[130, 7]) },
    Case { rate: 11.0, gates: 20.0, ..plain([1, 2, 16, 32], &[130, 7]) },
    Case { rate: -6.0, alike: 0.5, ..plain([4, 4, 32, 32], &[150]) },
    Case { alike: 1.0, ..plain([1, 1, 32, 32], &[66]) },
    Case { rate: NEVER, alike: 4.0, allowed: CANCELLED, ..plain([1, 2, 32, 32], &[64, 200]) },
    Case { rate: NEVER, alike: 1.0, allowed: CANCELLED, ..plain([1, 2, 32, 32], &[192]) },
    Case { rate: NEVER, same: 1.0, allowed: CANCELLED, ..plain([1, 2, 32, 32], &[129, 64]) },
    Case { rate: NEVER, same: 0.9, allowed: CANCELLED, ..plain([1, 2, 32, 32], &[150]) },
    Case { rate: 3.0, same: 1.0, alike: 1.0, ..plain([1, 2, 32, 32], &[128, 65]) },
    // All or nothing is written.
    Case { gates: 20.0, ..plain([1, 2, 16, 32], &[100]) },
    Case { strength: 8.0, ..plain([1, 2, 16, 32], &[100]) },
    Case { strength: -20.0, ..plain([1, 2, 16, 32], &[100]) },
    // Lengths beside the epsilon and far below it.
    Case { length: 3e-4, ..plain([1, 2, 16, 32], &[64, 20]) },
    Case { length: 1e-9, ..plain([1, 2, 16, 32], &[64, 20]) },
    Case { length: 0.0, ..plain([1, 2, 16, 32], &[70]) },
    Case { padding: 2, ..plain([1, 2, 16, 32], &[64, 65, 3, 130]) },
];
const REAL: &[Case] = &[
    plain([8, 16, 128, 128], &[63, 1, 200, 64]),
    Case { rate: -6.0, ..plain([2, 4, 128, 128], &[500]) },
    Case { rate: -4.0, alike: 0.5, ..plain([2, 2, 128, 128], &[500]) },
    Case { rate: 3.0, ..plain([2, 2, 128, 128], &[257, 128]) },
    Case { rate: -1.0, alike: 1.0, ..plain([2, 4, 64, 96], &[127, 129]) },
];

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    for case in if checks.sizes == Sizes::Small { SMALL } else { REAL } {
        let [key_heads, value_heads, key_dim, value_dim] = case.heads;
        let groups = HeadGroups { key_heads, value_heads, key_dim, value_dim };
        let Case { lengths, rate, gates, strength, alike, same, length, padding, .. } = case;
        checks.case(format!(
            "delta rule {lengths:?} ({padding} of padding) x {groups:?}, rates of decay e^{rate}, gates {strength} ± {gates}, \
             alike {alike}, keys the same {same}, lengths {length}"
        ));
        let a_log: Vec<f64> =
            checks.random.values(value_heads).iter().map(|value| 2.0 * value - 1.0 + case.rate).collect();
        let dt_bias = narrow(&checks.random.values(value_heads));
        let parameters = Parameters { groups, a_log: narrow(&a_log).into(), dt_bias: dt_bias.into() };
        one(checks, &parameters, case)?;
    }
    Ok(())
}

/// Queries, keys and values; inputs of the gates; the gradient of the outputs.
fn arguments(random: &mut Random, groups: &HeadGroups, documents: &Documents, case: &Case) -> [Vec<bf16>; 3] {
    let (tokens, keys, width) = (documents.tokens(), groups.key_width(), groups.convolved_width());
    let common = random.values(keys);
    let mut qkv = random.values(tokens * width);
    for row in qkv.chunks_exact_mut(width) {
        for (at, value) in row.iter_mut().enumerate() {
            if (keys..2 * keys).contains(&at) {
                *value = case.same * common[at - keys] + (1.0 - case.same) * *value;
            }
            *value = (*value + case.alike) * if at < 2 * keys { case.length } else { 1.0 };
        }
    }
    let mut ba = random.values(tokens * 2 * groups.value_heads);
    let per_key = groups.values_per_key();
    for (at, value) in ba.iter_mut().enumerate() {
        *value = case.gates * *value + if at % (2 * per_key) < per_key { case.strength } else { 0.0 };
    }
    let mut dout = random.values(tokens * groups.value_width());
    for document in documents.iter() {
        for rows in [&mut qkv, &mut ba, &mut dout] {
            let width = rows.len() / tokens;
            rows[(document.end - case.padding) * width..document.end * width].fill(0.0);
        }
    }
    [qkv, ba, dout].map(|values| values.into_iter().map(bf16::from_f64).collect())
}

fn one(checks: &mut Checks<'_>, parameters: &Parameters, case: &Case) -> Result<()> {
    let (groups, documents) = (&parameters.groups, Documents::from_lengths(case.lengths)?);
    let given = arguments(&mut checks.random, groups, &documents, case);
    let [wide_qkv, wide_ba, wide_dout] = given.each_ref().map(|values| wide(values));
    let expected = reference::packed(parameters, &wide_qkv, &wide_ba, &documents, &wide_dout);

    let [of_outputs, of_gradients, of_decay] = case.allowed;
    let gpu = checks.gpu;
    let [qkv, ba, dout] = given.each_ref().map(|values| gpu.of(values));
    let (qkv, ba, dout) = (qkv?, ba?, dout?);
    let (rule, chunks) = (GpuDeltaRule::of(gpu, parameters)?, GpuChunks::of(gpu, &documents)?);
    let mut out: Buffer<bf16> = gpu.empty(dout.len())?;
    rule.forward(&qkv, &ba, &chunks, &mut out)?;
    checks.compare("forward", &out, &expected.out, of_outputs)?;
    let mut out: Buffer<bf16> = gpu.empty(dout.len())?;
    let saved = rule.forward_saving(&qkv, &ba, &chunks, &mut out)?;
    checks.compare("forward that saves", &out, &expected.out, of_outputs)?;
    let (mut d_qkv, mut d_ba) = (gpu.empty(qkv.len())?, gpu.empty(ba.len())?);
    rule.backward(&qkv, &ba, &chunks, &saved, &dout, (&mut d_qkv, &mut d_ba))?;

    let (keys, width) = (groups.key_width(), groups.convolved_width());
    for (what, from, to) in
        [("gradient of q", 0, keys), ("gradient of k", keys, 2 * keys), ("gradient of v", 2 * keys, width)]
    {
        columns(checks, what, (&d_qkv, &expected.qkv), of_gradients, |at| (from..to).contains(&(at % width)))?;
    }
    let per_key = groups.values_per_key();
    columns(checks, "gradient of b", (&d_ba, &expected.ba), of_gradients, |at| at % (2 * per_key) < per_key)?;
    columns(checks, "gradient of a", (&d_ba, &expected.ba), of_decay, |at| at % (2 * per_key) >= per_key)
}

/// Compares those values of a gradient by themselves, which else would vanish beside larger ones.
fn columns(
    checks: &mut Checks<'_>,
    what: &'static str,
    (found, expected): (&Buffer<bf16>, &[f64]),
    tolerance: f64,
    wanted: impl Fn(usize) -> bool,
) -> Result<()> {
    let found = found.download()?;
    let found: Vec<bf16> = (0..found.len()).filter(|at| wanted(*at)).map(|at| found[at]).collect();
    let expected: Vec<f64> = (0..expected.len()).filter(|at| wanted(*at)).map(|at| expected[at]).collect();
    let found = checks.gpu.of(&found)?;
    checks.compare(what, &found, &expected, tolerance)
}
