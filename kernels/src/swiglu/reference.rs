//! The definition of the gated activation and of the sigmoid row scale, in `f64`.

use crate::fast_math::reference::sigmoid;

/// `silu(gate) ⊙ up`.
pub fn forward(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(g, u)| g * sigmoid(*g) * u).collect()
}

/// Gradients of `gate` and `up`.
pub fn backward(gate: &[f64], up: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let slope = |g: f64| sigmoid(g) * (1.0 + g * (1.0 - sigmoid(g)));
    let d_gate = (0..gate.len()).map(|i| dy[i] * up[i] * slope(gate[i])).collect();
    let d_up = (0..gate.len()).map(|i| dy[i] * gate[i] * sigmoid(gate[i])).collect();
    (d_gate, d_up)
}

/// `σ(g_row) · y_row`, with one `g` per row.
pub fn scale_forward(y: &[f64], g: &[f64]) -> Vec<f64> {
    let width = y.len() / g.len().max(1);
    y.iter().enumerate().map(|(i, v)| sigmoid(g[i / width]) * v).collect()
}

/// Gradients of `y` and `g`.
pub fn scale_backward(y: &[f64], g: &[f64], upstream: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let width = y.len() / g.len().max(1);
    let (mut d_y, mut d_g) = (vec![0.0; y.len()], vec![0.0; g.len()]);
    for i in 0..y.len() {
        let s = sigmoid(g[i / width]);
        d_y[i] = s * upstream[i];
        d_g[i / width] += y[i] * upstream[i] * s * (1.0 - s);
    }
    (d_y, d_g)
}
