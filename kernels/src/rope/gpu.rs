//! Heads before and after attention, on a GPU.

use half::bf16;

use super::{GATE, HeadNorm, HeadShape, PREPARE, RopeTable};
use crate::gpu::heads::{HeadKernels, Heads};
use crate::gpu::pairs::{self, Layout, Pairs};
use crate::gpu::rows::{address, count};
use crate::gpu::{Argument, Buffer, FrozenPart, Gpu, Kernel};
use crate::norm;
use crate::{Error, GpuDocuments, Result};

const fn forward(name: &'static str) -> Kernel {
    Kernel::new(name, "const bf16*, const f32*, f32, const f32*, const u32*, bf16*, i32, i32, i32, i32, i32, i32")
}
const FORWARD: HeadKernels = [forward("rope_forward"), forward("rope_forward_any")];

const fn backward(name: &'static str) -> Kernel {
    Kernel::new(
        name,
        "const bf16*, const f32*, f32, const f32*, const u32*, const bf16*, bf16*, i32, i32, i32, i32, i32, i32",
    )
}
const BACKWARD: HeadKernels = [backward("rope_backward"), backward("rope_backward_any")];

const GATES: Pairs = Pairs {
    op: GATE,
    forward: [pairs::forward("sigmoid_gate_forward"), pairs::forward("sigmoid_gate_forward_any")],
    backward: [pairs::backward("sigmoid_gate_backward"), pairs::backward("sigmoid_gate_backward_any")],
};

/// Cosines and sines in a GPU's memory: those of one position beside each other.
#[derive(Debug)]
pub struct GpuRopeTable {
    rotary_dim: usize,
    positions: usize,
    values: Buffer<f32>,
}

/// What happens to the heads of q or k before attention: a frozen norm, if the model has one, and the rotation. Heads have
/// up to 256 values, or up to 128 where sizes are no multiples of 8.
#[derive(Debug)]
pub struct GpuHeadNormRope {
    shape: HeadShape,
    scale: Option<Buffer<f32>>,
    epsilon: f32,
}

// === impl GpuRopeTable ===

impl GpuRopeTable {
    /// The table, copied to a GPU.
    pub fn of(gpu: &Gpu, table: &RopeTable) -> Result<Self> {
        let values: Vec<f32> = (0..table.positions() as u32)
            .flat_map(|position| {
                let (cosines, sines) = table.at(position);
                cosines.iter().chain(sines).copied()
            })
            .collect();
        Ok(Self { rotary_dim: table.rotary_dim(), positions: table.positions(), values: gpu.of(&values)? })
    }

    /// Number of positions in the table.
    pub fn positions(&self) -> usize {
        self.positions
    }
}

// === impl GpuHeadNormRope ===

impl GpuHeadNormRope {
    /// For heads that lie like this.
    pub fn of(gpu: &Gpu, shape: HeadShape, norm: Option<&HeadNorm>) -> Result<Self> {
        shape.check()?;
        let Some(norm) = norm else { return Ok(Self { shape, scale: None, epsilon: 0.0 }) };
        if norm.weight.len() != shape.head_dim {
            return Err(Error::shape(PREPARE, "norm weight", shape.head_dim, norm.weight.len()));
        }
        Ok(Self { shape, scale: Some(norm::scale(gpu, &norm.weight, norm.kind)?), epsilon: norm.epsilon })
    }

    /// Everything that it knows; nothing where there is no norm.
    pub fn frozen(&self) -> Vec<FrozenPart> {
        self.scale.iter().map(|scale| FrozenPart::of("scale", scale)).collect()
    }

    /// Where the heads lie.
    pub fn shape(&self) -> HeadShape {
        self.shape
    }

    /// `y = rotate(norm(x))`: `x` is `[tokens, heads · source_stride]`, `y` `[tokens, heads · head_dim]`.
    pub fn forward(
        &self,
        x: &Buffer<bf16>,
        table: &GpuRopeTable,
        documents: &GpuDocuments,
        y: &mut Buffer<bf16>,
    ) -> Result<()> {
        self.check(x, table, documents, y)?;
        let heads = self.heads(y.len(), table, &[address(x), address(&*y)])?;
        let [items, dim, lanes] = heads.arguments();
        let [of_row, stride, half] = self.places(table)?;
        let (scale, epsilon) = (self.scale.as_ref().into(), self.epsilon.into());
        let (table, positions) = ((&table.values).into(), documents.positions().into());
        let arguments = [x.into(), scale, epsilon, table, positions, y.into(), items, dim, lanes, of_row, stride, half];
        x.gpu().launch(heads.kernel(&FORWARD), heads.shape(), arguments)
    }

    /// Writes the gradient of the heads to their places in `dx`; what is beside them there stays as it is.
    pub fn backward(
        &self,
        x: &Buffer<bf16>,
        table: &GpuRopeTable,
        documents: &GpuDocuments,
        dy: &Buffer<bf16>,
        dx: &mut Buffer<bf16>,
    ) -> Result<()> {
        self.check(x, table, documents, dy)?;
        dx.expect(PREPARE, "gradient of the source", x.len())?;
        let heads = self.heads(dy.len(), table, &[address(x), address(dy), address(&*dx)])?;
        let [items, dim, lanes] = heads.arguments();
        let [of_row, stride, half] = self.places(table)?;
        let (scale, epsilon) = (self.scale.as_ref().into(), self.epsilon.into());
        let (table, positions) = ((&table.values).into(), documents.positions().into());
        let gradients = [dy.into(), dx.into()];
        let [dy, dx] = gradients;
        let arguments = [x.into(), scale, epsilon, table, positions, dy, dx, items, dim, lanes, of_row, stride, half];
        x.gpu().launch(heads.kernel(&BACKWARD), heads.shape(), arguments)
    }

    fn check(&self, x: &Buffer<bf16>, table: &GpuRopeTable, documents: &GpuDocuments, y: &Buffer<bf16>) -> Result<()> {
        let HeadShape { heads, head_dim, source_stride } = self.shape;
        let tokens = documents.tokens();
        x.expect(PREPARE, "source", tokens * heads * source_stride)?;
        y.expect(PREPARE, "heads", tokens * heads * head_dim)?;
        if table.rotary_dim > head_dim {
            return Err(Error::shape(PREPARE, "rotary size, at most", head_dim, table.rotary_dim));
        }
        if documents.longest() > table.positions {
            let reason =
                format!("a document of {} tokens and a table of {} positions", documents.longest(), table.positions);
            return Err(Error::invalid(PREPARE, reason));
        }
        Ok(())
    }

    fn heads(&self, values: usize, table: &GpuRopeTable, addresses: &[u64]) -> Result<Heads> {
        let HeadShape { head_dim, source_stride, .. } = self.shape;
        Heads::of(PREPARE, values, head_dim, &[source_stride, table.rotary_dim / 2], addresses)
    }

    /// Heads of a row, values from one to the next, and half of those that are turned.
    fn places(&self, table: &GpuRopeTable) -> Result<[Argument; 3]> {
        let HeadShape { heads, source_stride, .. } = self.shape;
        let of_row = count(PREPARE, "heads of a row", heads)?;
        let stride = count(PREPARE, "distance of heads", source_stride)?;
        Ok([of_row.into(), stride.into(), count(PREPARE, "rotary size", table.rotary_dim / 2)?.into()])
    }
}

/// `y = attention ⊙ σ(gate)`: `attention` is `[tokens, heads · head_dim]`, `raw` the query projection with the gate in the
/// second half of each head.
pub fn sigmoid_gate(attention: &Buffer<bf16>, raw: &Buffer<bf16>, head_dim: usize, y: &mut Buffer<bf16>) -> Result<()> {
    let (layout, gate) = gates(attention, raw, head_dim)?;
    GATES.forward(layout, attention, &gate, y)
}

/// Writes the gradient of `attention`, and that of the gate to its places in `d_raw`; what is beside it there stays.
pub fn sigmoid_gate_backward(
    attention: &Buffer<bf16>,
    raw: &Buffer<bf16>,
    head_dim: usize,
    dy: &Buffer<bf16>,
    d_attention: &mut Buffer<bf16>,
    d_raw: &mut Buffer<bf16>,
) -> Result<()> {
    let (layout, gate) = gates(attention, raw, head_dim)?;
    let (_, mut d_gate) = gates(d_attention, d_raw, head_dim)?;
    GATES.backward(layout, attention, &gate, dy, d_attention, &mut d_gate)
}

/// The gates of all heads: the second half of each.
fn gates(attention: &Buffer<bf16>, raw: &Buffer<bf16>, head_dim: usize) -> Result<(Layout, Buffer<bf16>)> {
    if head_dim == 0 || attention.is_empty() || !attention.len().is_multiple_of(head_dim) {
        return Err(Error::shape(GATE, "attention", format!("heads of {head_dim}"), attention.len()));
    }
    raw.expect(GATE, "projection", 2 * attention.len())?;
    let layout = Layout { rows: attention.len() / head_dim, width: head_dim, a: head_dim, b: 2 * head_dim };
    Ok((layout, raw.part(head_dim..raw.len())?))
}

#[cfg(all(test, feature = "emulation"))]
mod tests;
