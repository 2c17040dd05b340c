//! Causal grouped-query attention with document boundaries, element by element in `f64`.

use crate::Documents;

/// Head counts and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key and value heads; query head `j` uses key head `j / (query / key_value)`.
    pub key_value: usize,
    /// Width of every head.
    pub width: usize,
}

/// Keys a query may see: those before it in its own document that are not padding.
fn visible(documents: &Documents, t: usize) -> std::ops::Range<usize> {
    let document = documents.iter().find(|d| t < d.end).expect("t is inside the row");
    document.start..document.valid_end.min(t + 1)
}

/// `scale · q_t · k_s` for all `keys`.
fn scores(heads: &Heads, q: &[f64], k: &[f64], keys: std::ops::Range<usize>, t: usize, head: usize) -> Vec<f64> {
    let d = heads.width;
    let kv = head / (heads.query / heads.key_value);
    let scale = (d as f64).powf(-0.5);
    keys.map(|s| {
        scale * (0..d).map(|c| q[(t * heads.query + head) * d + c] * k[(s * heads.key_value + kv) * d + c]).sum::<f64>()
    })
    .collect()
}

fn weights(heads: &Heads, q: &[f64], k: &[f64], keys: std::ops::Range<usize>, t: usize, head: usize) -> Vec<f64> {
    let scores = scores(heads, q, k, keys, t, head);
    let log_sum = log_sum(&scores);
    scores.iter().map(|s| (s - log_sum).exp()).collect()
}

fn log_sum(scores: &[f64]) -> f64 {
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln()
}

/// `log Σ_s exp(q_t·k_s / √width)`, `[query heads, N]`.
pub fn log_sums(heads: &Heads, q: &[f64], k: &[f64], documents: &Documents) -> Vec<f64> {
    let of = |head, t| log_sum(&scores(heads, q, k, visible(documents, t), t, head));
    (0..heads.query).flat_map(|head| (0..documents.tokens()).map(move |t| of(head, t))).collect()
}

/// `out_t = Σ_s softmax_s(q_t·k_s / √width) v_s`.
pub fn forward(heads: &Heads, q: &[f64], k: &[f64], v: &[f64], documents: &Documents) -> Vec<f64> {
    let d = heads.width;
    let mut out = vec![0.0; q.len()];
    for t in 0..documents.tokens() {
        let keys = visible(documents, t);
        for head in 0..heads.query {
            let kv = head / (heads.query / heads.key_value);
            let p = weights(heads, q, k, keys.clone(), t, head);
            for (s, p) in keys.clone().zip(p) {
                for c in 0..d {
                    out[(t * heads.query + head) * d + c] += p * v[(s * heads.key_value + kv) * d + c];
                }
            }
        }
    }
    out
}

/// Gradients of `q`, `k` and `v`.
pub fn backward(
    heads: &Heads,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    documents: &Documents,
    dout: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let d = heads.width;
    let scale = (d as f64).powf(-0.5);
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for t in 0..documents.tokens() {
        let keys = visible(documents, t);
        for head in 0..heads.query {
            let kv = head / (heads.query / heads.key_value);
            let p = weights(heads, q, k, keys.clone(), t, head);
            let at_q = (t * heads.query + head) * d;
            let dp: Vec<f64> = keys
                .clone()
                .map(|s| (0..d).map(|c| dout[at_q + c] * v[(s * heads.key_value + kv) * d + c]).sum())
                .collect();
            let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for (index, s) in keys.clone().enumerate() {
                let at_k = (s * heads.key_value + kv) * d;
                let dscore = scale * p[index] * (dp[index] - mean);
                for c in 0..d {
                    dq[at_q + c] += dscore * k[at_k + c];
                    dk[at_k + c] += dscore * q[at_q + c];
                    dv[at_k + c] += p[index] * dout[at_q + c];
                }
            }
        }
    }
    (dq, dk, dv)
}
