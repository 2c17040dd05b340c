//! From tokens to the sums of their experts.

use half::bf16;

use super::decode::{Matrices, each_group};
use super::experts::GpuExperts;
use super::lora::GpuExpertLora;
use super::routing::GpuRouting;
use super::update::{Low, Rows, to_low};
use super::{OP, some};
use crate::dropout::Dropout;
use crate::gpu::{Argument, Buffer, Kernel, Shape};
use crate::{Error, Result};

const GATE_UP: Kernel = Kernel::new(
    "moe_gate_up",
    "const bf16*, const bf16*, i32, const bf16*, const bf16*, const bf16*, i32, i32, const u32*, const u32*, const u32*, \
     const u32*, i32, i32, i32, i32, i32, bf16*, bf16*",
);
const DOWN: Kernel = Kernel::new(
    "moe_down",
    "const bf16*, const bf16*, i32, const bf16*, const bf16*, i32, const u32*, const u32*, const u32*, const u32*, i32, \
     i32, i32, i32, i32, bf16*",
);
const COMBINE: Kernel = Kernel::new("moe_combine", "const bf16*, const f32*, const u32*, i32, i32, i32, i32, bf16*");

/// Columns of a tile.
pub(super) const TILE_COLUMNS: usize = 128;

/// One use of the routed experts.
#[derive(Debug, Clone, Copy)]
pub struct ExpertsCall<'a> {
    /// The frozen experts.
    pub experts: &'a GpuExperts,
    /// Which rows go where, and with which weights.
    pub routing: &'a GpuRouting,
    /// The LoRA matrices, where any expert has some.
    pub lora: Option<&'a GpuExpertLora>,
    /// Dropout on the LoRA input of gate, up and down.
    pub dropout: Option<[Dropout; 3]>,
}

/// What the backward pass needs of the forward pass.
#[derive(Debug)]
pub struct Kept {
    /// Gate and up, `[rows, 2 · width]`.
    pub(super) gate_up: Buffer<bf16>,
    /// `silu(gate) ⊙ up`, `[rows, width]`.
    pub(super) inner: Buffer<bf16>,
    /// `drop(x) Aᵀ` of gate and up, beside each other.
    pub(super) low_gate_up: Buffer<bf16>,
    /// `drop(inner) Aᵀ` of down, times the rows' weights.
    pub(super) low_down: Buffer<bf16>,
}

// === impl ExpertsCall ===

impl ExpertsCall<'_> {
    /// `out[token] = Σ_j w_j · down(silu(gate x) ⊙ up x)`, or added to what `out` holds.
    pub fn forward(&self, x: &Buffer<bf16>, out: &mut Buffer<bf16>, accumulate: bool) -> Result<Kept> {
        self.check()?;
        let (hidden, width) = (self.experts.hidden(), self.experts.width());
        let tokens = self.routing.tokens();
        x.expect(OP, "x", tokens * hidden)?;
        out.expect(OP, "sums of experts", tokens * hidden)?;
        let gpu = x.gpu();
        let rows = tokens * self.routing.per_token();
        let [gate, up, down] = self.ranks();
        let mut kept = Kept {
            gate_up: gpu.empty(rows * 2 * width)?,
            inner: gpu.empty(rows * width)?,
            low_gate_up: gpu.empty(rows * (gate + up))?,
            low_down: gpu.empty(rows * down)?,
        };
        if let Some(lora) = self.lora {
            let from = Rows { values: x, stride: hidden, first: 0, columns: hidden, of_tokens: true };
            for (which, first) in [(0, 0), (1, gate)] {
                let (projection, low) = (&lora.projections[which], Low { width: gate + up, first });
                let a = Some(&lora.gate_up_a);
                to_low(self.routing, from, projection, a, self.dropout(which), low, &mut kept.low_gate_up, None)?;
            }
        }
        self.gate_up(x, &mut kept)?;
        let mut low_down = gpu.empty(rows * down)?;
        if let Some(lora) = self.lora {
            let from = Rows { values: &kept.inner, stride: width, first: 0, columns: width, of_tokens: false };
            let (projection, low) = (&lora.projections[2], Low { width: down, first: 0 });
            let a = Some(&lora.down_a);
            let weighted = Some(&mut kept.low_down);
            to_low(self.routing, from, projection, a, self.dropout(2), low, &mut low_down, weighted)?;
        }
        let mut values = gpu.empty(rows * hidden)?;
        self.down(&kept.inner, &low_down, &mut values)?;
        self.combine(&values, Some(self.routing.weights()), out, accumulate)?;
        Ok(kept)
    }

    fn gate_up(&self, x: &Buffer<bf16>, kept: &mut Kept) -> Result<()> {
        let [gate, up, _] = self.ranks();
        let (hidden, width) = (self.experts.hidden(), self.experts.width());
        let b = |which: usize| some(self.lora.map(|lora| &lora.projections[which].b));
        each_group(self.experts, Matrices::GateUp, |weights, first, range| {
            let [slots, offsets, tiles, tile_offsets, from, to, per_token] = self.schedule(range.clone());
            let arguments = [
                x.into(),
                weights.into(),
                (first as i32).into(),
                some(Some(&kept.low_gate_up)),
                b(0),
                b(1),
                (gate as i32).into(),
                (up as i32).into(),
                slots,
                offsets,
                tiles,
                tile_offsets,
                from,
                to,
                per_token,
                (hidden as i32).into(),
                (width as i32).into(),
                (&mut kept.gate_up).into(),
                (&mut kept.inner).into(),
            ];
            x.gpu().launch(&GATE_UP, self.shape(width.div_ceil(TILE_COLUMNS / 2)), arguments)
        })
    }

    fn down(&self, inner: &Buffer<bf16>, low: &Buffer<bf16>, values: &mut Buffer<bf16>) -> Result<()> {
        let (hidden, width) = (self.experts.hidden(), self.experts.width());
        each_group(self.experts, Matrices::Down, |weights, first, range| {
            let [slots, offsets, tiles, tile_offsets, from, to, per_token] = self.schedule(range);
            let arguments = [
                inner.into(),
                weights.into(),
                (first as i32).into(),
                some(Some(low)),
                some(self.lora.map(|lora| &lora.projections[2].b)),
                (self.ranks()[2] as i32).into(),
                slots,
                offsets,
                tiles,
                tile_offsets,
                from,
                to,
                per_token,
                (hidden as i32).into(),
                (width as i32).into(),
                (&mut *values).into(),
            ];
            inner.gpu().launch(&DOWN, self.shape(hidden.div_ceil(TILE_COLUMNS)), arguments)
        })
    }

    /// `out[token] = Σ_j w_j · values[row]` in the order of the choices, or added to what `out` holds.
    pub(super) fn combine(
        &self,
        values: &Buffer<bf16>,
        weights: Option<&Buffer<f32>>,
        out: &mut Buffer<bf16>,
        accumulate: bool,
    ) -> Result<()> {
        let gpu = values.gpu();
        let (tokens, width) = (self.routing.tokens(), self.experts.hidden());
        let [count, per_token, hidden] =
            [tokens, self.routing.per_token(), width].map(|count| Argument::from(count as i32));
        let arguments = [
            values.into(),
            weights.into(),
            self.routing.rows().into(),
            count,
            per_token,
            hidden,
            i32::from(accumulate).into(),
            out.into(),
        ];
        gpu.launch(&COMBINE, Shape::of(gpu.blocks((tokens * width / 8).div_ceil(256), 8), 256), arguments)
    }

    /// Where tiles are, for the grouped products of some experts.
    pub(super) fn schedule(&self, experts: std::ops::Range<usize>) -> [Argument; 7] {
        let routing = self.routing;
        [
            routing.slots().into(),
            routing.offsets().into(),
            routing.tiles().into(),
            routing.tile_offsets().into(),
            (experts.start as i32).into(),
            (experts.end as i32).into(),
            (routing.per_token() as i32).into(),
        ]
    }

    /// Two blocks a multiprocessor, for tiles of so many columns of tiles.
    pub(super) fn shape(&self, columns: usize) -> Shape {
        /// Four stages of 128 rows and 128 columns, 32 of k at a time.
        const SHARED: usize = 4 * (128 + 128) * 32 * 2;
        let gpu = self.experts.gpu();
        Shape::of(gpu.blocks(self.routing.tile_bound() * columns, 2), 128).with_shared(SHARED)
    }

    pub(super) fn dropout(&self, which: usize) -> Option<&Dropout> {
        self.dropout.as_ref().map(|all| &all[which]).filter(|dropout| dropout.probability > 0.0)
    }

    pub(super) fn ranks(&self) -> [usize; 3] {
        self.lora.map_or([0; 3], GpuExpertLora::ranks)
    }

    pub(super) fn check(&self) -> Result<()> {
        let (experts, hidden, width) = (self.experts.experts(), self.experts.hidden(), self.experts.width());
        if self.routing.experts() != experts {
            return Err(Error::shape(OP, "experts of the routing", experts, self.routing.experts()));
        }
        self.lora.map_or(Ok(()), |lora| lora.expect(experts, hidden, width))
    }
}
