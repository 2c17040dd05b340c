//! The gated norm on a GPU.

use half::bf16;

use crate::conv::HeadGroups;
use crate::gpu::heads::{HeadKernels, Heads};
use crate::gpu::rows::{address, count};
use crate::gpu::{Argument, Buffer, FrozenPart, Gpu, Kernel};
use crate::{Error, Result};

const OP: &str = "gated norm";

const fn forward(name: &'static str) -> Kernel {
    Kernel::new(name, "const bf16*, const bf16*, const f32*, f32, bf16*, i32, i32, i32, i32, i32, i32")
}
const FORWARD: HeadKernels = [forward("gated_norm_forward"), forward("gated_norm_forward_any")];

const fn backward(name: &'static str) -> Kernel {
    Kernel::new(
        name,
        "const bf16*, const bf16*, const f32*, f32, const bf16*, bf16*, bf16*, i32, i32, i32, i32, i32, i32",
    )
}
const BACKWARD: HeadKernels = [backward("gated_norm_backward"), backward("gated_norm_backward_any")];

/// A frozen gated norm: `w ⊙ o·ρ(o) ⊙ silu(z)` per value head, z where the grouped projection has it. Heads have up to
/// 256 values, or up to 128 where their number is no multiple of 8.
#[derive(Debug)]
pub struct GpuGatedNorm {
    weight: Buffer<f32>,
    groups: HeadGroups,
    epsilon: f32,
}

// === impl GpuGatedNorm ===

impl GpuGatedNorm {
    /// A norm with this weight, as long as a value head.
    pub fn of(gpu: &Gpu, weight: &[f32], groups: &HeadGroups, epsilon: f32) -> Result<Self> {
        groups.check()?;
        if weight.len() != groups.value_dim {
            return Err(Error::shape(OP, "weight", groups.value_dim, weight.len()));
        }
        Ok(Self { weight: gpu.of(weight)?, groups: *groups, epsilon })
    }

    /// Everything that it knows.
    pub fn frozen(&self) -> Vec<FrozenPart> {
        vec![FrozenPart::of("weight", &self.weight)]
    }

    /// `y` from `o`, both `[tokens, value heads]`, and the projection.
    pub fn forward(&self, o: &Buffer<bf16>, qkvz: &Buffer<bf16>, y: &mut Buffer<bf16>) -> Result<()> {
        self.check(o, qkvz)?;
        y.expect(OP, "result", o.len())?;
        let heads = self.heads(o, &[address(o), address(qkvz), address(&*y)])?;
        let [r, group, gate] = self.places()?;
        let (weight, epsilon) = ((&self.weight).into(), self.epsilon.into());
        let [items, dim, lanes] = heads.arguments();
        let arguments = [o.into(), qkvz.into(), weight, epsilon, y.into(), items, dim, lanes, r, group, gate];
        o.gpu().launch(heads.kernel(&FORWARD), heads.shape(), arguments)
    }

    /// Writes the gradient of `o`, and that of z to its places in `d_qkvz`; the others there stay as they are.
    pub fn backward(
        &self,
        o: &Buffer<bf16>,
        qkvz: &Buffer<bf16>,
        dy: &Buffer<bf16>,
        d_o: &mut Buffer<bf16>,
        d_qkvz: &mut Buffer<bf16>,
    ) -> Result<()> {
        self.check(o, qkvz)?;
        dy.expect(OP, "gradient of the result", o.len())?;
        d_o.expect(OP, "gradient of o", o.len())?;
        d_qkvz.expect(OP, "gradient of the projection", qkvz.len())?;
        let addresses = [address(o), address(qkvz), address(dy), address(&*d_o), address(&*d_qkvz)];
        let heads = self.heads(o, &addresses)?;
        let [r, group, gate] = self.places()?;
        let (weight, epsilon) = ((&self.weight).into(), self.epsilon.into());
        let [items, dim, lanes] = heads.arguments();
        let gradients = [d_o.into(), d_qkvz.into()];
        let arguments = [
            o.into(),
            qkvz.into(),
            weight,
            epsilon,
            dy.into(),
            gradients[0],
            gradients[1],
            items,
            dim,
            lanes,
            r,
            group,
            gate,
        ];
        o.gpu().launch(heads.kernel(&BACKWARD), heads.shape(), arguments)
    }

    fn check(&self, o: &Buffer<bf16>, qkvz: &Buffer<bf16>) -> Result<()> {
        let tokens = o.len() / self.groups.value_width();
        o.expect(OP, "o", tokens * self.groups.value_width())?;
        qkvz.expect(OP, "projection", tokens * self.groups.projection_width())
    }

    fn heads(&self, o: &Buffer<bf16>, addresses: &[u64]) -> Result<Heads> {
        let sizes = [self.groups.value_dim, self.groups.group_width(), self.groups.gate_range(0).start];
        Heads::of(OP, o.len(), self.groups.value_dim, &sizes, addresses)
    }

    /// Value heads of a group, width of a group, and where z begins in one.
    fn places(&self) -> Result<[Argument; 3]> {
        let width = count(OP, "width of a group", self.groups.group_width())?;
        let r = count(OP, "value heads of a key head", self.groups.values_per_key())?;
        Ok([r.into(), width.into(), count(OP, "start of z", self.groups.gate_range(0).start)?.into()])
    }
}
