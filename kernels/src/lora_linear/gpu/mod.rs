//! Linear layers on a GPU: frozen weights in bf16 or NF4, with or without a low-rank update.
//!
//! ```text
//! forward    down = scale · drop(x) Aᵀ            y  = [down | x] [B | W]ᵀ + bias
//! backward   up   = scale · dy B                  dx = drop(up A) + dy W
//!            dA  += upᵀ drop(x)                   dB += dyᵀ down
//! ```
//!
//! So the update is `rank` more columns of the one large product; its factor, that of dropout's kept values included, is in
//! `down` and `up`, and masks only choose. `down` and `up` are `[rows, rank]` in bf16, rows a multiple of 8 values apart.

mod lora;

use half::bf16;

pub use lora::{GpuLora, GpuLoraGradients};

use crate::dropout::Dropout;
use crate::gemm::Accumulate;
use crate::gemm::gpu::{Form, Matrix, Out, Product, Tile, pair, whole};
use crate::gpu::{Argument, Buffer, FrozenPart, Gpu, Kernel};
use crate::nf4::{BLOCK, GpuNf4, Reading};
use crate::{FrozenWeight, Result};

const OP: &str = "linear";

macro_rules! fused {
    ($name:literal) => {
        Kernel::new(
            concat!("linear_", $name),
            "const bf16*, const bf16*, i32, i32, i32, u32, u64, const bf16*, i32, const u8*, const f32*, const u8*, \
             const f32*, const f32*, f32, i32, i32, i32, const f32*, bf16*, i32, i32",
        )
    };
}

const FORWARD: [Kernel; 2] = [fused!("forward_large"), fused!("forward_small")];
const GRADIENT: [Kernel; 2] = [fused!("gradient_large"), fused!("gradient_small")];
const GRADIENT_DROP: [Kernel; 2] = [fused!("gradient_drop_large"), fused!("gradient_drop_small")];

/// Those of linear.cu.
const TILES: [Tile; 2] =
    [Tile { m: 128, n: 128, k: 64, stages: 2, threads: 128 }, Tile { m: 64, n: 64, k: 64, stages: 3, threads: 128 }];

/// From a capability on: up to so many rows weights are decoded inside of the product, and with more once before it.
///
/// Computed, not measured: a copy costs 4.5 bytes a weight; decoding inside costs instructions beside those of tensor cores, a
/// fifth of the product on an A100 (250 TFLOP/s, 1.6 TB/s: even at 1750 rows) and half of it where these are twice as fast
/// (600 TFLOP/s, 4.2 TB/s: at 640).
const FUSED_ROWS: [(u32, usize); 2] = [(9, 640), (0, 1750)];

/// A weight that never learns, `[out, in]`.
#[derive(Debug)]
pub enum GpuWeight {
    /// As it is.
    Bf16 {
        /// Number of rows (outputs).
        rows: usize,
        /// Number of columns (inputs).
        columns: usize,
        /// Row by row.
        values: Buffer<bf16>,
    },
    /// In 4 bits.
    Nf4(GpuNf4),
}

/// The part of a linear layer that never learns.
#[derive(Debug)]
pub struct GpuLinear {
    /// `[out, in]`.
    pub weight: GpuWeight,
    /// `[out]`.
    pub bias: Option<Buffer<f32>>,
}

/// What the low-rank update adds to a product: operands as in [`Product::before`].
struct Update<'a> {
    operands: (Matrix<'a>, Matrix<'a>),
    rank: usize,
    dropout: Option<Dropout>,
}

// === impl GpuLinear ===

impl GpuLinear {
    /// Everything that it knows.
    pub fn frozen(&self) -> Vec<FrozenPart> {
        let bias = self.bias.iter().map(|bias| FrozenPart::of("bias", bias));
        self.weight.frozen().into_iter().chain(bias).collect()
    }
}

// === impl GpuWeight ===

impl GpuWeight {
    /// The weight, copied to a GPU: plain values rounded to bf16.
    pub fn of(gpu: &Gpu, weight: &FrozenWeight) -> Result<Self> {
        match weight {
            FrozenWeight::Plain { rows, columns, values } => {
                let values: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
                Self::bf16(gpu.of(&values)?, *rows, *columns)
            }
            FrozenWeight::Nf4(matrix) => Ok(Self::Nf4(GpuNf4::of(gpu, matrix)?)),
        }
    }

    /// A weight in bf16.
    pub fn bf16(values: Buffer<bf16>, rows: usize, columns: usize) -> Result<Self> {
        values.expect(OP, "weight", rows * columns)?;
        Ok(Self::Bf16 { rows, columns, values })
    }

    /// Everything that its values follow from.
    pub fn frozen(&self) -> Vec<FrozenPart> {
        match self {
            Self::Bf16 { values, .. } => vec![FrozenPart::of("values", values)],
            Self::Nf4(matrix) => matrix.frozen(),
        }
    }

    /// Number of rows (outputs).
    pub fn rows(&self) -> usize {
        match self {
            Self::Bf16 { rows, .. } => *rows,
            Self::Nf4(matrix) => matrix.rows(),
        }
    }

    /// Number of columns (inputs).
    pub fn columns(&self) -> usize {
        match self {
            Self::Bf16 { columns, .. } => *columns,
            Self::Nf4(matrix) => matrix.columns(),
        }
    }

    /// How it is read for so many rows of activations.
    pub(crate) fn reading(&self, rows: usize) -> Reading {
        match self {
            Self::Nf4(matrix) if matrix.columns().is_multiple_of(BLOCK) => {
                let (major, _) = matrix.packed().gpu().facts().capability;
                let most = FUSED_ROWS.iter().find(|(from, _)| major >= *from).map_or(0, |(_, rows)| *rows);
                if rows <= most { Reading::Fused } else { Reading::Copied }
            }
            _ => Reading::Copied,
        }
    }

    /// `out = [out +] update + x Wᵀ + bias` or `[out +] update + x W`, as the form says.
    fn multiply(
        &self,
        form: Form,
        x: Matrix<'_>,
        update: Option<Update<'_>>,
        bias: Option<&Buffer<f32>>,
        (out, accumulate): (Out<'_>, Accumulate),
        reading: Reading,
    ) -> Result<()> {
        let decoded;
        let (values, out) = match (self, reading, out) {
            (Self::Bf16 { values, .. }, _, out) => (values, out),
            (Self::Nf4(matrix), Reading::Fused, Out::Bf16(out)) if matrix.columns().is_multiple_of(BLOCK) => {
                return fused(form, x, matrix, update, bias, (out, accumulate));
            }
            (Self::Nf4(matrix), _, out) => {
                let mut copy = x.gpu().empty(matrix.rows() * matrix.columns())?;
                matrix.decode(&mut copy)?;
                decoded = copy;
                (&decoded, out)
            }
        };
        let mut product = Product::new(form, x, Matrix::of(values, self.rows(), self.columns())?);
        if let Some(update) = update {
            product.before = Some(update.operands);
            product.dropout = update.dropout;
        }
        Product { bias, accumulate, ..product }.run(out)
    }
}

/// The product with a weight that is decoded inside of it.
fn fused(
    form: Form,
    x: Matrix<'_>,
    weight: &GpuNf4,
    update: Option<Update<'_>>,
    bias: Option<&Buffer<f32>>,
    (out, accumulate): (&mut Buffer<bf16>, Accumulate),
) -> Result<()> {
    let (outputs, inputs) = (weight.rows(), weight.columns());
    let (m, n, k) = if form == Form::RowsByRows { (x.rows(), outputs, inputs) } else { (x.rows(), inputs, outputs) };
    let mut copies = [const { None }; 3];
    let [first, second, third] = &mut copies;
    let [x, stride] = x.aligned(first)?.arguments()?;
    let dropout = update.as_ref().and_then(|update| update.dropout).filter(|dropout| dropout.threshold() > 0);
    let kernels = match (form, dropout) {
        (Form::RowsByRows, _) => FORWARD,
        (_, None) => GRADIENT,
        (_, Some(_)) => GRADIENT_DROP,
    };
    let before = match update {
        None => None,
        Some(Update { operands: (a, b), rank, .. }) => Some((a.aligned(second)?, b.aligned(third)?, rank)),
    };
    let [a1, b1, k1, stride_a1, stride_b1] = pair(before)?;
    let gpu = out.gpu().clone();
    // As for products: large tiles where they leave no multiprocessor without work.
    let size = usize::from(TILES[0].blocks(m, n) < gpu.facts().multiprocessors as usize);
    let (threshold, key) = dropout.map_or((0, 0), |dropout| (dropout.threshold(), dropout.key));
    let [packed, absmax, codes, nested, map, offset] = weight.arguments();
    let together = i32::from(Out::Bf16(&mut *out).together(n)).into();
    let add = i32::from(accumulate == Accumulate::Add).into();
    let [rows, columns, depth]: [Argument; 3] = [whole(m)?.into(), whole(n)?.into(), whole(k)?.into()];
    let arguments = [
        a1,
        b1,
        k1,
        stride_a1,
        stride_b1,
        threshold.into(),
        key.into(),
        x,
        stride,
        packed,
        absmax,
        codes,
        nested,
        map,
        offset,
        rows,
        columns,
        depth,
        bias.into(),
        out.into(),
        add,
        together,
    ];
    gpu.launch(&kernels[size], TILES[size].shape(m, n)?, arguments)
}

// === impl GpuLinear ===

impl GpuLinear {
    /// `y = x Wᵀ + bias [+ scale · drop(x) Aᵀ Bᵀ]` for `x [rows, in]`. With an update it gives `down`, which the backward pass
    /// takes.
    pub fn forward(
        &self,
        x: &Buffer<bf16>,
        rows: usize,
        lora: Option<&GpuLora>,
        y: &mut Buffer<bf16>,
    ) -> Result<Option<Buffer<bf16>>> {
        self.forward_by(self.weight.reading(rows), x, rows, lora, Out::Bf16(y))
    }

    /// [`GpuLinear::forward`] without rounding the result: for routers, whose choices hang on small differences.
    pub fn forward_wide(
        &self,
        x: &Buffer<bf16>,
        rows: usize,
        lora: Option<&GpuLora>,
        y: &mut Buffer<f32>,
    ) -> Result<Option<Buffer<bf16>>> {
        self.forward_by(self.weight.reading(rows), x, rows, lora, Out::F32(y))
    }

    /// [`GpuLinear::forward`], the weight read in a chosen way. Only rows of whole blocks can be decoded inside
    /// of the product.
    pub fn forward_by(
        &self,
        reading: Reading,
        x: &Buffer<bf16>,
        rows: usize,
        lora: Option<&GpuLora>,
        y: Out<'_>,
    ) -> Result<Option<Buffer<bf16>>> {
        let (inputs, outputs) = (self.weight.columns(), self.weight.rows());
        y.expect(OP, rows * outputs)?;
        if let Some(bias) = &self.bias {
            bias.expect(OP, "bias", outputs)?;
        }
        let x = Matrix::of(x, rows, inputs)?;
        let down = lora.map(|lora| lora.down(x)).transpose()?;
        let update = match (lora, &down) {
            (Some(lora), Some(down)) => Some(lora.update(down, rows, lora.b(outputs)?, None)?),
            _ => None,
        };
        let out = (y, Accumulate::Overwrite);
        self.weight.multiply(Form::RowsByRows, x, update, self.bias.as_ref(), out, reading)?;
        Ok(down)
    }

    /// The gradient of `x`, written or added, for that of `y`; and those of a low-rank update, added.
    pub fn backward(
        &self,
        x: &Buffer<bf16>,
        dy: &Buffer<bf16>,
        rows: usize,
        lora: Option<(&GpuLora, &Buffer<bf16>, &mut GpuLoraGradients)>,
        dx: Option<(&mut Buffer<bf16>, Accumulate)>,
    ) -> Result<()> {
        self.backward_by(self.weight.reading(rows), x, dy, rows, lora, dx)
    }

    /// [`GpuLinear::backward`], the weight read as in [`GpuLinear::forward_by`].
    pub fn backward_by(
        &self,
        reading: Reading,
        x: &Buffer<bf16>,
        dy: &Buffer<bf16>,
        rows: usize,
        lora: Option<(&GpuLora, &Buffer<bf16>, &mut GpuLoraGradients)>,
        dx: Option<(&mut Buffer<bf16>, Accumulate)>,
    ) -> Result<()> {
        let (inputs, outputs) = (self.weight.columns(), self.weight.rows());
        let dy = Matrix::of(dy, rows, outputs)?;
        let mut up = None;
        if let Some((lora, down, gradients)) = lora {
            let values = up.insert((lora, lora.up(dy)?));
            lora.gradients(Matrix::of(x, rows, inputs)?, dy, down, &values.1, gradients)?;
        }
        let Some((dx, accumulate)) = dx else {
            return Ok(());
        };
        dx.expect(OP, "gradient of x", rows * inputs)?;
        let update = match &up {
            Some((lora, up)) => Some(lora.update(up, rows, lora.a(inputs)?, lora.dropout)?),
            None => None,
        };
        self.weight.multiply(Form::RowsByColumns, dy, update, None, (Out::Bf16(dx), accumulate), reading)
    }
}
