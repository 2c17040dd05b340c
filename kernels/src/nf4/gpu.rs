//! NF4 weights in a GPU's memory.

use half::bf16;

use super::{BLOCK, NESTED_BLOCK, Nf4Matrix, OP, Scales, count, dynamic_map};
use crate::Result;
use crate::dropout::splitmix;
use crate::gpu::{Argument, Buffer, FrozenPart, Gpu, Kernel, Shape};
use crate::noise::random_bytes;

const DECODE: Kernel = Kernel::new("nf4_decode", "const u8*, const f32*, bf16*, u64");
const DECODE_DOUBLE: Kernel =
    Kernel::new("nf4_decode_double", "const u8*, const u8*, const f32*, const f32*, f32, bf16*, u64");

/// Threads of a block, and blocks of a multiprocessor.
const THREADS: u32 = 256;
const BLOCKS: u32 = 8;
/// Values that a thread decodes at a time.
const VALUES: usize = 32;

/// A matrix in NF4 in a GPU's memory.
#[derive(Debug)]
pub struct GpuNf4 {
    rows: usize,
    columns: usize,
    packed: Buffer<u8>,
    scales: GpuScales,
}

/// The absmax of every block, as they are stored.
#[derive(Debug)]
pub enum GpuScales {
    /// One `f32` a block.
    Plain(Buffer<f32>),
    /// Double quantisation.
    Double {
        /// One index into `map` a block.
        codes: Buffer<u8>,
        /// One scale for each [`NESTED_BLOCK`] codes.
        nested: Buffer<f32>,
        /// [`dynamic_map()`].
        map: Buffer<f32>,
        /// Added to every decoded scale.
        offset: f32,
    },
}

/// How products read weights in NF4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Decoded into memory, then multiplied.
    Copied,
    /// Decoded inside of the product.
    Fused,
}

/// Doubly quantised scales of many matrices, as numbers for measuring are given them.
pub(crate) struct RandomScales {
    pub(crate) codes: Buffer<u8>,
    pub(crate) nested: Buffer<f32>,
    pub(crate) offset: f32,
}

/// Scales between a half and all of `limit`, of so many matrices of so many blocks.
pub(crate) fn random_scales(gpu: &Gpu, blocks: usize, matrices: usize, limit: f32, key: u64) -> Result<RandomScales> {
    // The map goes from -1 to 1, so that the codes of all bytes are a quarter of the limit around the offset.
    let nested = vec![0.25 * limit; matrices * blocks.div_ceil(NESTED_BLOCK)];
    let codes = random_bytes(gpu, matrices * blocks, 0..=u8::MAX, splitmix(key))?;
    Ok(RandomScales { codes, nested: gpu.of(&nested)?, offset: 0.75 * limit })
}

// === impl GpuNf4 ===

impl GpuNf4 {
    /// The matrix, copied to a GPU.
    pub fn of(gpu: &Gpu, matrix: &Nf4Matrix) -> Result<Self> {
        let scales = match matrix.scales() {
            Scales::Plain(absmax) => GpuScales::Plain(gpu.of(absmax)?),
            Scales::Double { codes, nested, offset } => GpuScales::Double {
                codes: gpu.of(codes)?,
                nested: gpu.of(nested)?,
                map: gpu.of(dynamic_map())?,
                offset: *offset,
            },
        };
        Ok(Self { rows: matrix.rows(), columns: matrix.columns(), packed: gpu.of(matrix.packed())?, scales })
    }

    /// Numbers of both signs, `limit` or less, made on the GPU: for measuring, where values do not matter.
    pub fn random(gpu: &Gpu, rows: usize, columns: usize, double: bool, limit: f32, key: u64) -> Result<Self> {
        let blocks = count(rows, columns)?.div_ceil(BLOCK);
        let packed = random_bytes(gpu, (rows * columns).div_ceil(2), 0..=u8::MAX, key)?;
        let scales = if double {
            let scales = random_scales(gpu, blocks, 1, limit, key)?;
            GpuScales::Double {
                codes: scales.codes,
                nested: scales.nested,
                map: gpu.of(dynamic_map())?,
                offset: scales.offset,
            }
        } else {
            GpuScales::Plain(gpu.of(&vec![limit; blocks])?)
        };
        Ok(Self { rows, columns, packed, scales })
    }

    pub(super) fn from_parts(rows: usize, columns: usize, packed: Buffer<u8>, scales: GpuScales) -> Self {
        Self { rows, columns, packed, scales }
    }

    pub(crate) fn parts(&self) -> (&Buffer<u8>, &GpuScales) {
        (&self.packed, &self.scales)
    }

    /// Everything that its values follow from.
    pub fn frozen(&self) -> Vec<FrozenPart> {
        let packed = FrozenPart::of("packed", &self.packed);
        match &self.scales {
            GpuScales::Plain(absmax) => vec![packed, FrozenPart::of("absmax", absmax)],
            GpuScales::Double { codes, nested, map, offset } => vec![
                packed,
                FrozenPart::of("codes", codes),
                FrozenPart::of("nested", nested),
                FrozenPart::of("map", map),
                FrozenPart::Number("offset", *offset),
            ],
        }
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
    pub fn packed(&self) -> &Buffer<u8> {
        &self.packed
    }

    /// The scales as they are stored.
    pub fn scales(&self) -> &GpuScales {
        &self.scales
    }

    /// Its parts, as `nf4::Stored` of a kernel takes them: codes, absmax; codes, nested, map and offset of double
    /// quantisation.
    pub(crate) fn arguments(&self) -> [Argument; 6] {
        let packed = (&self.packed).into();
        match &self.scales {
            GpuScales::Plain(absmax) => {
                let none = None::<&Buffer<f32>>.into();
                [packed, absmax.into(), None::<&Buffer<u8>>.into(), none, none, 0.0.into()]
            }
            GpuScales::Double { codes, nested, map, offset } => {
                let none = None::<&Buffer<f32>>.into();
                [packed, none, codes.into(), nested.into(), map.into(), (*offset).into()]
            }
        }
    }

    /// All values, row by row, each rounded to bf16.
    pub fn decode(&self, out: &mut Buffer<bf16>) -> Result<()> {
        let count = self.rows * self.columns;
        out.expect(OP, "decoded values", count)?;
        let gpu = self.packed.gpu();
        let groups = count.div_ceil(VALUES).div_ceil(THREADS as usize);
        let shape = Shape::of(gpu.blocks(groups, BLOCKS), THREADS);
        let (packed, number) = ((&self.packed).into(), (count as u64).into());
        match &self.scales {
            GpuScales::Plain(absmax) => gpu.launch(&DECODE, shape, [packed, absmax.into(), out.into(), number]),
            GpuScales::Double { codes, nested, map, offset } => {
                nested.expect(OP, "nested absmax", codes.len().div_ceil(NESTED_BLOCK))?;
                let (codes, nested, map) = (codes.into(), nested.into(), map.into());
                gpu.launch(&DECODE_DOUBLE, shape, [packed, codes, nested, map, (*offset).into(), out.into(), number])
            }
        }
    }
}
