//! NF4: weights in 4 bits, byte for byte as bitsandbytes stores them.
//!
//! The row-major values are cut into blocks of 64 (blocks may cross rows, the last one may be shorter). A block keeps
//! `absmax = max|x|` and, for every value, the index of a codebook entry; two indices share a byte, the first value in
//! the high half; an odd tail is padded with index 7, the code of 0.
//!
//! ```text
//! s     = x · (1 / max(absmax, 1e-38))     (a shorter last block divides instead)
//! index = number of midpoints (code[i] + code[i+1]) / 2 below s          (so a tie goes to the lower index)
//! x'    = code[index] · absmax
//! ```
//!
//! Double quantisation stores the absmax values themselves in 8 bits, in nested blocks of 256, around their mean:
//!
//! ```text
//! offset = mean(absmax)                                       (in PyTorch's order of additions)
//! nested = max|absmax - offset| of 256 blocks
//! code8  = nearest entry of the signed dynamic map to (absmax - offset) · (1 / nested)   (a tie: the lower entry;
//!          nested = 0: entry 0)
//! absmax' = map[code8] · nested + offset                      (two roundings)
//! ```

mod bitsandbytes;
mod cpu;
mod dynamic_map;
mod gpu;
mod gpu_quantize;
mod mean;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub(crate) use dynamic_map::DynamicMap;
pub use gpu::{GpuNf4, GpuScales, Reading};
pub(crate) use gpu::{RandomScales, random_scales};
pub use gpu_quantize::GpuValues;
pub(crate) use gpu_quantize::mean_of;
pub(crate) use mean::mean;

use crate::{Error, Result, Stored};

/// The 16 values of the data type: quantiles of a normal distribution, scaled to -1..=1 and with an exact 0.
pub const CODEBOOK: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Values that share one absmax.
pub const BLOCK: usize = 64;

/// Absmax values that share one nested scale.
pub const NESTED_BLOCK: usize = 256;

/// The smallest absmax that is divided by; blocks below it (above all zero blocks) are scaled as if they had it.
const SMALLEST_ABSMAX: f32 = 1e-38;

/// The midpoints between neighbouring codes.
const THRESHOLDS: [f32; 15] = {
    let mut thresholds = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        thresholds[i] = (CODEBOOK[i] + CODEBOOK[i + 1]) / 2.0;
        i += 1;
    }
    thresholds
};

const OP: &str = "nf4";

/// The signed dynamic map: the 256 sorted values that the 8-bit codes of double quantisation stand for.
pub fn dynamic_map() -> &'static [f32; 256] {
    DynamicMap::signed().codes()
}

/// The absmax of every block, as they are stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    /// One `f32` a block.
    Plain(Vec<f32>),
    /// Double quantisation.
    Double {
        /// One index into [`dynamic_map()`] a block.
        codes: Vec<u8>,
        /// One scale for each [`NESTED_BLOCK`] codes.
        nested: Vec<f32>,
        /// Added to every decoded scale.
        offset: f32,
    },
}

/// A matrix in NF4.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4Matrix {
    rows: usize,
    columns: usize,
    packed: Vec<u8>,
    scales: Scales,
}

impl Nf4Matrix {
    /// Quantises a row-major matrix, with or without double quantisation. Values must be finite.
    pub fn quantize(values: &[f32], rows: usize, columns: usize, double_quant: bool) -> Result<Self> {
        let scales = |absmax: Vec<f32>| {
            if double_quant { double(&absmax, nearest_code) } else { Ok(Scales::Plain(absmax)) }
        };
        Self::quantize_with(values, rows, columns, scales)
    }

    fn quantize_with(
        values: &[f32],
        rows: usize,
        columns: usize,
        scales: impl FnOnce(Vec<f32>) -> Result<Scales>,
    ) -> Result<Self> {
        let count = count(rows, columns)?;
        if values.len() != count {
            return Err(Error::shape(OP, "values", (rows, columns), values.len()));
        }
        let (packed, absmax) = cpu::quantize(values).map_err(|index| {
            let (row, column, value) = (index / columns, index % columns, values[index]);
            Error::invalid(OP, format!("row {row}, column {column} is {value}: only finite weights can be quantised"))
        })?;
        Ok(Self { rows, columns, packed, scales: scales(absmax)? })
    }

    /// A matrix from its stored parts. Every length is checked, and that the scales are finite.
    pub fn from_parts(rows: usize, columns: usize, packed: Vec<u8>, scales: Scales) -> Result<Self> {
        let count = count(rows, columns)?;
        let blocks = count.div_ceil(BLOCK);
        check_length("packed bytes", count.div_ceil(2), packed.len())?;
        match &scales {
            Scales::Plain(absmax) => {
                check_length("absmax", blocks, absmax.len())?;
                check_finite("absmax", absmax)?;
            }
            Scales::Double { codes, nested, offset } => {
                check_length("absmax codes", blocks, codes.len())?;
                check_length("nested absmax", blocks.div_ceil(NESTED_BLOCK), nested.len())?;
                check_finite("nested absmax", nested)?;
                check_finite("nested offset", &[*offset])?;
            }
        }
        Ok(Self { rows, columns, packed, scales })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The codes, two a byte.
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// The scales as they are stored.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Everything the values follow from besides the shape, each with its name.
    pub(crate) fn stored(&self) -> Vec<(&'static str, Stored<'_>)> {
        let mut parts = vec![("codes", Stored::Bytes(&self.packed))];
        match &self.scales {
            Scales::Plain(absmax) => parts.push(("absmax", Stored::Floats(absmax))),
            Scales::Double { codes, nested, offset } => parts.extend([
                ("absmax codes", Stored::Bytes(codes)),
                ("nested absmax", Stored::Floats(nested)),
                ("nested offset", Stored::Floats(std::slice::from_ref(offset))),
            ]),
        }
        parts
    }

    /// The absmax of every block, decoded.
    pub fn absmax(&self) -> Vec<f32> {
        match &self.scales {
            Scales::Plain(absmax) => absmax.clone(),
            Scales::Double { codes, nested, offset } => {
                let map = dynamic_map();
                (0..codes.len()).map(|block| decode_absmax(map, codes, nested, *offset, block)).collect()
            }
        }
    }

    /// Decodes the whole matrix, on the calling thread.
    ///
    /// # Panics
    /// When `out` does not hold exactly `rows · columns` values.
    pub fn dequantize_into(&self, out: &mut [f32]) {
        self.dequantize_rows_into(0..self.rows, out);
    }

    /// Decodes some rows, on the calling thread.
    ///
    /// # Panics
    /// When the rows do not exist or `out` does not hold exactly their values.
    pub fn dequantize_rows_into(&self, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of a matrix of {} rows", self.rows);
        assert_eq!(out.len(), rows.len() * self.columns, "output of rows {rows:?} by {} columns", self.columns);
        let start = rows.start * self.columns;
        match &self.scales {
            Scales::Plain(absmax) => cpu::dequantize(&self.packed, |block| absmax[block], start, out),
            Scales::Double { codes, nested, offset } => {
                let map = dynamic_map();
                let absmax = |block| decode_absmax(map, codes, nested, *offset, block);
                cpu::dequantize(&self.packed, absmax, start, out);
            }
        }
    }

    /// The decoded matrix.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.columns];
        self.dequantize_into(&mut values);
        values
    }
}

#[inline(always)]
fn decode_absmax(map: &[f32; 256], codes: &[u8], nested: &[f32], offset: f32, block: usize) -> f32 {
    map[usize::from(codes[block])] * nested[block / NESTED_BLOCK] + offset
}

/// Quantises the scales themselves; `code` is given a centred scale and the greatest magnitude of its nested block.
fn double(absmax: &[f32], code: impl Fn(f32, f32) -> u8) -> Result<Scales> {
    let offset = mean(absmax);
    check_finite("mean of the absmax", &[offset])?;
    let centred: Vec<f32> = absmax.iter().map(|value| value - offset).collect();
    let mut codes = Vec::with_capacity(centred.len());
    let mut nested = Vec::with_capacity(centred.len().div_ceil(NESTED_BLOCK));
    for block in centred.chunks(NESTED_BLOCK) {
        let scale = block.iter().fold(0.0f32, |greatest, value| greatest.max(value.abs()));
        nested.push(scale);
        codes.extend(block.iter().map(|&value| if scale == 0.0 { 0 } else { code(value, scale) }));
    }
    Ok(Scales::Double { codes, nested, offset })
}

fn nearest_code(value: f32, scale: f32) -> u8 {
    DynamicMap::signed().nearest(nested_value(value, scale))
}

/// `value / scale` by the reciprocal, as bitsandbytes does; where a tiny scale has no finite one, by division.
fn nested_value(value: f32, scale: f32) -> f32 {
    let reciprocal = 1.0 / scale;
    (if reciprocal.is_finite() { value * reciprocal } else { value / scale }).clamp(-1.0, 1.0)
}

/// Number of values of a matrix that can be addressed and is not empty.
fn count(rows: usize, columns: usize) -> Result<usize> {
    match rows.checked_mul(columns) {
        Some(count) if count > 0 && count <= isize::MAX as usize / size_of::<f32>() => Ok(count),
        _ => {
            Err(Error::shape(OP, "matrix", "at least one value, and no more than memory can address", (rows, columns)))
        }
    }
}

fn check_length(what: &'static str, expected: usize, found: usize) -> Result<()> {
    if expected == found { Ok(()) } else { Err(Error::shape(OP, what, expected, found)) }
}

fn check_finite(what: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::invalid(OP, format!("{what} {index} is {}: it must be finite", values[index]))),
    }
}
