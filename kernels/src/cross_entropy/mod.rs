//! Output projection and cross entropy in one op, so that the logits of all rows never exist together.
//!
//! `loss = Σ_rows ln Σ_v exp(l_v) - l_target`, `l = W·h + scale·B·(A·(m ⊙ h))`, over the rows that have a target, with
//! `m` the factors of the dropout. With `dl = softmax(l) - onehot(target)`: `dh = Wᵀ·dl + scale·m ⊙ (Aᵀ·(Bᵀ·dl))`,
//! `dA = scale·Σ (Bᵀ·dl)·(m ⊙ h)ᵀ`, `dB = scale·Σ dl·(A·(m ⊙ h))ᵀ`. The gradients are made in the forward pass, chunk by chunk while the logits are there, and
//! only if the graph wants them; the backward pass multiplies them by the upstream number. W is frozen.

mod cpu;
mod gpu;
pub mod reference;

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Shape, Tensor};

use crate::dropout::Dropout;
use crate::op::{self, expect_f32, wants_gradient};
use crate::{Error, FrozenWeight, Result};
use cpu::Wanted;

pub use gpu::{GPU_CHUNK_ROWS, GpuHead, GpuHeadLora, GpuLossGradients, GpuLosses, GpuTargets, gpu_fused};
pub(crate) use gpu::{Tiles, gpu_fused_with};

const OP: &str = "fused cross entropy";

/// Rows per chunk. Each chunk reads W twice (once per product), so it must be large enough for the products and not
/// the memory bus to set the pace: some tens of rows on a CPU. 256 leave that far behind and need 156 MB for the
/// 151,936 words of Qwen.
pub const CHUNK_ROWS: usize = 256;

/// A LoRA pair on the output projection.
#[derive(Debug, Clone, Copy)]
pub struct Lora<'a> {
    /// `[rank, width]`.
    pub a: &'a Tensor,
    /// `[vocabulary, rank]`.
    pub b: &'a Tensor,
    /// Factor of the pair's contribution.
    pub scale: f32,
    /// Mask of what goes into `A`: of element `row · width + column` of `hidden`.
    pub dropout: Option<Dropout>,
}

/// The sum (not the mean) of the cross entropies of the rows of `hidden` `[rows, width]` that have a target, as a
/// scalar. `weight` is `[vocabulary, width]`; `chunk_rows` is usually [`CHUNK_ROWS`].
pub fn fused(
    hidden: &Tensor,
    lora: Option<Lora<'_>>,
    weight: &FrozenWeight,
    targets: &[Option<u32>],
    chunk_rows: usize,
) -> Result<Tensor> {
    expect_f32(OP, "hidden", hidden)?;
    let (vocabulary, width) = (weight.rows(), weight.columns());
    if hidden.dims() != [targets.len(), width] {
        return Err(Error::shape(OP, "hidden", [targets.len(), width], hidden.dims()));
    }
    if chunk_rows == 0 || width == 0 || vocabulary == 0 {
        return Err(Error::invalid(OP, "chunk_rows, width and vocabulary must not be 0"));
    }
    let op = FusedCrossEntropy {
        weight: weight.clone(),
        kept: keep(targets, vocabulary)?,
        chunk_rows,
        lora: None,
        wanted: Wanted { hidden: wants_gradient(hidden), lora: false },
        gradients: Mutex::new(None),
    };
    let Some(lora) = lora else {
        return Ok(hidden.apply_op1_arc(Arc::new(Box::new(op)))?);
    };
    expect_f32(OP, "lora A", lora.a)?;
    expect_f32(OP, "lora B", lora.b)?;
    let rank = lora.a.dims().first().copied().unwrap_or(0);
    if rank == 0 || lora.a.dims() != [rank, width] {
        return Err(Error::shape(OP, "lora A", ["rank".into(), width.to_string()], lora.a.dims()));
    }
    if lora.b.dims() != [vocabulary, rank] {
        return Err(Error::shape(OP, "lora B", [vocabulary, rank], lora.b.dims()));
    }
    let wanted = Wanted { lora: wants_gradient(lora.a) || wants_gradient(lora.b), ..op.wanted };
    let op = FusedCrossEntropy { lora: Some((rank, lora.scale, lora.dropout)), wanted, ..op };
    Ok(hidden.apply_op3_arc(lora.a, lora.b, Arc::new(Box::new(op)))?)
}

/// The rows that count, with their targets.
fn keep(targets: &[Option<u32>], vocabulary: usize) -> Result<Vec<(usize, u32)>> {
    let kept: Vec<(usize, u32)> = targets.iter().enumerate().filter_map(|(row, t)| t.map(|t| (row, t))).collect();
    match kept.iter().find(|(_, target)| *target as usize >= vocabulary) {
        Some((row, target)) => {
            Err(Error::invalid(OP, format!("row {row} has target {target}, outside of {vocabulary} words")))
        }
        None => Ok(kept),
    }
}

struct FusedCrossEntropy {
    weight: FrozenWeight,
    kept: Vec<(usize, u32)>,
    chunk_rows: usize,
    /// Rank, scale and dropout of the LoRA pair.
    lora: Option<(usize, f32, Option<Dropout>)>,
    wanted: Wanted,
    /// Left by the forward pass for the backward pass.
    gradients: Mutex<Option<Gradients>>,
}

#[derive(Clone)]
struct Gradients {
    hidden: Option<Tensor>,
    a: Option<Tensor>,
    b: Option<Tensor>,
}

// === impl FusedCrossEntropy ===

impl FusedCrossEntropy {
    fn forward(&self, hidden: &[f32], lora: Option<cpu::Lora<'_>>) -> candle_core::Result<(CpuStorage, Shape)> {
        let (vocabulary, width) = (self.weight.rows(), self.weight.columns());
        let mut scratch = Vec::new();
        let arguments = cpu::Arguments {
            hidden,
            width,
            weight: self.weight.decode(&mut scratch),
            vocabulary,
            lora,
            kept: &self.kept,
            chunk_rows: self.chunk_rows,
        };
        let out = cpu::loss(&arguments, self.wanted);
        let rank = lora.map_or(0, |l| l.rank);
        let tensor = |wanted: bool, values: Vec<f32>, shape: (usize, usize)| {
            wanted.then(|| op::tensor(values, shape)).transpose()
        };
        let gradients = Gradients {
            hidden: tensor(self.wanted.hidden, out.d_hidden, (hidden.len() / width, width))?,
            a: tensor(self.wanted.lora, out.d_a, (rank, width))?,
            b: tensor(self.wanted.lora, out.d_b, (vocabulary, rank))?,
        };
        *self.gradients.lock().unwrap_or_else(PoisonError::into_inner) = Some(gradients);
        Ok((CpuStorage::F32(vec![out.loss as f32]), ().into()))
    }

    /// The stashed gradients; they stay, so that the graph may be walked again.
    fn stashed(&self) -> candle_core::Result<Gradients> {
        let gradients = self.gradients.lock().unwrap_or_else(PoisonError::into_inner).clone();
        gradients.ok_or_else(|| Error::invalid(OP, "backward before forward").into())
    }
}

/// The stashed gradient times the upstream number, for an argument that wants it.
fn scaled(argument: &Tensor, stashed: Option<Tensor>, upstream: f32) -> candle_core::Result<Option<Tensor>> {
    match stashed.filter(|_| wants_gradient(argument)) {
        Some(gradient) if upstream != 1.0 => Ok(Some(gradient.affine(f64::from(upstream), 0.0)?)),
        gradient => Ok(gradient),
    }
}

impl CustomOp1 for FusedCrossEntropy {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, hidden: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward(op::slice(OP, hidden, layout)?, None)
    }

    fn bwd(&self, hidden: &Tensor, _loss: &Tensor, upstream: &Tensor) -> candle_core::Result<Option<Tensor>> {
        scaled(hidden, self.stashed()?.hidden, upstream.to_scalar()?)
    }
}

impl CustomOp3 for FusedCrossEntropy {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        hidden: &CpuStorage,
        hidden_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (a, b) = (op::slice(OP, a, a_layout)?, op::slice(OP, b, b_layout)?);
        let lora = self.lora.map(|(rank, scale, dropout)| cpu::Lora { a, b, rank, scale, dropout });
        self.forward(op::slice(OP, hidden, hidden_layout)?, lora)
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _loss: &Tensor,
        upstream: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (stashed, upstream) = (self.stashed()?, upstream.to_scalar()?);
        Ok((
            scaled(hidden, stashed.hidden, upstream)?,
            scaled(a, stashed.a, upstream)?,
            scaled(b, stashed.b, upstream)?,
        ))
    }
}

#[cfg(test)]
mod tests;
