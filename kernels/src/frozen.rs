//! A weight that never learns: plain `f32` or NF4. Its consumers ask for rows of `f32`, decoded once per use.

use std::borrow::Cow;
use std::sync::Arc;

use crate::nf4::Nf4Matrix;
use crate::{Error, Result};

/// A frozen matrix `[rows, columns]` (for a linear: `[out, in]`), shared and immutable.
#[derive(Debug, Clone)]
pub enum FrozenWeight {
    /// Row-major `f32`.
    Plain {
        /// Number of rows (outputs).
        rows: usize,
        /// Number of columns (inputs).
        columns: usize,
        /// `rows * columns` values.
        values: Arc<[f32]>,
    },
    /// 4-bit NormalFloat, as bitsandbytes stores it.
    Nf4(Arc<Nf4Matrix>),
}

impl FrozenWeight {
    /// A plain weight of the given shape.
    pub fn plain(values: Vec<f32>, rows: usize, columns: usize) -> Result<Self> {
        if rows.checked_mul(columns) != Some(values.len()) {
            return Err(Error::shape("frozen weight", "values", (rows, columns), values.len()));
        }
        Ok(Self::Plain { rows, columns, values: values.into() })
    }

    /// Number of rows (outputs).
    pub fn rows(&self) -> usize {
        match self {
            Self::Plain { rows, .. } => *rows,
            Self::Nf4(matrix) => matrix.rows(),
        }
    }

    /// Number of columns (inputs).
    pub fn columns(&self) -> usize {
        match self {
            Self::Plain { columns, .. } => *columns,
            Self::Nf4(matrix) => matrix.columns(),
        }
    }

    /// The values as `f32`, row-major; decoded into `scratch` when they are stored otherwise.
    pub fn decode<'a>(&'a self, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        match self {
            Self::Plain { values, .. } => values,
            Self::Nf4(matrix) => {
                scratch.resize(matrix.rows() * matrix.columns(), 0.0);
                matrix.dequantize_into(scratch);
                scratch
            }
        }
    }

    /// The values as `f32`, row-major, into a buffer of exactly `rows * columns` values.
    pub fn decode_into(&self, out: &mut [f32]) {
        match self {
            Self::Plain { values, .. } => out.copy_from_slice(values),
            Self::Nf4(matrix) => matrix.dequantize_into(out),
        }
    }

    /// The values as `f32`, owned only when they had to be decoded.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match self {
            Self::Plain { values, .. } => Cow::Borrowed(values),
            Self::Nf4(_) => {
                let mut scratch = Vec::new();
                self.decode(&mut scratch);
                Cow::Owned(scratch)
            }
        }
    }
}
