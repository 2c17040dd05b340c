//! Products of matrices in a GPU's memory, on its tensor cores: bf16 in, sums in `f32`, bf16 or `f32` out.

use half::bf16;

use super::Accumulate;
use crate::dropout::Dropout;
use crate::gpu::{Argument, Buffer, Gpu, Kernel, LibraryProduct, Shape};
use crate::{Error, Result};

const OP: &str = "product";

macro_rules! product {
    ($name:literal) => {
        Kernel::new(
            concat!("gemm_", $name),
            "const bf16*, const bf16*, i32, i32, i32, u32, u64, const bf16*, const bf16*, i32, i32, i32, i32, i32, f32, \
             const f32*, bf16*, f32*, i32, i32, i32",
        )
    };
}

const ROWS_BY_ROWS: Sizes = Sizes(product!("rows_by_rows_large"), product!("rows_by_rows_small"));
const ROWS_BY_COLUMNS: Sizes = Sizes(product!("rows_by_columns_large"), product!("rows_by_columns_small"));
const ROWS_BY_COLUMNS_DROP: Sizes =
    Sizes(product!("rows_by_columns_drop_large"), product!("rows_by_columns_drop_small"));
const COLUMNS_BY_COLUMNS: Sizes = Sizes(product!("columns_by_columns_large"), product!("columns_by_columns_small"));
const PAD: Kernel = Kernel::new("gemm_pad", "const bf16*, bf16*, u64, i32, i32, i32");

/// The same product with large and with small tiles.
struct Sizes(Kernel, Kernel);

/// What a block computes at a time: `Tile` of gemm.h.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile {
    /// Rows and columns of sums.
    pub(crate) m: usize,
    pub(crate) n: usize,
    /// Values along k of a stage, and stages.
    pub(crate) k: usize,
    pub(crate) stages: usize,
    pub(crate) threads: u32,
}

/// Those of gemm.cu.
const LARGE: Tile = Tile { m: 128, n: 128, k: 32, stages: 4, threads: 128 };
const SMALL: Tile = Tile { m: 64, n: 64, k: 64, stages: 3, threads: 128 };

/// Values that are read at once; rows begin at multiples of it.
const CHUNK: usize = 8;

/// A matrix of bf16 as it lies in memory: rows one after another.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    values: &'a Buffer<bf16>,
    rows: usize,
    columns: usize,
    stride: usize,
    /// What follows the columns, up to a multiple of 8, is there and 0.
    padded: bool,
}

/// Which sides of the two matrices are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `A Bᵀ` of `A [m, k]` and `B [n, k]`, as in `x Wᵀ`.
    RowsByRows,
    /// `A B` of `A [m, k]` and `B [k, n]`, as in `dy W`.
    RowsByColumns,
    /// `Aᵀ B` of `A [k, m]` and `B [k, n]`, as in `dyᵀ x`.
    ColumnsByColumns,
}

/// Where a product goes: `[m, n]`, rows one after another.
#[derive(Debug)]
pub enum Out<'a> {
    /// Rounded.
    Bf16(&'a mut Buffer<bf16>),
    /// As it was summed.
    F32(&'a mut Buffer<f32>),
}

/// `out = [out +] scale · (drop(A₁ B₁) + A B) [+ bias]`, in the sides of a [`Form`].
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    /// Which sides of all matrices are multiplied.
    pub form: Form,
    /// `A`.
    pub a: Matrix<'a>,
    /// `B`.
    pub b: Matrix<'a>,
    /// `A₁` and `B₁`, summed in the same go: as if they stood beside `A` and `B` along k.
    pub before: Option<(Matrix<'a>, Matrix<'a>)>,
    /// Drops values of `A₁ B₁`, without scaling what it keeps; for [`Form::RowsByColumns`] only.
    pub dropout: Option<Dropout>,
    /// Added to every row.
    pub bias: Option<&'a Buffer<f32>>,
    /// A factor of all but the bias.
    pub scale: f32,
    /// What becomes of what is there.
    pub accumulate: Accumulate,
}

// === impl Tile ===

impl Tile {
    /// Bytes of shared memory.
    pub(crate) fn shared(&self) -> usize {
        self.stages * (self.m + self.n) * self.k * size_of::<bf16>()
    }

    /// Blocks that it takes.
    pub(crate) fn blocks(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.m) * n.div_ceil(self.n)
    }

    /// How it is launched.
    pub(crate) fn shape(&self, m: usize, n: usize) -> Result<Shape> {
        Ok(Shape::of(whole(self.blocks(m, n))?.cast_unsigned(), self.threads).with_shared(self.shared()))
    }
}

// === impl Matrix ===

impl<'a> Matrix<'a> {
    /// All of a buffer.
    pub fn of(values: &'a Buffer<bf16>, rows: usize, columns: usize) -> Result<Self> {
        values.expect(OP, "matrix", rows * columns)?;
        Ok(Self { values, rows, columns, stride: columns, padded: false })
    }

    /// Rows of `columns` values and as many zeros as make them a multiple of 8.
    pub fn padded(values: &'a Buffer<bf16>, rows: usize, columns: usize) -> Result<Self> {
        let stride = columns.next_multiple_of(CHUNK);
        values.expect(OP, "padded matrix", rows * stride)?;
        Ok(Self { values, rows, columns, stride, padded: true })
    }

    /// Some columns of a wider matrix, or rows with something between them: `stride` values from one to the next.
    pub fn with_stride(values: &'a Buffer<bf16>, rows: usize, columns: usize, stride: usize) -> Result<Self> {
        let needed = if rows == 0 { 0 } else { (rows - 1) * stride + columns };
        if columns > stride || values.len() < needed {
            return Err(Error::shape(OP, "matrix with gaps", (rows, columns, stride), values.len()));
        }
        Ok(Self { values, rows, columns, stride, padded: false })
    }

    /// Where its rows are, and how many values lie between the beginnings of two.
    pub(crate) fn place(&self) -> (&'a Buffer<bf16>, usize) {
        (self.values, self.stride)
    }

    /// Whether it can be read in whole chunks.
    fn is_aligned(&self) -> bool {
        let rows = self.stride.is_multiple_of(CHUNK) && (self.padded || self.columns.is_multiple_of(CHUNK));
        rows && self.values.address().is_multiple_of(16)
    }

    /// The GPU that has it.
    pub(crate) fn gpu(&self) -> &Gpu {
        self.values.gpu()
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Its address and its stride, as kernels take them.
    pub(crate) fn arguments(&self) -> Result<[Argument; 2]> {
        Ok([self.values.into(), whole(self.stride)?.into()])
    }

    /// The same with rows that begin where chunks do: a copy if they do not yet.
    pub(crate) fn aligned(&self, copy: &'a mut Option<Buffer<bf16>>) -> Result<Matrix<'a>> {
        if self.is_aligned() {
            return Ok(*self);
        }
        let gpu = self.values.gpu();
        let stride = self.columns.next_multiple_of(CHUNK);
        let to = copy.insert(gpu.empty(self.rows * stride)?);
        let shape = Shape::of(gpu.blocks((self.rows * stride / CHUNK).div_ceil(256), 8), 256);
        let (columns, old) = (whole(self.columns)?.into(), whole(self.stride)?.into());
        let rows = (self.rows as u64).into();
        gpu.launch(&PAD, shape, [self.values.into(), to.into(), rows, columns, old, whole(stride)?.into()])?;
        let values: &'a Buffer<bf16> = to;
        Matrix::padded(values, self.rows, self.columns)
    }
}

// === impl Form ===

impl Form {
    /// m, n and k of a product of these.
    fn sizes(self, a: &Matrix<'_>, b: &Matrix<'_>) -> Result<[usize; 3]> {
        let ([m, k], [n, other]) = match self {
            Self::RowsByRows => ([a.rows, a.columns], [b.rows, b.columns]),
            Self::RowsByColumns => ([a.rows, a.columns], [b.columns, b.rows]),
            Self::ColumnsByColumns => ([a.columns, a.rows], [b.columns, b.rows]),
        };
        if k == other { Ok([m, n, k]) } else { Err(Error::shape(OP, "the side that is summed over", k, other)) }
    }
}

// === impl Out ===

impl Out<'_> {
    /// The two arguments of a kernel that it is: bf16, f32.
    pub(crate) fn arguments(self) -> [Argument; 2] {
        match self {
            Self::Bf16(out) => [out.into(), None::<&mut Buffer<f32>>.into()],
            Self::F32(out) => [None::<&mut Buffer<bf16>>.into(), out.into()],
        }
    }

    fn address(&self) -> u64 {
        match self {
            Self::Bf16(out) => out.address(),
            Self::F32(out) => out.address(),
        }
    }

    /// The same, to be used before this one.
    fn again(&mut self) -> Out<'_> {
        match self {
            Self::Bf16(out) => Out::Bf16(out),
            Self::F32(out) => Out::F32(out),
        }
    }

    /// Whether two neighbours can be written at once, in rows of `stride` values.
    pub(crate) fn together(&self, stride: usize) -> bool {
        let (address, bytes) = match self {
            Self::Bf16(out) => (out.address(), size_of::<bf16>()),
            Self::F32(out) => (out.address(), size_of::<f32>()),
        };
        stride.is_multiple_of(2) && address.is_multiple_of(2 * bytes as u64)
    }

    pub(crate) fn expect(&self, op: &'static str, count: usize) -> Result<()> {
        match self {
            Self::Bf16(out) => out.expect(op, "result", count),
            Self::F32(out) => out.expect(op, "result", count),
        }
    }
}

// === impl Product ===

impl<'a> Product<'a> {
    /// `A B` and no more.
    pub fn new(form: Form, a: Matrix<'a>, b: Matrix<'a>) -> Self {
        let accumulate = Accumulate::Overwrite;
        Self { form, a, b, before: None, dropout: None, bias: None, scale: 1.0, accumulate }
    }

    /// Computes it: by the vendor's library where there is one, else by a kernel of ours.
    pub fn run(&self, mut out: Out<'_>) -> Result<()> {
        if self.by_library(&mut out)? { Ok(()) } else { self.by_kernel(out) }
    }

    /// Computes it by a kernel of ours.
    pub fn by_kernel(&self, out: Out<'_>) -> Result<()> {
        let [m, n, _] = self.form.sizes(&self.a, &self.b)?;
        let gpu = self.a.values.gpu();
        // Large tiles do more with what they read; too few of them leave multiprocessors without work.
        let large = LARGE.blocks(m, n) >= gpu.facts().multiprocessors as usize;
        self.run_with(if large { Choice::Large } else { Choice::Small }, out)
    }

    /// Whether the vendor's library computed it: not where there is none. It knows neither bias nor dropout; what stands before is added in a second product.
    pub fn by_library(&self, out: &mut Out<'_>) -> Result<bool> {
        let sizes = self.form.sizes(&self.a, &self.b)?;
        let [m, n, k] = sizes;
        let plain = self.bias.is_none() && self.dropout.is_none_or(|dropout| dropout.threshold() == 0);
        if !plain || !self.a.is_aligned() || !self.b.is_aligned() || m * n * k == 0 {
            return Ok(false);
        }
        out.expect(OP, m * n)?;
        let product = LibraryProduct {
            columns: [self.form == Form::ColumnsByColumns, self.form != Form::RowsByRows],
            sizes,
            a: self.a.values.address(),
            b: self.b.values.address(),
            out: out.address(),
            strides: [self.a.stride, self.b.stride],
            wide: matches!(out, Out::F32(_)),
            scale: self.scale,
            add: self.accumulate == Accumulate::Add,
        };
        if !self.a.values.gpu().library_product(&product)? {
            return Ok(false);
        }
        if let Some((a, b)) = self.before {
            let before = Product { a, b, before: None, dropout: None, accumulate: Accumulate::Add, ..*self };
            before.run(out.again())?;
        }
        Ok(true)
    }

    /// Computes it with tiles of a chosen size.
    pub(crate) fn run_with(&self, tiles: Choice, out: Out<'_>) -> Result<()> {
        let [m, n, k] = self.form.sizes(&self.a, &self.b)?;
        out.expect(OP, m * n)?;
        let mut copies = [const { None }; 4];
        let [first, second, third, fourth] = &mut copies;
        let (a, b) = (self.a.aligned(first)?, self.b.aligned(second)?);
        let before = match self.before {
            None => None,
            Some((a, b)) => {
                let [rows, columns, k] = self.form.sizes(&a, &b)?;
                if [rows, columns] != [m, n] {
                    return Err(Error::shape(OP, "the product before", (m, n), (rows, columns)));
                }
                Some((a.aligned(third)?, b.aligned(fourth)?, k))
            }
        };
        let dropout = self.dropout.filter(|dropout| before.is_some() && dropout.threshold() > 0);
        let Sizes(large, small) = match (self.form, dropout) {
            (Form::RowsByRows, None) => ROWS_BY_ROWS,
            (Form::RowsByColumns, None) => ROWS_BY_COLUMNS,
            (Form::RowsByColumns, Some(_)) => ROWS_BY_COLUMNS_DROP,
            (Form::ColumnsByColumns, None) => COLUMNS_BY_COLUMNS,
            (_, Some(_)) => return Err(Error::invalid(OP, "dropout needs the form rows by columns")),
        };
        let (kernel, tile) = if tiles == Choice::Large { (large, LARGE) } else { (small, SMALL) };
        if let Some(bias) = self.bias {
            bias.expect(OP, "bias", n)?;
        }
        let together = out.together(n);
        let [narrow, wide] = out.arguments();
        let [a1, b1, k1, stride_a1, stride_b1] = pair(before)?;
        let (threshold, key) = dropout.map_or((0, 0), |dropout| (dropout.threshold(), dropout.key));
        let [a, b, k, stride_a, stride_b] = pair(Some((a, b, k)))?;
        let (rows, columns): (Argument, Argument) = (whole(m)?.into(), whole(n)?.into());
        let (add, together) = (i32::from(self.accumulate == Accumulate::Add), i32::from(together));
        let (scale, bias) = (self.scale.into(), self.bias.into());
        let arguments = [
            a1,
            b1,
            k1,
            stride_a1,
            stride_b1,
            threshold.into(),
            key.into(),
            a,
            b,
            k,
            stride_a,
            stride_b,
            rows,
            columns,
            scale,
            bias,
            narrow,
            wide,
            columns,
            add.into(),
            together.into(),
        ];
        self.a.values.gpu().launch(&kernel, tile.shape(m, n)?, arguments)
    }
}

/// A size of tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    Large,
    Small,
}

/// Two operands and their k, as kernels take them: addresses, k, strides.
pub(crate) fn pair(pair: Option<(Matrix<'_>, Matrix<'_>, usize)>) -> Result<[Argument; 5]> {
    let (a, b) = (pair.map(|(a, ..)| a), pair.map(|(_, b, _)| b));
    let stride = |matrix: Option<Matrix<'_>>| whole(matrix.map_or(0, |matrix| matrix.stride));
    Ok([
        a.map(|matrix| matrix.values).into(),
        b.map(|matrix| matrix.values).into(),
        whole(pair.map_or(0, |(.., k)| k))?.into(),
        stride(a)?.into(),
        stride(b)?.into(),
    ])
}

/// A size as kernels count it.
pub(crate) fn whole(size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| Error::invalid(OP, format!("a side of {size} is more than a kernel counts")))
}
