//! The definition of the norms, in `f64`.

use super::Kind;
use crate::conv::HeadGroups;
use crate::fast_math::reference::sigmoid;

fn factor(kind: Kind, weight: f64) -> f64 {
    match kind {
        Kind::Plain => weight,
        Kind::ZeroCentred => 1.0 + weight,
    }
}

fn inverse_root(x: &[f64], epsilon: f64) -> f64 {
    1.0 / (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + epsilon).sqrt()
}

/// `y_i = s_i x_i / sqrt(mean(x²) + ε)` over rows as long as the weight, `s = w` or `1 + w`.
pub fn forward(x: &[f64], weight: &[f64], kind: Kind, epsilon: f64) -> Vec<f64> {
    x.chunks(weight.len())
        .flat_map(|row| {
            let inverse = inverse_root(row, epsilon);
            row.iter().zip(weight).map(move |(v, w)| factor(kind, *w) * v * inverse).collect::<Vec<_>>()
        })
        .collect()
}

/// Gradient of the input: `dx_j = Σ_i dy_i ∂y_i/∂x_j`, `∂y_i/∂x_j = s_i (δ_ij ρ - x_i x_j ρ³ / n)`,
/// `ρ = 1 / sqrt(mean(x²) + ε)`.
pub fn backward(x: &[f64], weight: &[f64], kind: Kind, epsilon: f64, dy: &[f64]) -> Vec<f64> {
    let n = weight.len();
    let mut dx = vec![0.0; x.len()];
    for (row, (values, upstream)) in x.chunks(n).zip(dy.chunks(n)).enumerate() {
        let inverse = inverse_root(values, epsilon);
        for j in 0..n {
            for i in 0..n {
                let same = if i == j { inverse } else { 0.0 };
                let slope = same - values[i] * values[j] * inverse.powi(3) / n as f64;
                dx[row * n + j] += upstream[i] * factor(kind, weight[i]) * slope;
            }
        }
    }
    dx
}

/// `y = w ⊙ (o / sqrt(mean(o²) + ε)) ⊙ silu(z)` per value head, z taken from the grouped projection.
pub fn gated_forward(o: &[f64], qkvz: &[f64], weight: &[f64], groups: &HeadGroups, epsilon: f64) -> Vec<f64> {
    let mut y = forward(o, weight, Kind::Plain, epsilon);
    for (index, value) in y.iter_mut().enumerate() {
        let z = gate(qkvz, groups, index).1;
        *value *= z * sigmoid(z);
    }
    y
}

/// Gradients of `o` and of the whole projection (zero outside of z).
pub fn gated_backward(
    o: &[f64],
    qkvz: &[f64],
    weight: &[f64],
    groups: &HeadGroups,
    epsilon: f64,
    dy: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let normed = forward(o, weight, Kind::Plain, epsilon);
    let mut d_normed = vec![0.0; o.len()];
    let mut d_qkvz = vec![0.0; qkvz.len()];
    for index in 0..o.len() {
        let (place, z) = gate(qkvz, groups, index);
        d_normed[index] = dy[index] * z * sigmoid(z);
        d_qkvz[place] = dy[index] * normed[index] * sigmoid(z) * (1.0 + z * (1.0 - sigmoid(z)));
    }
    (backward(o, weight, Kind::Plain, epsilon, &d_normed), d_qkvz)
}

/// Place and value of the z that belongs to element `index` of `o`.
fn gate(qkvz: &[f64], groups: &HeadGroups, index: usize) -> (usize, f64) {
    let (row, column) = (index / groups.value_width(), index % groups.value_width());
    let range = groups.gate_range(column / groups.value_dim);
    let place = row * groups.projection_width() + range.start + column % groups.value_dim;
    (place, qkvz[place])
}
