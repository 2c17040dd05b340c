//! The norms on a GPU.

mod gated;

use half::bf16;

use super::Kind;
use crate::Result;
use crate::gpu::rows::{RowKernels, Rows, address};
use crate::gpu::{Argument, Buffer, FrozenPart, Gpu, Kernel};

pub use gated::GpuGatedNorm;

const OP: &str = "rms norm";

const fn forward(name: &'static str) -> Kernel {
    Kernel::new(name, "const bf16*, const bf16*, const f32*, f32, bf16*, bf16*, i32, i32")
}
const FORWARD: RowKernels = [forward("norm_forward_short"), forward("norm_forward_long"), forward("norm_forward_any")];

const fn backward(name: &'static str) -> Kernel {
    Kernel::new(name, "const bf16*, const bf16*, const f32*, f32, const bf16*, bf16*, i32, i32, i32")
}
const BACKWARD: RowKernels =
    [backward("norm_backward_short"), backward("norm_backward_long"), backward("norm_backward_any")];

/// A frozen norm over rows, with the sum before it. Rows have up to 8192 values, or up to 4096 where their number is no
/// multiple of 8.
#[derive(Debug)]
pub struct GpuNorm {
    /// What multiplies the normalised values: the weight, or one more.
    scale: Buffer<f32>,
    epsilon: f32,
}

/// What multiplies the normalised values.
pub(crate) fn scale(gpu: &Gpu, weight: &[f32], kind: Kind) -> Result<Buffer<f32>> {
    match kind {
        Kind::Plain => gpu.of(weight),
        Kind::ZeroCentred => gpu.of(&weight.iter().map(|weight| 1.0 + weight).collect::<Vec<_>>()),
    }
}

// === impl GpuNorm ===

impl GpuNorm {
    /// A norm with this weight, as long as a row.
    pub fn of(gpu: &Gpu, weight: &[f32], kind: Kind, epsilon: f32) -> Result<Self> {
        Ok(Self { scale: scale(gpu, weight, kind)?, epsilon })
    }

    /// Everything that it knows.
    pub fn frozen(&self) -> Vec<FrozenPart> {
        vec![FrozenPart::of("scale", &self.scale)]
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.scale.len()
    }

    /// `y = norm(x)`
    pub fn forward(&self, x: &Buffer<bf16>, y: &mut Buffer<bf16>) -> Result<()> {
        y.expect(OP, "result", x.len())?;
        let rows = self.rows(x.len(), &[address(x), address(&*y)])?;
        let nothing = || None::<&Buffer<bf16>>.into();
        self.launch_forward(rows, x.into(), nothing(), None::<&mut Buffer<bf16>>.into(), y)
    }

    /// `h = x + delta`, `y = norm(h)`
    pub fn forward_sum(
        &self,
        x: &Buffer<bf16>,
        delta: &Buffer<bf16>,
        h: &mut Buffer<bf16>,
        y: &mut Buffer<bf16>,
    ) -> Result<()> {
        delta.expect(OP, "second summand", x.len())?;
        h.expect(OP, "sum", x.len())?;
        y.expect(OP, "result", x.len())?;
        let rows = self.rows(x.len(), &[address(x), address(delta), address(&*h), address(&*y)])?;
        self.launch_forward(rows, x.into(), delta.into(), h.into(), y)
    }

    /// `h += delta`, `y = norm(h)`
    pub fn forward_add(&self, h: &mut Buffer<bf16>, delta: &Buffer<bf16>, y: &mut Buffer<bf16>) -> Result<()> {
        delta.expect(OP, "summand", h.len())?;
        y.expect(OP, "result", h.len())?;
        let rows = self.rows(h.len(), &[address(&*h), address(delta), address(&*y)])?;
        self.launch_forward(rows, None::<&Buffer<bf16>>.into(), delta.into(), h.into(), y)
    }

    /// `dx = residual + d norm(h)`: the gradient of the norm's argument, and of what went round the norm if it is given.
    pub fn backward(
        &self,
        h: &Buffer<bf16>,
        dy: &Buffer<bf16>,
        residual: Option<&Buffer<bf16>>,
        dx: &mut Buffer<bf16>,
    ) -> Result<()> {
        if let Some(residual) = residual {
            residual.expect(OP, "gradient of the residual", h.len())?;
        }
        self.launch_backward(h, dy, residual, dx, false)
    }

    /// `dx += d norm(h)`
    pub fn backward_add(&self, h: &Buffer<bf16>, dy: &Buffer<bf16>, dx: &mut Buffer<bf16>) -> Result<()> {
        self.launch_backward(h, dy, None, dx, true)
    }

    fn rows(&self, values: usize, addresses: &[u64]) -> Result<Rows> {
        Rows::of(OP, values, self.width(), addresses)
    }

    fn launch_forward(
        &self,
        rows: Rows,
        x: Argument,
        delta: Argument,
        h: Argument,
        y: &mut Buffer<bf16>,
    ) -> Result<()> {
        let (scale, epsilon) = ((&self.scale).into(), self.epsilon.into());
        let arguments = [x, delta, scale, epsilon, h, y.into(), rows.rows.into(), rows.width.into()];
        self.scale.gpu().launch(rows.kernel(&FORWARD), rows.shape(), arguments)
    }

    fn launch_backward(
        &self,
        h: &Buffer<bf16>,
        dy: &Buffer<bf16>,
        residual: Option<&Buffer<bf16>>,
        dx: &mut Buffer<bf16>,
        add: bool,
    ) -> Result<()> {
        dy.expect(OP, "gradient of the result", h.len())?;
        dx.expect(OP, "gradient of the argument", h.len())?;
        let rows = self.rows(h.len(), &[address(h), address(dy), address(residual), address(&*dx)])?;
        let (scale, epsilon) = ((&self.scale).into(), self.epsilon.into());
        let (residual, add) = (residual.into(), i32::from(add).into());
        let sizes = [rows.rows.into(), rows.width.into()];
        let arguments = [h.into(), dy.into(), scale, epsilon, residual, dx.into(), add, sizes[0], sizes[1]];
        self.scale.gpu().launch(rows.kernel(&BACKWARD), rows.shape(), arguments)
    }
}
