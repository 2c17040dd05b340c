//! The definition of the summed cross entropy and of all its gradients, in `f64`, with every logit in memory.

use crate::dropout::Dropout;

/// A LoRA pair on the output projection.
#[derive(Debug, Clone, Copy)]
pub struct Lora<'a> {
    /// `[rank, width]`.
    pub a: &'a [f64],
    /// `[vocabulary, rank]`.
    pub b: &'a [f64],
    /// Factor of the pair's contribution.
    pub scale: f64,
    /// Mask of what goes into `A`.
    pub dropout: Option<Dropout>,
}

/// The loss and its gradients.
#[derive(Debug, Clone)]
pub struct Loss {
    /// Sum over the rows that have a target.
    pub loss: f64,
    /// `[rows, width]`.
    pub d_hidden: Vec<f64>,
    /// `[rank, width]`; empty without a LoRA pair.
    pub d_a: Vec<f64>,
    /// `[vocabulary, rank]`; empty without a LoRA pair.
    pub d_b: Vec<f64>,
}

/// `Σ_rows ln Σ_v exp(l_v) - l_target`, `l = W·h + scale·B·A·(m ⊙ h)` with `m` the factors of the dropout.
pub fn loss(hidden: &[f64], width: usize, weight: &[f64], lora: Option<Lora<'_>>, targets: &[Option<u32>]) -> Loss {
    let vocabulary = weight.len() / width;
    let rank = lora.map_or(0, |l| l.a.len() / width);
    let mut update = vec![0.0; weight.len()];
    if let Some(Lora { a, b, scale, .. }) = lora {
        for v in 0..vocabulary {
            for i in 0..width {
                update[v * width + i] = scale * (0..rank).map(|r| b[v * rank + r] * a[r * width + i]).sum::<f64>();
            }
        }
    }
    let factor = |row: usize, i: usize| {
        lora.and_then(|l| l.dropout).map_or(1.0, |dropout| f64::from(dropout.factor((row * width + i) as u64)))
    };
    let mut out = Loss {
        loss: 0.0,
        d_hidden: vec![0.0; hidden.len()],
        d_a: vec![0.0; rank * width],
        d_b: vec![0.0; vocabulary * rank],
    };
    let mut d_update = vec![0.0; weight.len()];
    for (row, target) in targets.iter().enumerate() {
        let Some(target) = target else { continue };
        let h = &hidden[row * width..(row + 1) * width];
        let effective = |v: usize, i: usize| weight[v * width + i] + factor(row, i) * update[v * width + i];
        let logits: Vec<f64> = (0..vocabulary).map(|v| (0..width).map(|i| effective(v, i) * h[i]).sum()).collect();
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = logits.iter().map(|l| (l - largest).exp()).sum();
        out.loss += largest + total.ln() - logits[*target as usize];
        for v in 0..vocabulary {
            let one = if v == *target as usize { 1.0 } else { 0.0 };
            let d_logit = (logits[v] - largest).exp() / total - one;
            for i in 0..width {
                out.d_hidden[row * width + i] += d_logit * effective(v, i);
                d_update[v * width + i] += d_logit * factor(row, i) * h[i];
            }
        }
    }
    if let Some(Lora { a, b, scale, .. }) = lora {
        for v in 0..vocabulary {
            for r in 0..rank {
                for i in 0..width {
                    out.d_a[r * width + i] += scale * b[v * rank + r] * d_update[v * width + i];
                    out.d_b[v * rank + r] += scale * a[r * width + i] * d_update[v * width + i];
                }
            }
        }
    }
    out
}
