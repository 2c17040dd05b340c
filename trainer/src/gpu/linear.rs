//! A linear layer of the base model with the adapter that belongs to it, if any.

use brightrun_kernels::gemm::Accumulate;
use brightrun_kernels::gpu::Buffer;
use brightrun_kernels::lora_linear::gpu::{GpuLinear, GpuLora, GpuLoraGradients};
use half::bf16;

use super::adapters::GpuAdapters;
use super::digest::Parts;
use super::pass::Pass;
use crate::Result;
use crate::adapters::DenseAdapter;

/// `x Wᵀ + bias`, plus the low-rank update where the module is adapted.
pub(super) struct Linear {
    frozen: GpuLinear,
    adapter: Option<Adapter>,
}

/// What the backward pass needs besides the argument: `drop(x) Aᵀ`, where there is an adapter.
pub(super) type Kept = Option<Buffer<bf16>>;

struct Adapter {
    a: Buffer<bf16>,
    b: Buffer<bf16>,
    d_a: Buffer<f32>,
    d_b: Buffer<f32>,
    rank: usize,
    scale: f32,
    id: u64,
}

impl Linear {
    pub(super) fn new(
        frozen: GpuLinear,
        adapter: Option<&DenseAdapter>,
        path: &str,
        on_gpu: &GpuAdapters,
    ) -> Result<Self> {
        let adapter = match adapter {
            Some(adapter) => {
                let (a, b) = (on_gpu.dense(&format!("{path}.lora_A"))?, on_gpu.dense(&format!("{path}.lora_B"))?);
                let ((a, d_a), (b, d_b)) = (a, b);
                Some(Adapter { a, b, d_a, d_b, rank: adapter.rank, scale: adapter.scale, id: adapter.id })
            }
            None => None,
        };
        Ok(Self { frozen, adapter })
    }

    pub(super) fn is_adapted(&self) -> bool {
        self.adapter.is_some()
    }

    pub(super) fn frozen(&self, path: &str, parts: &mut Parts) {
        parts.add(path, self.frozen.frozen());
    }

    fn lora(&self, pass: &Pass<'_>) -> Option<GpuLora> {
        let adapter = self.adapter.as_ref().filter(|_| pass.adapted)?;
        Some(GpuLora {
            a: adapter.a.shared(),
            b: adapter.b.shared(),
            rank: adapter.rank,
            scale: adapter.scale,
            dropout: pass.dropout(adapter.id),
        })
    }

    pub(super) fn forward(&self, x: &Buffer<bf16>, pass: &Pass<'_>) -> Result<(Buffer<bf16>, Kept)> {
        let mut y = pass.rows(self.frozen.weight.rows())?;
        let kept = self.frozen.forward(x, pass.tokens(), self.lora(pass).as_ref(), &mut y)?;
        Ok((y, kept))
    }

    /// The same without rounding: for routers.
    pub(super) fn forward_wide(&self, x: &Buffer<bf16>, pass: &Pass<'_>) -> Result<(Buffer<f32>, Kept)> {
        let mut y = pass.gpu.empty(pass.tokens() * self.frozen.weight.rows())?;
        let kept = self.frozen.forward_wide(x, pass.tokens(), self.lora(pass).as_ref(), &mut y)?;
        Ok((y, kept))
    }

    /// Writes the gradient of `x` or adds it; adds those of the adapter.
    pub(super) fn backward(
        &self,
        x: &Buffer<bf16>,
        kept: &Kept,
        dy: &Buffer<bf16>,
        pass: &Pass<'_>,
        dx: &mut Buffer<bf16>,
        add: bool,
    ) -> Result<()> {
        let accumulate = if add { Accumulate::Add } else { Accumulate::Overwrite };
        let lora = self.lora(pass);
        let mut gradients = self.adapter.as_ref().map(|adapter| {
            let (a, b) = (adapter.d_a.shared(), adapter.d_b.shared());
            GpuLoraGradients { a, b }
        });
        let update = match (&lora, kept, &mut gradients) {
            (Some(lora), Some(kept), Some(gradients)) => Some((lora, kept, gradients)),
            _ => None,
        };
        Ok(self.frozen.backward(x, dy, pass.tokens(), update, Some((dx, accumulate)))?)
    }

    /// Weight and adapter of a layer that is not used as one: the head.
    pub(super) fn parts(&self, pass: &Pass<'_>) -> (&GpuLinear, Option<GpuLora>) {
        (&self.frozen, self.lora(pass))
    }

    /// Where the gradients of the adapter are added.
    pub(super) fn gradients(&self) -> Option<(Buffer<f32>, Buffer<f32>)> {
        self.adapter.as_ref().map(|adapter| (adapter.d_a.shared(), adapter.d_b.shared()))
    }
}
