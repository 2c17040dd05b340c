//! The final norm, the head and the loss.

use brightrun_kernels::cross_entropy::{
    GPU_CHUNK_ROWS, GpuHead, GpuHeadLora, GpuLossGradients, GpuLosses, GpuTargets, gpu_fused,
};
use brightrun_kernels::gpu::Buffer;
use brightrun_kernels::lora_linear::gpu::GpuWeight;
use brightrun_kernels::norm::GpuNorm;
use half::bf16;

use super::linear::Linear;
use super::pass::Pass;
use crate::Result;

/// From the last layer's output to the loss.
pub(super) struct Head {
    pub(super) norm: GpuNorm,
    pub(super) linear: Linear,
}

impl Head {
    /// Adds the losses to `sum`. With a `scale` also the gradient of the last layer's output, of the losses times that.
    pub(super) fn loss(
        &self,
        hidden: &Buffer<bf16>,
        targets: &[Option<u32>],
        scale: Option<f32>,
        sum: &mut Buffer<u64>,
        pass: &Pass<'_>,
    ) -> Result<Option<Buffer<bf16>>> {
        let (frozen, lora) = self.linear.parts(pass);
        let (vocabulary, width) = (frozen.weight.rows(), frozen.weight.columns());
        let decoded;
        let weight = match &frozen.weight {
            GpuWeight::Bf16 { values, .. } => values,
            GpuWeight::Nf4(matrix) => {
                let mut copy = pass.gpu.empty(vocabulary * width)?;
                matrix.decode(&mut copy)?;
                decoded = copy;
                &decoded
            }
        };
        let lora = lora.as_ref().map(|lora| GpuHeadLora {
            a: &lora.a,
            b: &lora.b,
            rank: lora.rank,
            scale: lora.scale,
            dropout: lora.dropout,
        });
        let head = GpuHead { weight, vocabulary, width, lora };
        let targets = GpuTargets::new(pass.gpu, targets, vocabulary)?;
        let mut normed = pass.gpu.empty(hidden.len())?;
        self.norm.forward(hidden, &mut normed)?;
        let mut each = pass.gpu.empty(targets.count())?;
        let losses = GpuLosses { sum, each: &mut each };
        let Some(scale) = scale else {
            gpu_fused(&head, &normed, &targets, GPU_CHUNK_ROWS, losses, None)?;
            return Ok(None);
        };
        let mut d_normed = pass.gpu.empty(hidden.len())?;
        let mut of_lora = self.linear.gradients().filter(|_| lora.is_some());
        let lora = of_lora.as_mut().map(|(a, b)| (a, b));
        let gradients = GpuLossGradients { scale, hidden: &mut d_normed, lora };
        gpu_fused(&head, &normed, &targets, GPU_CHUNK_ROWS, losses, Some(gradients))?;
        let mut d_hidden = pass.gpu.empty(hidden.len())?;
        self.norm.backward(hidden, &d_normed, None, &mut d_hidden)?;
        Ok(Some(d_hidden))
    }
}
