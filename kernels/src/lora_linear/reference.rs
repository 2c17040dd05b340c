//! A frozen linear layer with a low-rank update, in `f64`.

/// Shapes and scale of the layer.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Rows of `x`.
    pub rows: usize,
    /// Inputs.
    pub inputs: usize,
    /// Outputs.
    pub outputs: usize,
    /// Rank of the update.
    pub rank: usize,
    /// Factor of the update.
    pub scale: f64,
}

/// Gradients of `x`, `A` and `B`.
#[derive(Debug)]
pub struct Gradients {
    /// d loss / d x.
    pub x: Vec<f64>,
    /// d loss / d A.
    pub a: Vec<f64>,
    /// d loss / d B.
    pub b: Vec<f64>,
}

/// `y = x Wᵀ + bias + scale · (mask ⊙ x) Aᵀ Bᵀ`; `mask` holds the dropout factors (all ones without dropout).
pub fn forward(s: &Shape, x: &[f64], w: &[f64], bias: &[f64], a: &[f64], b: &[f64], mask: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; s.rows * s.outputs];
    for n in 0..s.rows {
        let (x, mask) = (&x[n * s.inputs..][..s.inputs], &mask[n * s.inputs..][..s.inputs]);
        let down: Vec<f64> =
            (0..s.rank).map(|r| (0..s.inputs).map(|i| mask[i] * x[i] * a[r * s.inputs + i]).sum()).collect();
        for o in 0..s.outputs {
            let base: f64 = (0..s.inputs).map(|i| x[i] * w[o * s.inputs + i]).sum();
            let update: f64 = (0..s.rank).map(|r| down[r] * b[o * s.rank + r]).sum();
            y[n * s.outputs + o] = base + bias[o] + s.scale * update;
        }
    }
    y
}

/// Gradients of [`forward`] for the output gradient `dy`.
pub fn backward(s: &Shape, x: &[f64], w: &[f64], a: &[f64], b: &[f64], mask: &[f64], dy: &[f64]) -> Gradients {
    let mut grad = Gradients { x: vec![0.0; x.len()], a: vec![0.0; a.len()], b: vec![0.0; b.len()] };
    for n in 0..s.rows {
        let (x, mask) = (&x[n * s.inputs..][..s.inputs], &mask[n * s.inputs..][..s.inputs]);
        let dy = &dy[n * s.outputs..][..s.outputs];
        for r in 0..s.rank {
            let down: f64 = (0..s.inputs).map(|i| mask[i] * x[i] * a[r * s.inputs + i]).sum();
            let up: f64 = (0..s.outputs).map(|o| dy[o] * b[o * s.rank + r]).sum();
            for o in 0..s.outputs {
                grad.b[o * s.rank + r] += s.scale * dy[o] * down;
            }
            for i in 0..s.inputs {
                grad.a[r * s.inputs + i] += s.scale * up * mask[i] * x[i];
                grad.x[n * s.inputs + i] += s.scale * up * mask[i] * a[r * s.inputs + i];
            }
        }
        for o in 0..s.outputs {
            for i in 0..s.inputs {
                grad.x[n * s.inputs + i] += dy[o] * w[o * s.inputs + i];
            }
        }
    }
    grad
}
