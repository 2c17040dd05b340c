//! Router and routed experts token by token in `f64`, the experts out of the reference linear layer.

use crate::fast_math::reference::sigmoid;
use crate::lora_linear::reference::{self as linear, Gradients, Shape};

/// One projection of one expert; rank 0 where it is not adapted.
#[derive(Debug, Clone)]
pub struct Projection {
    /// Shapes and scale (with one row).
    pub shape: Shape,
    /// Frozen weight `[out, in]`.
    pub weight: Vec<f64>,
    /// `[rank, in]`.
    pub a: Vec<f64>,
    /// `[out, rank]`.
    pub b: Vec<f64>,
}

/// Gate, up and down of one expert.
pub type Expert = [Projection; 3];

/// Gradients of one call.
#[derive(Debug)]
pub struct CallGradients {
    /// d loss / d x.
    pub x: Vec<f64>,
    /// d loss / d routing weights.
    pub weights: Vec<f64>,
    /// (d A, d B) of every projection of every expert.
    pub lora: Vec<[(Vec<f64>, Vec<f64>); 3]>,
}

/// Dropout factors of a slot's projection input: `(slot, projection, element)`.
pub type Mask<'a> = &'a dyn Fn(usize, usize, usize) -> f64;

fn mask_row(mask: Mask, slot: usize, which: usize, width: usize) -> Vec<f64> {
    (0..width).map(|i| mask(slot, which, i)).collect()
}

fn project(p: &Projection, x: &[f64], mask: &[f64]) -> Vec<f64> {
    linear::forward(&p.shape, x, &p.weight, &vec![0.0; p.shape.outputs], &p.a, &p.b, mask)
}

fn project_backward(p: &Projection, x: &[f64], mask: &[f64], dy: &[f64]) -> Gradients {
    linear::backward(&p.shape, x, &p.weight, &p.a, &p.b, mask, dy)
}

struct Pass {
    gate: Vec<f64>,
    up: Vec<f64>,
    inner: Vec<f64>,
    out: Vec<f64>,
}

fn run(expert: &Expert, x: &[f64], slot: usize, mask: Mask) -> Pass {
    let gate = project(&expert[0], x, &mask_row(mask, slot, 0, x.len()));
    let up = project(&expert[1], x, &mask_row(mask, slot, 1, x.len()));
    let inner: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g * sigmoid(*g) * u).collect();
    let out = project(&expert[2], &inner, &mask_row(mask, slot, 2, inner.len()));
    Pass { gate, up, inner, out }
}

/// `y_t = Σ_j w_tj · expert_{idx_tj}(x_t)`.
pub fn forward(experts: &[Expert], x: &[f64], weights: &[f64], chosen: &[u32], mask: Mask) -> Vec<f64> {
    let hidden = experts[0][0].shape.inputs;
    let k = chosen.len() / (x.len() / hidden);
    let mut y = vec![0.0; x.len()];
    for (slot, &expert) in chosen.iter().enumerate() {
        let token = slot / k;
        let pass = run(&experts[expert as usize], &x[token * hidden..][..hidden], slot, mask);
        for (y, o) in y[token * hidden..][..hidden].iter_mut().zip(&pass.out) {
            *y += weights[slot] * o;
        }
    }
    y
}

/// Gradients of [`forward`] for the output gradient `dy`.
pub fn backward(
    experts: &[Expert],
    x: &[f64],
    weights: &[f64],
    chosen: &[u32],
    mask: Mask,
    dy: &[f64],
) -> CallGradients {
    let hidden = experts[0][0].shape.inputs;
    let k = chosen.len() / (x.len() / hidden);
    let zeros = |p: &Projection| (vec![0.0; p.a.len()], vec![0.0; p.b.len()]);
    let mut grad = CallGradients {
        x: vec![0.0; x.len()],
        weights: vec![0.0; weights.len()],
        lora: experts.iter().map(|e| [zeros(&e[0]), zeros(&e[1]), zeros(&e[2])]).collect(),
    };
    for (slot, &index) in chosen.iter().enumerate() {
        let token = slot / k;
        let expert = &experts[index as usize];
        let x = &x[token * hidden..][..hidden];
        let dy = &dy[token * hidden..][..hidden];
        let pass = run(expert, x, slot, mask);
        grad.weights[slot] = dy.iter().zip(&pass.out).map(|(a, b)| a * b).sum();
        let dout: Vec<f64> = dy.iter().map(|d| weights[slot] * d).collect();
        let down = project_backward(&expert[2], &pass.inner, &mask_row(mask, slot, 2, pass.inner.len()), &dout);
        let mut dgate = vec![0.0; pass.gate.len()];
        let mut dup = vec![0.0; pass.up.len()];
        for i in 0..dgate.len() {
            let s = sigmoid(pass.gate[i]);
            dgate[i] = down.x[i] * pass.up[i] * s * (1.0 + pass.gate[i] * (1.0 - s));
            dup[i] = down.x[i] * pass.gate[i] * s;
        }
        let gate = project_backward(&expert[0], x, &mask_row(mask, slot, 0, hidden), &dgate);
        let up = project_backward(&expert[1], x, &mask_row(mask, slot, 1, hidden), &dup);
        for i in 0..hidden {
            grad.x[token * hidden + i] += gate.x[i] + up.x[i];
        }
        for (target, source) in grad.lora[index as usize].iter_mut().zip([gate, up, down]) {
            target.0.iter_mut().zip(&source.a).for_each(|(t, s)| *t += s);
            target.1.iter_mut().zip(&source.b).for_each(|(t, s)| *t += s);
        }
    }
    grad
}

/// The `per_token` largest of each token's logits, largest first; equal ones in order.
pub fn choices(logits: &[f64], experts: usize, per_token: usize) -> Vec<u32> {
    let chosen = |row: &[f64]| -> Vec<u32> {
        let mut order: Vec<u32> = (0..experts as u32).collect();
        order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
        order.truncate(per_token);
        order
    };
    logits.chunks(experts).flat_map(chosen).collect()
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|x| (x - top).exp()).sum();
    logits.iter().map(|x| (x - top).exp() / sum).collect()
}

/// `dlogit_e = p_e (dp_e − Σ_j p_j dp_j)`.
fn softmax_backward(p: &[f64], dp: &[f64]) -> Vec<f64> {
    let mean: f64 = p.iter().zip(dp).map(|(p, d)| p * d).sum();
    p.iter().zip(dp).map(|(p, d)| p * (d - mean)).collect()
}

/// `softmax(logits)` at the chosen experts; where `normalise`, that is the softmax over the chosen alone.
pub fn routing_weights(logits: &[f64], experts: usize, chosen: &[u32], normalise: bool) -> Vec<f64> {
    let k = chosen.len() * experts / logits.len();
    let weights = |(row, chosen): (&[f64], &[u32])| -> Vec<f64> {
        let at = |values: &[f64]| chosen.iter().map(|&expert| values[expert as usize]).collect::<Vec<_>>();
        if normalise { softmax(&at(row)) } else { at(&softmax(row)) }
    };
    logits.chunks(experts).zip(chosen.chunks(k)).flat_map(weights).collect()
}

/// Gradient of the logits for the gradient `dw` of [`routing_weights`].
pub fn routing_weights_backward(
    logits: &[f64],
    experts: usize,
    chosen: &[u32],
    normalise: bool,
    dw: &[f64],
) -> Vec<f64> {
    let k = chosen.len() * experts / logits.len();
    let weights = routing_weights(logits, experts, chosen, normalise);
    let mut gradient = Vec::new();
    for (token, row) in logits.chunks(experts).enumerate() {
        let slots = token * k..(token + 1) * k;
        let mut spread = vec![0.0; experts];
        let put = |values: &[f64], spread: &mut [f64]| {
            chosen[slots.clone()].iter().zip(values).for_each(|(&expert, value)| spread[expert as usize] = *value);
        };
        if normalise {
            put(&softmax_backward(&weights[slots.clone()], &dw[slots.clone()]), &mut spread);
            gradient.extend(spread);
        } else {
            put(&dw[slots.clone()], &mut spread);
            gradient.extend(softmax_backward(&softmax(row), &spread));
        }
    }
    gradient
}

/// `-Σ_e p_e ln p_e` of the softmax of one token's logits.
pub fn entropy(logits: &[f64]) -> f64 {
    softmax(logits).into_iter().filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum()
}

/// `Σ_t valid_t Σ_e share_e · softmax(logits_t)_e`.
pub fn aux_loss(logits: &[f64], shares: &[f64], valid: &[f64]) -> f64 {
    let row = |(row, valid): (&[f64], &f64)| -> f64 {
        valid * softmax(row).iter().zip(shares).map(|(p, share)| p * share).sum::<f64>()
    };
    logits.chunks(shares.len()).zip(valid).map(row).sum()
}

/// Gradient of [`aux_loss`].
pub fn aux_loss_backward(logits: &[f64], shares: &[f64], valid: &[f64]) -> Vec<f64> {
    let row = |(row, valid): (&[f64], &f64)| -> Vec<f64> {
        softmax_backward(&softmax(row), shares).iter().map(|d| valid * d).collect()
    };
    logits.chunks(shares.len()).zip(valid).flat_map(row).collect()
}
