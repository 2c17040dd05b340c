//! The low-rank side of a linear layer.

use half::bf16;

use super::{OP, Update};
use crate::dropout::Dropout;
use crate::gemm::gpu::{Matrix, Tile, whole};
use crate::gpu::{Argument, Buffer, Kernel, Shape};
use crate::{Error, Result};

macro_rules! down {
    ($name:literal) => {
        Kernel::new(
            concat!("lora_", $name),
            "const bf16*, i32, const bf16*, i32, i32, i32, i32, f32, u32, u64, bf16*, i32",
        )
    };
}

macro_rules! gradient {
    ($name:literal) => {
        Kernel::new(
            concat!("lora_gradient_", $name),
            "const bf16*, const bf16*, i32, i32, const bf16*, const bf16*, i32, i32, f32*, f32*, i32, i32, i32, i32, u32, \
             u64",
        )
    };
}

/// Each for ranks up to 16, up to 32, and for 64 at a time.
const DOWN: [Kernel; 3] = [down!("down_16"), down!("down_32"), down!("down_64")];
const DOWN_DROP: [Kernel; 3] = [down!("down_drop_16"), down!("down_drop_32"), down!("down_drop_64")];
const UP: [Kernel; 3] = [down!("up_16"), down!("up_32"), down!("up_64")];
const GRADIENT: [Kernel; 3] = [gradient!("16"), gradient!("32"), gradient!("64")];
const GRADIENT_DROP: [Kernel; 3] = [gradient!("drop_16"), gradient!("drop_32"), gradient!("drop_64")];
const ADD: Kernel = Kernel::new("lora_add", "const f32*, const f32*, i32, i32, i32, i32, f32*, f32*");

/// `Down` and `Gradient` of lora.cu.
const DOWN_TILES: [Tile; 3] = [down_tile(16, 4), down_tile(32, 4), down_tile(64, 3)];
const GRADIENT_TILES: [Tile; 3] = [gradient_tile(16, 4), gradient_tile(32, 4), gradient_tile(64, 3)];

const fn down_tile(rank: usize, stages: usize) -> Tile {
    Tile { m: 32, n: rank, k: 128, stages, threads: 128 }
}

const fn gradient_tile(rank: usize, stages: usize) -> Tile {
    Tile { m: rank, n: 128, k: 64, stages, threads: 128 }
}

/// Rows whose gradients a block sums, and into how many sums the rows are cut at most: enough to keep a GPU busy (2048
/// columns are 16 blocks a share), few enough that adding them is nothing.
const SHARE_ROWS: usize = 256;
const SHARES: usize = 32;

/// The largest rank.
const RANKS: usize = 256;

/// A low-rank update of a linear layer: `scale · drop(x) Aᵀ Bᵀ`.
#[derive(Debug)]
pub struct GpuLora {
    /// `A [rank, in]`.
    pub a: Buffer<bf16>,
    /// `B [out, rank]`.
    pub b: Buffer<bf16>,
    /// Rows of `A`, 1 to 256.
    pub rank: usize,
    /// Factor of the update.
    pub scale: f32,
    /// Dropout on the update's input.
    pub dropout: Option<Dropout>,
}

/// Where the gradients of a [`GpuLora`] are added.
#[derive(Debug)]
pub struct GpuLoraGradients {
    /// As `A`.
    pub a: Buffer<f32>,
    /// As `B`.
    pub b: Buffer<f32>,
}

// === impl GpuLora ===

impl GpuLora {
    /// `A` of a layer with so many inputs.
    pub(super) fn a(&self, inputs: usize) -> Result<Matrix<'_>> {
        self.check()?;
        Matrix::of(&self.a, self.rank, inputs)
    }

    /// `B` of a layer with so many outputs.
    pub(super) fn b(&self, outputs: usize) -> Result<Matrix<'_>> {
        self.check()?;
        Matrix::of(&self.b, outputs, self.rank)
    }

    fn check(&self) -> Result<()> {
        if (1..=RANKS).contains(&self.rank) { Ok(()) } else { Err(Error::shape(OP, "rank", 1..=RANKS, self.rank)) }
    }

    /// Which of three kernels.
    fn size(&self) -> usize {
        match self.rank {
            ..=16 => 0,
            17..=32 => 1,
            _ => 2,
        }
    }

    /// The dropout, where it drops anything.
    fn drops(&self) -> Option<Dropout> {
        self.dropout.filter(|dropout| dropout.threshold() > 0)
    }

    /// Its part in a product: `side` is `down` or `up`, `matrix` what it is multiplied with.
    pub(super) fn update<'a>(
        &self,
        side: &'a Buffer<bf16>,
        rows: usize,
        matrix: Matrix<'a>,
        dropout: Option<Dropout>,
    ) -> Result<Update<'a>> {
        Ok(Update { operands: (Matrix::padded(side, rows, self.rank)?, matrix), rank: self.rank, dropout })
    }

    /// `scale · drop(x) Aᵀ`.
    pub(super) fn down(&self, x: Matrix<'_>) -> Result<Buffer<bf16>> {
        let kernels = if self.drops().is_some() { DOWN_DROP } else { DOWN };
        self.narrow(&kernels, x, self.a(x.columns())?, self.drops())
    }

    /// `scale · dy B`.
    pub(super) fn up(&self, dy: Matrix<'_>) -> Result<Buffer<bf16>> {
        self.narrow(&UP, dy, self.b(dy.columns())?, None)
    }

    fn narrow(
        &self,
        kernels: &[Kernel; 3],
        x: Matrix<'_>,
        matrix: Matrix<'_>,
        dropout: Option<Dropout>,
    ) -> Result<Buffer<bf16>> {
        let mut copies = [const { None }; 2];
        let [first, second] = &mut copies;
        let [from, stride_from] = x.aligned(first)?.arguments()?;
        let [by, stride_by] = matrix.aligned(second)?.arguments()?;
        let width = self.rank.next_multiple_of(8);
        let gpu = x.gpu();
        let mut out = gpu.empty(x.rows() * width)?;
        let factor = self.scale * self.drops().map_or(1.0, |dropout| dropout.scale());
        let (threshold, key) = dropout.map_or((0, 0), |dropout| (dropout.threshold(), dropout.key));
        let [rows, rank, inner]: [Argument; 3] =
            [whole(x.rows())?.into(), whole(self.rank)?.into(), whole(x.columns())?.into()];
        let (factor, stride) = (factor.into(), whole(width)?.into());
        let arguments = [
            from,
            stride_from,
            by,
            stride_by,
            rows,
            rank,
            inner,
            factor,
            threshold.into(),
            key.into(),
            (&mut out).into(),
            stride,
        ];
        let size = self.size();
        gpu.launch(&kernels[size], DOWN_TILES[size].shape(x.rows(), self.rank)?, arguments)?;
        Ok(out)
    }

    /// Adds the gradients of `A` and `B`.
    pub(super) fn gradients(
        &self,
        x: Matrix<'_>,
        dy: Matrix<'_>,
        down: &Buffer<bf16>,
        up: &Buffer<bf16>,
        gradients: &mut GpuLoraGradients,
    ) -> Result<()> {
        let (rows, inputs, outputs, rank) = (x.rows(), x.columns(), dy.columns(), self.rank);
        gradients.a.expect(OP, "gradient of A", rank * inputs)?;
        gradients.b.expect(OP, "gradient of B", outputs * rank)?;
        let mut copies = [const { None }; 2];
        let [first, second] = &mut copies;
        let [x, stride_x] = x.aligned(first)?.arguments()?;
        let [dy, stride_dy] = dy.aligned(second)?.arguments()?;
        let [down, stride] = Matrix::padded(down, rows, rank)?.arguments()?;
        let [up, _] = Matrix::padded(up, rows, rank)?.arguments()?;
        if rows == 0 {
            return Ok(());
        }
        // By shapes only, so that every card adds in the same order.
        let share = rows.div_ceil(SHARES).next_multiple_of(64).max(SHARE_ROWS);
        let shares = rows.div_ceil(share);
        let gpu = gradients.a.gpu().clone();
        let mut a_sums = gpu.empty::<f32>(shares * rank * inputs)?;
        let mut b_sums = gpu.empty::<f32>(shares * rank * outputs)?;
        let drops = self.drops();
        let (threshold, key) = drops.map_or((0, 0), |dropout| (dropout.threshold(), dropout.key));
        let (size, tile) = (self.size(), GRADIENT_TILES[self.size()]);
        let kernel = if drops.is_some() { &GRADIENT_DROP[size] } else { &GRADIENT[size] };
        let blocks = whole(tile.blocks(rank, inputs.max(outputs)))?.cast_unsigned();
        let shape = Shape::grid([blocks, whole(shares)?.cast_unsigned(), 2], tile.threads).with_shared(tile.shared());
        let [rows, ranks, inputs_, outputs_, share, parts]: [Argument; 6] = [
            whole(rows)?.into(),
            whole(rank)?.into(),
            whole(inputs)?.into(),
            whole(outputs)?.into(),
            whole(share)?.into(),
            whole(shares)?.into(),
        ];
        let arguments = [
            up,
            x,
            stride_x,
            inputs_,
            down,
            dy,
            stride_dy,
            outputs_,
            (&mut a_sums).into(),
            (&mut b_sums).into(),
            rows,
            ranks,
            stride,
            share,
            threshold.into(),
            key.into(),
        ];
        gpu.launch(kernel, shape, arguments)?;
        let shape = Shape::of(gpu.blocks((rank * (inputs + outputs)).div_ceil(256), 8), 256);
        let (a, b) = ((&mut gradients.a).into(), (&mut gradients.b).into());
        gpu.launch(&ADD, shape, [(&a_sums).into(), (&b_sums).into(), ranks, inputs_, outputs_, parts, a, b])
    }
}
