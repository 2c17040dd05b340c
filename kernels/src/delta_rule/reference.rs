//! The gated delta rule, token by token in `f64`: this is the definition.

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
