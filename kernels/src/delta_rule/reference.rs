//! The gated delta rule, token by token in `f64`: this is the definition.

use std::ops::Range;

use super::Parameters;
use crate::Documents;
use crate::fast_math::reference::sigmoid;

/// Added to the sum of squares of a query or key before it is normalised.
const EPSILON: f64 = 1e-6;

/// One head of one document: `tokens` rows of `q`, `k` (`key_dim`, already normalised and scaled), `v` (`value_dim`),
/// the log decay `g` and the write strength `beta`.
pub struct Head<'a> {
    /// Number of tokens.
    pub tokens: usize,
    /// Width of `q` and `k`.
    pub key_dim: usize,
    /// Width of `v`.
    pub value_dim: usize,
    /// Queries.
    pub q: &'a [f64],
    /// Keys.
    pub k: &'a [f64],
    /// Values.
    pub v: &'a [f64],
    /// Log decay, one per token, at most 0.
    pub g: &'a [f64],
    /// Write strength, one per token.
    pub beta: &'a [f64],
}

/// Gradients of everything in [`Head`].
#[derive(Debug)]
pub struct Gradients {
    /// d loss / d q.
    pub q: Vec<f64>,
    /// d loss / d k.
    pub k: Vec<f64>,
    /// d loss / d v.
    pub v: Vec<f64>,
    /// d loss / d g.
    pub g: Vec<f64>,
    /// d loss / d beta.
    pub beta: Vec<f64>,
}

/// What one token did to the state: needed to walk back.
struct Trace {
    decayed: Vec<f64>,
    written: Vec<f64>,
    after: Vec<f64>,
}

fn step(head: &Head, t: usize, state: &[f64]) -> Trace {
    let (dk, dv) = (head.key_dim, head.value_dim);
    let k = &head.k[t * dk..][..dk];
    let decay = head.g[t].exp();
    let decayed: Vec<f64> = state.iter().map(|s| decay * s).collect();
    let written: Vec<f64> = (0..dv)
        .map(|j| {
            let recalled: f64 = (0..dk).map(|i| decayed[i * dv + j] * k[i]).sum();
            head.beta[t] * (head.v[t * dv + j] - recalled)
        })
        .collect();
    let after = (0..dk * dv).map(|ij| decayed[ij] + k[ij / dv] * written[ij % dv]).collect();
    Trace { decayed, written, after }
}

/// `o_t = S_tᵀ q_t` with `S_t = exp(g_t) S_{t-1} + k_t uᵀ`, `u = beta_t (v_t − (exp(g_t) S_{t-1})ᵀ k_t)`.
pub fn forward(head: &Head) -> Vec<f64> {
    let (dk, dv) = (head.key_dim, head.value_dim);
    let mut state = vec![0.0; dk * dv];
    let mut out = vec![0.0; head.tokens * dv];
    for t in 0..head.tokens {
        state = step(head, t, &state).after;
        for (ij, s) in state.iter().enumerate() {
            out[t * dv + ij % dv] += s * head.q[t * dk + ij / dv];
        }
    }
    out
}

/// Reverse walk of [`forward`] for the output gradient `dout`.
pub fn backward(head: &Head, dout: &[f64]) -> Gradients {
    let (dk, dv, n) = (head.key_dim, head.value_dim, head.tokens);
    let mut traces: Vec<Trace> = Vec::with_capacity(n);
    let mut state = vec![0.0; dk * dv];
    for t in 0..n {
        let trace = step(head, t, &state);
        state = trace.after.clone();
        traces.push(trace);
    }
    let mut grad = Gradients {
        q: vec![0.0; n * dk],
        k: vec![0.0; n * dk],
        v: vec![0.0; n * dv],
        g: vec![0.0; n],
        beta: vec![0.0; n],
    };
    let mut dstate = vec![0.0; dk * dv];
    for t in (0..n).rev() {
        let trace = &traces[t];
        let k = &head.k[t * dk..][..dk];
        for ij in 0..dk * dv {
            let (i, j) = (ij / dv, ij % dv);
            grad.q[t * dk + i] += trace.after[ij] * dout[t * dv + j];
            dstate[ij] += head.q[t * dk + i] * dout[t * dv + j];
        }
        let mut dwritten = vec![0.0; dv];
        for ij in 0..dk * dv {
            dwritten[ij % dv] += dstate[ij] * k[ij / dv];
            grad.k[t * dk + ij / dv] += dstate[ij] * trace.written[ij % dv];
        }
        for j in 0..dv {
            let recalled: f64 = (0..dk).map(|i| trace.decayed[i * dv + j] * k[i]).sum();
            grad.beta[t] += dwritten[j] * (head.v[t * dv + j] - recalled);
            let drecalled = -head.beta[t] * dwritten[j];
            grad.v[t * dv + j] = head.beta[t] * dwritten[j];
            for i in 0..dk {
                grad.k[t * dk + i] += trace.decayed[i * dv + j] * drecalled;
                dstate[i * dv + j] += k[i] * drecalled;
            }
        }
        let decay = head.g[t].exp();
        for ij in 0..dk * dv {
            grad.g[t] += dstate[ij] * trace.decayed[ij];
            dstate[ij] *= decay;
        }
    }
    grad
}

/// Output of the whole op on a packed row, and the gradients of its two arguments.
#[derive(Debug)]
pub struct Packed {
    /// `[N, value_heads · value_dim]`.
    pub out: Vec<f64>,
    /// d loss / d qkv.
    pub qkv: Vec<f64>,
    /// d loss / d ba.
    pub ba: Vec<f64>,
}

/// The op of the module's formula, head by head and document by document, for the output gradient `dout`.
pub fn packed(p: &Parameters, qkv: &[f64], ba: &[f64], documents: &Documents, dout: &[f64]) -> Packed {
    let mut result = Packed { out: vec![0.0; dout.len()], qkv: vec![0.0; qkv.len()], ba: vec![0.0; ba.len()] };
    for document in documents.iter() {
        for head in 0..p.groups.value_heads {
            packed_head(p, head, document.start..document.end, (qkv, ba, dout), &mut result);
        }
    }
    result
}

fn packed_head(
    p: &Parameters,
    head: usize,
    rows: Range<usize>,
    (qkv, ba, dout): (&[f64], &[f64], &[f64]),
    result: &mut Packed,
) {
    let g = &p.groups;
    let (dk, dv, heads, width) = (g.key_dim, g.value_dim, g.value_heads, p.qkv_width());
    let key_head = head / g.values_per_key();
    let cut = |offset: usize, size: usize| -> Vec<f64> {
        rows.clone().flat_map(|t| qkv[t * width + offset..][..size].to_vec()).collect()
    };
    let (q_at, k_at, v_at) = (key_head * dk, g.key_width() + key_head * dk, p.value_offset(head));
    let (q_raw, k_raw, v) = (cut(q_at, dk), cut(k_at, dk), cut(v_at, dv));
    let inverse = |x: &[f64]| 1.0 / (x.iter().map(|v| v * v).sum::<f64>() + EPSILON).sqrt();
    let normalised = |raw: &[f64], scale: f64| -> Vec<f64> {
        raw.chunks(dk).flat_map(|row| row.iter().map(|x| x * inverse(row) * scale).collect::<Vec<_>>()).collect()
    };
    let q_scale = (dk as f64).powf(-0.5);
    let (q, k) = (normalised(&q_raw, q_scale), normalised(&k_raw, 1.0));
    let gate = |t: usize| {
        let (at_b, at_a) = p.gate_offsets(t, head);
        (ba[at_b], ba[at_a] + f64::from(p.dt_bias[head]))
    };
    let rate = f64::from(p.a_log[head]).exp();
    let decay: Vec<f64> = rows.clone().map(|t| -rate * gate(t).1.exp().ln_1p()).collect();
    let beta: Vec<f64> = rows.clone().map(|t| sigmoid(gate(t).0)).collect();
    let one = Head { tokens: rows.len(), key_dim: dk, value_dim: dv, q: &q, k: &k, v: &v, g: &decay, beta: &beta };
    let out = forward(&one);
    let upstream: Vec<f64> = rows.clone().flat_map(|t| dout[(t * heads + head) * dv..][..dv].to_vec()).collect();
    let grad = backward(&one, &upstream);
    for (i, t) in rows.clone().enumerate() {
        result.out[(t * heads + head) * dv..][..dv].copy_from_slice(&out[i * dv..][..dv]);
        result.qkv[t * width + v_at..][..dv].copy_from_slice(&grad.v[i * dv..][..dv]);
        for (raw, d, at, scale) in [(&q_raw, &grad.q, q_at, q_scale), (&k_raw, &grad.k, k_at, 1.0)] {
            // Through x / sqrt(x · x + ε), times the scale.
            let (x, dy) = (&raw[i * dk..][..dk], &d[i * dk..][..dk]);
            let s = inverse(x);
            let along: f64 = x.iter().zip(dy).map(|(x, d)| x * d * scale).sum();
            for c in 0..dk {
                result.qkv[t * width + at + c] += s * dy[c] * scale - x[c] * s.powi(3) * along;
            }
        }
        let (b, a) = gate(t);
        let (at_b, at_a) = p.gate_offsets(t, head);
        result.ba[at_b] = grad.beta[i] * sigmoid(b) * (1.0 - sigmoid(b));
        result.ba[at_a] = -grad.g[i] * rate * sigmoid(a);
    }
}
