//! The gated activation and the gate of the shared expert on a GPU.

use half::bf16;

use super::{SCALE, SWIGLU};
use crate::gpu::pairs::{self, Layout, Pairs};
use crate::gpu::rows::{RowKernels, Rows, address};
use crate::gpu::{Buffer, Kernel};
use crate::{Error, Result};

const PAIRS: Pairs = Pairs {
    op: SWIGLU,
    forward: [pairs::forward("swiglu_forward"), pairs::forward("swiglu_forward_any")],
    backward: [pairs::backward("swiglu_backward"), pairs::backward("swiglu_backward_any")],
};

const fn scale_forward(name: &'static str) -> Kernel {
    Kernel::new(name, "const bf16*, const bf16*, bf16*, i32, i32, i32")
}
const SCALE_FORWARD: RowKernels = [
    scale_forward("scale_rows_forward_short"),
    scale_forward("scale_rows_forward_long"),
    scale_forward("scale_rows_forward_any"),
];

const fn scale_backward(name: &'static str) -> Kernel {
    Kernel::new(name, "const bf16*, const bf16*, const bf16*, bf16*, bf16*, i32, i32")
}
const SCALE_BACKWARD: RowKernels = [
    scale_backward("scale_rows_backward_short"),
    scale_backward("scale_rows_backward_long"),
    scale_backward("scale_rows_backward_any"),
];

/// `y = silu(gate) ⊙ up`
pub fn forward(gate: &Buffer<bf16>, up: &Buffer<bf16>, y: &mut Buffer<bf16>) -> Result<()> {
    PAIRS.forward(Layout::dense(gate.len()), gate, up, y)
}

/// The gradients of both arguments of [`forward`].
pub fn backward(
    gate: &Buffer<bf16>,
    up: &Buffer<bf16>,
    dy: &Buffer<bf16>,
    d_gate: &mut Buffer<bf16>,
    d_up: &mut Buffer<bf16>,
) -> Result<()> {
    PAIRS.backward(Layout::dense(gate.len()), gate, up, dy, d_gate, d_up)
}

/// [`forward`] of rows `gate (width) | up (width)`; `y` has `width` values a row.
pub fn forward_joined(gate_up: &Buffer<bf16>, width: usize, y: &mut Buffer<bf16>) -> Result<()> {
    let (layout, gate, up) = halves(gate_up, width)?;
    PAIRS.forward(layout, &gate, &up, y)
}

/// The gradient of the argument of [`forward_joined`].
pub fn backward_joined(
    gate_up: &Buffer<bf16>,
    width: usize,
    dy: &Buffer<bf16>,
    d_gate_up: &mut Buffer<bf16>,
) -> Result<()> {
    d_gate_up.expect(SWIGLU, "gradient of gate and up", gate_up.len())?;
    let (layout, gate, up) = halves(gate_up, width)?;
    let (_, mut d_gate, mut d_up) = halves(d_gate_up, width)?;
    PAIRS.backward(layout, &gate, &up, dy, &mut d_gate, &mut d_up)
}

/// Where gate and up lie in their rows.
fn halves(both: &Buffer<bf16>, width: usize) -> Result<(Layout, Buffer<bf16>, Buffer<bf16>)> {
    if width == 0 || both.is_empty() || !both.len().is_multiple_of(2 * width) {
        return Err(Error::shape(SWIGLU, "gate and up", format!("rows of two times {width}"), both.len()));
    }
    let layout = Layout { rows: both.len() / (2 * width), width, a: 2 * width, b: 2 * width };
    Ok((layout, both.part(0..both.len() - width)?, both.part(width..both.len())?))
}

/// `out = σ(g)·y` row by row, with a gate for every row.
pub fn scale_rows(y: &Buffer<bf16>, gates: &Buffer<bf16>, out: &mut Buffer<bf16>) -> Result<()> {
    launch_scale(y, gates, out, false)
}

/// `out += σ(g)·y` row by row, with a gate for every row.
pub fn add_scaled_rows(y: &Buffer<bf16>, gates: &Buffer<bf16>, out: &mut Buffer<bf16>) -> Result<()> {
    launch_scale(y, gates, out, true)
}

fn launch_scale(y: &Buffer<bf16>, gates: &Buffer<bf16>, out: &mut Buffer<bf16>, add: bool) -> Result<()> {
    out.expect(SCALE, "result", y.len())?;
    let rows = scaled_rows(y, gates, &[address(y), address(&*out)])?;
    let arguments = [y.into(), gates.into(), out.into(), i32::from(add).into(), rows.rows.into(), rows.width.into()];
    y.gpu().launch(rows.kernel(&SCALE_FORWARD), rows.shape(), arguments)
}

/// The gradients of rows and gates, the same for both ways forward.
pub fn scale_rows_backward(
    y: &Buffer<bf16>,
    gates: &Buffer<bf16>,
    d_out: &Buffer<bf16>,
    d_y: &mut Buffer<bf16>,
    d_gates: &mut Buffer<bf16>,
) -> Result<()> {
    d_out.expect(SCALE, "gradient of the result", y.len())?;
    d_y.expect(SCALE, "gradient of the rows", y.len())?;
    d_gates.expect(SCALE, "gradient of the gates", gates.len())?;
    let rows = scaled_rows(y, gates, &[address(y), address(d_out), address(&*d_y)])?;
    let sizes = [rows.rows.into(), rows.width.into()];
    let arguments = [y.into(), gates.into(), d_out.into(), d_y.into(), d_gates.into(), sizes[0], sizes[1]];
    y.gpu().launch(rows.kernel(&SCALE_BACKWARD), rows.shape(), arguments)
}

fn scaled_rows(y: &Buffer<bf16>, gates: &Buffer<bf16>, addresses: &[u64]) -> Result<Rows> {
    if gates.is_empty() || !y.len().is_multiple_of(gates.len()) {
        return Err(Error::shape(SCALE, "values", format!("{} rows", gates.len()), y.len()));
    }
    Rows::of(SCALE, y.len(), y.len() / gates.len(), addresses)
}
