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

/// A part of a frozen weight as it lies in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stored<'a> {
    /// Values, or scales of values.
    Floats(&'a [f32]),
    /// Codes.
    Bytes(&'a [u8]),
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

    /// Everything the values follow from besides the shape, part by part, each with its name.
    pub fn stored(&self) -> Vec<(&'static str, Stored<'_>)> {
        match self {
            Self::Plain { values, .. } => vec![("values", Stored::Floats(values))],
            Self::Nf4(matrix) => matrix.stored(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nf4::Scales;

    /// Bits of all parts, each after its name.
    fn bits(weight: &FrozenWeight) -> Vec<(&'static str, Vec<u32>)> {
        let bits = |stored: Stored| match stored {
            Stored::Floats(values) => values.iter().map(|value| value.to_bits()).collect(),
            Stored::Bytes(bytes) => bytes.iter().map(|byte| u32::from(*byte)).collect(),
        };
        weight.stored().into_iter().map(|(name, stored)| (name, bits(stored))).collect()
    }

    #[test]
    fn every_part_of_a_weight_is_among_the_stored_ones() {
        let plain = |last: f32| FrozenWeight::plain(vec![1.0, last], 1, 2).unwrap();
        assert_ne!(bits(&plain(2.0)), bits(&plain(2.5)));
        let nf4 = |packed: Vec<u8>, scales: Scales| {
            FrozenWeight::Nf4(Nf4Matrix::from_parts(1, 4, packed, scales).unwrap().into())
        };
        let simple = |packed: [u8; 2], absmax: f32| nf4(packed.into(), Scales::Plain(vec![absmax]));
        let double = |code: u8, nested: f32, offset: f32| {
            nf4(vec![1, 2], Scales::Double { codes: vec![code], nested: vec![nested], offset })
        };
        let weights = [
            simple([1, 2], 1.0),
            simple([1, 3], 1.0),
            simple([1, 2], 1.5),
            double(3, 1.0, 0.5),
            double(4, 1.0, 0.5),
            double(3, 1.5, 0.5),
            double(3, 1.0, 0.25),
        ];
        for (index, weight) in weights.iter().enumerate() {
            assert!(weights[..index].iter().all(|other| bits(other) != bits(weight)), "{index}");
        }
    }
}
