//! The definition of the causal convolution, in `f64`.

use super::HeadGroups;
use crate::Documents;
use crate::fast_math::reference::sigmoid;

/// Column of the projection for every convolved channel `q.flat | k.flat | v.flat`.
fn sources(groups: &HeadGroups) -> Vec<usize> {
    let (key, value, r) = (groups.key_dim, groups.value_dim, groups.values_per_key());
    let group = |g: usize| g * groups.group_width();
    let queries = (0..groups.key_width()).map(|c| group(c / key) + c % key);
    let keys = (0..groups.key_width()).map(|c| group(c / key) + key + c % key);
    let values = (0..groups.value_width()).map(|c| {
        let head = c / value;
        group(head / r) + 2 * key + (head % r) * value + c % value
    });
    queries.chain(keys).chain(values).collect()
}

/// First token of the document of every token.
fn starts(documents: &Documents) -> Vec<usize> {
    documents.iter().flat_map(|d| (d.start..d.end).map(|_| d.start)).collect()
}

/// `p[t, c] = Σ_i w[c, i] · x[t - (taps-1) + i, c]`, taps before the document's start left out.
fn convolve(qkvz: &[f64], weight: &[f64], taps: usize, groups: &HeadGroups, documents: &Documents) -> Vec<f64> {
    let (width, sources, starts) = (groups.projection_width(), sources(groups), starts(documents));
    let mut p = vec![0.0; starts.len() * sources.len()];
    for (t, &start) in starts.iter().enumerate() {
        for (c, &source) in sources.iter().enumerate() {
            for i in 0..taps {
                let back = taps - 1 - i;
                if t >= start + back {
                    p[t * sources.len() + c] += weight[c * taps + i] * qkvz[(t - back) * width + source];
                }
            }
        }
    }
    p
}

/// `silu(p)` for all tokens and channels.
pub fn forward(qkvz: &[f64], weight: &[f64], taps: usize, groups: &HeadGroups, documents: &Documents) -> Vec<f64> {
    convolve(qkvz, weight, taps, groups, documents).into_iter().map(|p| p * sigmoid(p)).collect()
}

/// Gradient of the projection; zero where z stands.
pub fn backward(
    qkvz: &[f64],
    weight: &[f64],
    taps: usize,
    groups: &HeadGroups,
    documents: &Documents,
    dy: &[f64],
) -> Vec<f64> {
    let (width, sources, starts) = (groups.projection_width(), sources(groups), starts(documents));
    let p = convolve(qkvz, weight, taps, groups, documents);
    let mut d_qkvz = vec![0.0; qkvz.len()];
    for (t, &start) in starts.iter().enumerate() {
        for (c, &source) in sources.iter().enumerate() {
            let index = t * sources.len() + c;
            let s = sigmoid(p[index]);
            let dp = dy[index] * s * (1.0 + p[index] * (1.0 - s));
            for i in 0..taps {
                let back = taps - 1 - i;
                if t >= start + back {
                    d_qkvz[(t - back) * width + source] += weight[c * taps + i] * dp;
                }
            }
        }
    }
    d_qkvz
}
