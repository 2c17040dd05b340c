//! Products with the experts' LoRA matrices: rows to low rank, and the gradients of `A` and `B`.

use half::bf16;

use super::lora::GpuProjection;
use super::routing::GpuRouting;
use super::ways::SMALL_TILE_ROWS;
use crate::Result;
use crate::dropout::Dropout;
use crate::gpu::{Argument, Buffer, Kernel, Shape};

const THREADS: u32 = 128;
/// Columns of a block's tile.
const COLUMNS: usize = 128;
const SHARED: [usize; 2] = [3 * (128 + 16) * 64 * 2, 3 * (128 + 64) * 64 * 2];

macro_rules! kernels {
    ($arguments:literal: $($constant:ident = $narrow:literal, $wide:literal);* $(;)?) => {
        $(const $constant: [Kernel; 2] = [Kernel::new($narrow, $arguments), Kernel::new($wide, $arguments)];)*
    };
}

kernels! { "const bf16*, i32, i32, i32, i32, const bf16*, i32, bf16*, bf16*, const f32*, i32, i32, i32, f32, u32, u64, const u32*, const u32*, const u32*, const u32*, i32, i32":
    LOW = "moe_low_16", "moe_low_64";
    LOW_DROPPED = "moe_low_dropped_16", "moe_low_dropped_64";
    LOW_GRADIENT = "moe_low_gradient_16", "moe_low_gradient_64";
    LOW_SMALL = "moe_low_small_16", "moe_low_small_64";
    LOW_DROPPED_SMALL = "moe_low_dropped_small_16", "moe_low_dropped_small_64";
    LOW_GRADIENT_SMALL = "moe_low_gradient_small_16", "moe_low_gradient_small_64";
}

kernels! { "const bf16*, i32, i32, i32, i32, const bf16*, i32, i32, const u32*, const u32*, const f32*, i32, i32, f32, u32, u64, const u32*, const u32*, i32, f32*":
    GRADIENT_A = "moe_gradient_a_16", "moe_gradient_a_64";
    GRADIENT_A_DROPPED = "moe_gradient_a_dropped_16", "moe_gradient_a_dropped_64";
    GRADIENT_B = "moe_gradient_b_16", "moe_gradient_b_64";
}

/// Rows as products take them: `columns` values of each, from `first` on.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) values: &'a Buffer<bf16>,
    pub(super) stride: usize,
    pub(super) first: usize,
    pub(super) columns: usize,
    /// Whether they are tokens, to be gathered.
    pub(super) of_tokens: bool,
}

/// Some of the columns of rows of low rank.
#[derive(Clone, Copy)]
pub(super) struct Low {
    pub(super) width: usize,
    pub(super) first: usize,
}

/// Threshold, key and scale as kernels take them.
pub(super) fn dropped(dropout: Option<&Dropout>) -> [Argument; 3] {
    let threshold = dropout.map_or(0, Dropout::threshold);
    [threshold.into(), dropout.map_or(0, |dropout| dropout.key).into(), scale(dropout).into()]
}

fn scale(dropout: Option<&Dropout>) -> f32 {
    dropout.map_or(1.0, Dropout::scale)
}

impl Rows<'_> {
    fn arguments(&self) -> [Argument; 5] {
        let [stride, first, columns] = [self.stride, self.first, self.columns].map(|count| (count as i32).into());
        [self.values.into(), stride, first, columns, i32::from(self.of_tokens).into()]
    }
}

/// `drop(rows) Aᵀ` where `a` is the experts' `A`, else `scale · rows B`; beside it the same times the rows' weights.
pub(super) fn to_low(
    routing: &GpuRouting,
    rows: Rows<'_>,
    projection: &GpuProjection,
    a: Option<&Buffer<bf16>>,
    dropout: Option<&Dropout>,
    low: Low,
    out: &mut Buffer<bf16>,
    weighted: Option<&mut Buffer<bf16>>,
) -> Result<()> {
    if projection.rank == 0 {
        return Ok(());
    }
    let wide = usize::from(projection.rank > 16);
    let small = routing.tile_rows() == SMALL_TILE_ROWS;
    let kernel = &match (a, dropout, small) {
        (Some(_), None, false) => LOW,
        (Some(_), None, true) => LOW_SMALL,
        (Some(_), Some(_), false) => LOW_DROPPED,
        (Some(_), Some(_), true) => LOW_DROPPED_SMALL,
        (None, _, false) => LOW_GRADIENT,
        (None, _, true) => LOW_GRADIENT_SMALL,
    }[wide];
    let [values, stride, first, columns, of_tokens] = rows.arguments();
    let [threshold, key, scale] = dropped(dropout);
    let [width, low_first, rank, experts, per_token] =
        [low.width, low.first, projection.rank, routing.experts(), routing.per_token()]
            .map(|count| (count as i32).into());
    let matrix = a.unwrap_or(&projection.b).into();
    let arguments = [
        values,
        stride,
        first,
        columns,
        of_tokens,
        matrix,
        width,
        out.into(),
        weighted.into(),
        routing.weights().into(),
        width,
        low_first,
        rank,
        scale,
        threshold,
        key,
        routing.slots().into(),
        routing.offsets().into(),
        routing.tiles().into(),
        routing.tile_offsets().into(),
        experts,
        per_token,
    ];
    let gpu = routing.slots().gpu();
    let work = routing.tile_bound() * projection.rank.div_ceil(64);
    gpu.launch(kernel, Shape::of(gpu.blocks(work, 3), THREADS).with_shared(SHARED[wide]), arguments)
}

/// Adds `lowᵀ drop(rows)` to the gradient of `A`, or `scale · rowsᵀ low` to that of `B`.
pub(super) fn to_gradient(
    routing: &GpuRouting,
    rows: Rows<'_>,
    projection: &GpuProjection,
    of_a: bool,
    dropout: Option<&Dropout>,
    low: Low,
    values: &Buffer<bf16>,
    gradient: &mut Buffer<f32>,
) -> Result<()> {
    if projection.rank == 0 {
        return Ok(());
    }
    let wide = usize::from(projection.rank > 16);
    let kernel = match (of_a, dropout) {
        (true, None) => &GRADIENT_A[wide],
        (true, Some(_)) => &GRADIENT_A_DROPPED[wide],
        (false, _) => &GRADIENT_B[wide],
    };
    let [from, stride, first, columns, of_tokens] = rows.arguments();
    let [threshold, key, scale] = dropped(dropout);
    let [width, low_first, inputs, outputs, per_token] =
        [low.width, low.first, projection.inputs, projection.outputs, routing.per_token()]
            .map(|count| (count as i32).into());
    let arguments = [
        from,
        stride,
        first,
        columns,
        of_tokens,
        values.into(),
        width,
        low_first,
        (&projection.places).into(),
        (&projection.ranks).into(),
        (&projection.scales).into(),
        inputs,
        outputs,
        scale,
        threshold,
        key,
        routing.slots().into(),
        routing.offsets().into(),
        per_token,
        gradient.into(),
    ];
    let grid = [rows.columns.div_ceil(COLUMNS), projection.rank.div_ceil([16, 64][wide]), routing.experts()];
    let shape = Shape::grid(grid.map(|side| side as u32), THREADS).with_shared(SHARED[wide]);
    routing.slots().gpu().launch(kernel, shape, arguments)
}
