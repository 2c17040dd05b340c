//! Attention: the output, the logarithms of the sums, and all three gradients.

use super::{BF16, BF16_GRADIENT, Checks, F32, Sizes};
use crate::attention::{GpuAttended, GpuAttention, Heads, reference};
use crate::documents::GpuDocuments;
use crate::{Documents, Result};

/// Query heads, key heads and width; lengths of documents; how large queries are.
type Case = ((usize, usize, usize), &'static [usize], f64);

/// Every width that there is a kernel for and some between; groups of 1, 4 and 8 query heads; documents of one token, and
/// that end at, before and behind the edges of tiles (16, 32, 64 and 128); scores of a few and of hundreds.
const SMALL: [Case; 10] = [
    ((4, 1, 16), &[70, 1, 1, 1, 59, 2], 4.0),
    ((8, 1, 32), &[64, 1, 63], 1.0),
    ((4, 4, 64), &[33], 8.0),
    ((2, 1, 64), &[127, 1, 1, 65, 3], 1.0),
    ((1, 1, 96), &[190], 4.0),
    ((4, 1, 128), &[31, 32, 1, 17], 1.0),
    ((1, 1, 128), &[15, 129], 12.0),
    ((2, 1, 256), &[16, 1, 64, 20], 4.0),
    // Whole tiles of every size.
    ((2, 1, 64), &[64, 64, 128], 1.0),
    ((2, 2, 256), &[128, 32, 32, 64], 1.0),
];
/// Layers of Qwen3-30B-A3B and Qwen3-Next-80B-A3B, and one of Qwen2-MoE.
const REAL: [Case; 4] = [
    ((32, 4, 128), &[300, 1, 83], 1.0),
    ((16, 2, 256), &[129, 256, 1, 64], 1.0),
    ((16, 16, 128), &[511], 8.0),
    ((8, 2, 64), &[700, 200], 8.0),
];
/// All of a row's weight lies on one key, as there is no other or queries are so large: gradients are rounding alone, but
/// outputs are not.
const ON_ONE_KEY: [Case; 5] = [
    ((1, 1, 64), &[1], 1.0),
    ((4, 2, 32), &[1; 66], 1.0),
    ((1, 1, 64), &[150], 100.0),
    ((2, 1, 128), &[130, 5], 200.0),
    ((1, 1, 256), &[80], 100.0),
];

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    let cases: &[_] = if checks.sizes == Sizes::Small { &SMALL } else { &REAL };
    cases.iter().try_for_each(|case| compare(checks, *case, true))?;
    ON_ONE_KEY.iter().try_for_each(|case| compare(checks, *case, false))
}

fn compare(checks: &mut Checks<'_>, ((query, key_value, width), lengths, size): Case, backward: bool) -> Result<()> {
    checks.case(format!("attention {query}/{key_value} x {width}, documents of {lengths:?}, queries of {size}"));
    let heads = Heads { query, key_value, width };
    let documents = Documents::from_lengths(lengths)?;
    let tokens = documents.tokens();
    let (of_queries, of_keys) = (tokens * query * width, tokens * key_value * width);
    let (q, q_wide) = checks.bf16_within(size, of_queries)?;
    let (k, k_wide) = checks.bf16(of_keys)?;
    let (v, v_wide) = checks.bf16(of_keys)?;
    let on_gpu = GpuDocuments::of(checks.gpu, &documents)?;
    let attention = GpuAttention { heads, documents: &on_gpu };
    let (mut out, mut log_sums) = (checks.gpu.empty(of_queries)?, checks.gpu.empty(tokens * query)?);
    attention.forward([&q, &k, &v], &mut out, &mut log_sums)?;
    let expected = reference::forward(&heads, &q_wide, &k_wide, &v_wide, &documents);
    checks.compare("forward", &out, &expected, BF16)?;
    checks.compare("log-sums", &log_sums, &reference::log_sums(&heads, &q_wide, &k_wide, &documents), F32)?;
    if !backward {
        return Ok(());
    }
    let (gradient, gradient_wide) = checks.bf16(of_queries)?;
    let mut found = [of_queries, of_keys, of_keys].map(|count| checks.gpu.empty(count));
    let [Ok(dq), Ok(dk), Ok(dv)] = &mut found else {
        return found.into_iter().try_for_each(|buffer| buffer.map(drop));
    };
    let pass = GpuAttended { q: &q, k: &k, v: &v, out: &out, log_sums: &log_sums };
    attention.backward(&pass, &gradient, [dq, dk, dv])?;
    let expected = reference::backward(&heads, &q_wide, &k_wide, &v_wide, &documents, &gradient_wide);
    checks.compare("gradient of q", dq, &expected.0, BF16_GRADIENT)?;
    checks.compare("gradient of k", dk, &expected.1, BF16_GRADIENT)?;
    checks.compare("gradient of v", dv, &expected.2, BF16_GRADIENT)
}
