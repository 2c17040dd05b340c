//! Ops on two arguments that meet value by value: what `cuda/pairs.h` expects of a launch.

use half::bf16;

use super::rows::{WIDE, address, count, wide};
use super::{Buffer, Kernel, Shape};
use crate::{Error, Result};

/// Threads of a block, and pieces that a thread has at once.
const THREADS: u32 = 256;
const PIECES: u32 = 4;

/// An op: its name in errors, and its kernels for what begins at multiples of 16 bytes and for anything.
pub(crate) struct Pairs {
    pub(crate) op: &'static str,
    pub(crate) forward: [Kernel; 2],
    pub(crate) backward: [Kernel; 2],
}

/// Rows of `width` values each; `a` and `b` say how far it is from one row of an argument to its next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) a: usize,
    pub(crate) b: usize,
}

/// The declaration of a forward kernel.
pub(crate) const fn forward(name: &'static str) -> Kernel {
    Kernel::new(name, "const bf16*, const bf16*, bf16*, i32, i32, i32, i32")
}

/// The declaration of a backward kernel.
pub(crate) const fn backward(name: &'static str) -> Kernel {
    Kernel::new(name, "const bf16*, const bf16*, const bf16*, bf16*, bf16*, i32, i32, i32, i32")
}

// === impl Layout ===

impl Layout {
    /// Without gaps.
    pub(crate) fn dense(values: usize) -> Self {
        Self { rows: 1, width: values, a: values, b: values }
    }

    /// Values of an argument from its first to its last.
    fn span(&self, stride: usize) -> usize {
        if self.rows == 0 { 0 } else { (self.rows - 1) * stride + self.width }
    }
}

// === impl Pairs ===

impl Pairs {
    /// `y = f(a, b)`, `y` without gaps.
    pub(crate) fn forward(
        &self,
        layout: Layout,
        a: &Buffer<bf16>,
        b: &Buffer<bf16>,
        y: &mut Buffer<bf16>,
    ) -> Result<()> {
        self.expect(layout, a, b)?;
        y.expect(self.op, "result", layout.rows * layout.width)?;
        let wide = wide(&[layout.width, layout.a, layout.b], &[address(a), address(b), address(&*y)]);
        let [pieces, a_stride, b_stride, of_row] = self.sizes(layout, wide)?;
        let arguments = [a.into(), b.into(), y.into(), pieces.into(), a_stride.into(), b_stride.into(), of_row.into()];
        a.gpu().launch(&self.forward[usize::from(!wide)], shape(pieces), arguments)
    }

    /// The gradients of both arguments, each with the distances of its argument.
    pub(crate) fn backward(
        &self,
        layout: Layout,
        a: &Buffer<bf16>,
        b: &Buffer<bf16>,
        dy: &Buffer<bf16>,
        da: &mut Buffer<bf16>,
        db: &mut Buffer<bf16>,
    ) -> Result<()> {
        self.expect(layout, a, b)?;
        self.expect(layout, da, db)?;
        dy.expect(self.op, "gradient of the result", layout.rows * layout.width)?;
        let addresses = [address(a), address(b), address(dy), address(&*da), address(&*db)];
        let wide = wide(&[layout.width, layout.a, layout.b], &addresses);
        let [pieces, a_stride, b_stride, of_row] = self.sizes(layout, wide)?;
        let (gradients, strides) = ([da.into(), db.into()], [a_stride.into(), b_stride.into()]);
        let ([da, db], [first, second]) = (gradients, strides);
        let arguments = [a.into(), b.into(), dy.into(), da, db, pieces.into(), first, second, of_row.into()];
        a.gpu().launch(&self.backward[usize::from(!wide)], shape(pieces), arguments)
    }

    fn expect(&self, layout: Layout, a: &Buffer<bf16>, b: &Buffer<bf16>) -> Result<()> {
        if layout.width == 0 {
            return Err(Error::invalid(self.op, "rows must not be empty"));
        }
        a.expect(self.op, "first argument", layout.span(layout.a))?;
        b.expect(self.op, "second argument", layout.span(layout.b))
    }

    fn sizes(&self, layout: Layout, wide: bool) -> Result<[i32; 4]> {
        let piece = if wide { WIDE } else { 1 };
        let pieces = count(self.op, "values", layout.rows * layout.width / piece)?;
        let of_row = count(self.op, "values of a row", layout.width / piece)?;
        Ok([pieces, count(self.op, "distance", layout.a)?, count(self.op, "distance", layout.b)?, of_row])
    }
}

fn shape(pieces: i32) -> Shape {
    Shape::of(pieces.unsigned_abs().div_ceil(THREADS * PIECES), THREADS)
}
