//! What mixes tokens: softmax attention and the gated delta rule.

use brightrun_kernels::Documents;
use brightrun_kernels::attention::{GpuAttended, GpuAttention, Heads};
use brightrun_kernels::conv::HeadGroups;
use brightrun_kernels::delta_rule::{GpuChunks, GpuDeltaRule, Parameters};

use super::{Cost, Draw, Op, Shapes, each, half, split};

/// Tokens of a chunk of the delta rule.
const CHUNK: usize = 64;

pub(super) fn ops(shapes: &Shapes) -> Vec<Op> {
    let mut ops = Vec::new();
    each(shapes, |model, tokens| {
        ops.extend(attention(model.name, model.heads, vec![tokens]));
        if tokens > shapes.document {
            ops.extend(attention(model.name, model.heads, split(tokens, shapes.document)));
        }
    });
    for groups in shapes.models.iter().filter_map(|model| model.delta_net) {
        let most = shapes.tokens.iter().max().copied().unwrap_or(0);
        let mut tokens: Vec<usize> = shapes.tokens.iter().copied().chain([most / 2]).collect();
        tokens.sort_unstable();
        ops.extend(tokens.into_iter().flat_map(|tokens| delta_rule(groups, split(tokens, shapes.document))));
    }
    ops
}

/// How many tokens, in how many documents.
fn described(lengths: &[usize]) -> String {
    let tokens: usize = lengths.iter().sum();
    if lengths.len() == 1 { format!("{tokens} tokens") } else { format!("{tokens} tokens in {}", lengths.len()) }
}

/// Forward are two products of each query with the keys up to its own, half of a document on average; backward five.
fn attention(model: &str, heads: Heads, lengths: Vec<usize>) -> [Op; 2] {
    const ABOUT: &str = "softmax attention, causal in each document";
    let Heads { query, key_value, width } = heads;
    let tokens: usize = lengths.iter().sum();
    let pairs: usize = lengths.iter().map(|length| length * (length + 1) / 2).sum();
    let product = 2 * pairs * query * width;
    let (of_queries, of_keys, sums) = (tokens * query * width, tokens * key_value * width, 4 * tokens * query);
    let name = |direction: &str| format!("attention:{model} {} {direction}", described(&lengths));
    let forward_cost = Cost::new(2 * product, half(2 * of_queries + 2 * of_keys) + sums);
    let backward_cost = Cost::new(5 * product, half(4 * of_queries + 4 * of_keys) + sums);
    let arguments = move |draw: &Draw<'_>| -> brightrun_kernels::Result<_> {
        let [q, k, v] = [of_queries, of_keys, of_keys].map(|count| draw.bf16(count));
        Ok(([q?, k?, v?], draw.room(of_queries)?, draw.gpu.empty::<f32>(tokens * query)?))
    };
    let lengths_forward = lengths.clone();
    [
        Op::new(name("forward"), ABOUT, forward_cost, move |draw| {
            let documents = draw.documents(&lengths_forward)?;
            let ([q, k, v], mut out, mut log_sums) = arguments(draw)?;
            Ok(Box::new(move || {
                GpuAttention { heads, documents: &documents }.forward([&q, &k, &v], &mut out, &mut log_sums)
            }))
        }),
        Op::new(name("backward"), ABOUT, backward_cost, move |draw| {
            let documents = draw.documents(&lengths)?;
            let ([q, k, v], mut out, mut log_sums) = arguments(draw)?;
            GpuAttention { heads, documents: &documents }.forward([&q, &k, &v], &mut out, &mut log_sums)?;
            let gradient = draw.bf16(of_queries)?;
            let (mut dq, mut dk, mut dv) = (draw.room(of_queries)?, draw.room(of_keys)?, draw.room(of_keys)?);
            Ok(Box::new(move || {
                let pass = GpuAttended { q: &q, k: &k, v: &v, out: &out, log_sums: &log_sums };
                let gradients = [&mut dq, &mut dk, &mut dv];
                GpuAttention { heads, documents: &documents }.backward(&pass, &gradient, gradients)
            }))
        }),
    ]
}

/// Forward, of each token: three products with the state of each value head (`S k`, `S q`, `v kᵗ`), and within its chunk, half
/// of it on average, those of k and k and of q and k, and of both of these squares with the values. Backward is each of them
/// twice.
fn delta_rule(groups: HeadGroups, lengths: Vec<usize>) -> [Op; 2] {
    const ABOUT: &str = "the gated delta rule of Qwen3-Next";
    let HeadGroups { key_heads, value_heads, key_dim, value_dim } = groups;
    let tokens: usize = lengths.iter().sum();
    let of_values = value_heads * (6 * key_dim * value_dim + 2 * CHUNK * value_dim);
    let operations = tokens * (of_values + key_heads * 2 * CHUNK * key_dim);
    let (qkv, ba, out) = (tokens * groups.convolved_width(), tokens * 2 * value_heads, tokens * groups.value_width());
    let name = |direction: &str| format!("delta rule:{} {direction}", described(&lengths));
    let arguments = move |draw: &Draw<'_>, lengths: &[usize]| -> brightrun_kernels::Result<_> {
        let a_log: Vec<f32> = draw.vector(value_heads).iter().map(|value| 2.0 * value - 1.0).collect();
        let parameters = Parameters { groups, a_log: a_log.into(), dt_bias: draw.vector(value_heads).into() };
        let rule = GpuDeltaRule::of(draw.gpu, &parameters)?;
        let chunks = GpuChunks::of(draw.gpu, &Documents::from_lengths(lengths)?)?;
        Ok((rule, chunks, draw.bf16(qkv)?, draw.bf16_within(3.0, ba)?, draw.room(out)?))
    };
    let (lengths_forward, forward_cost) = (lengths.clone(), Cost::new(operations, half(qkv + ba + out)));
    let backward_cost = Cost::new(2 * operations, half(2 * (qkv + ba) + out));
    [
        Op::new(name("forward"), ABOUT, forward_cost, move |draw| {
            let (rule, chunks, qkv, ba, mut out) = arguments(draw, &lengths_forward)?;
            Ok(Box::new(move || rule.forward_saving(&qkv, &ba, &chunks, &mut out).map(drop)))
        }),
        Op::new(name("backward"), ABOUT, backward_cost, move |draw| {
            let (rule, chunks, qkv, ba, mut out) = arguments(draw, &lengths)?;
            let saved = rule.forward_saving(&qkv, &ba, &chunks, &mut out)?;
            let dout = draw.bf16(out.len())?;
            let (mut d_qkv, mut d_ba) = (draw.room(qkv.len())?, draw.room(ba.len())?);
            Ok(Box::new(move || rule.backward(&qkv, &ba, &chunks, &saved, &dout, (&mut d_qkv, &mut d_ba))))
        }),
    ]
}
