//! From tokens to the sums of their experts.

use half::bf16;

use super::experts::GpuExperts;
use super::lora::GpuExpertLora;
use super::routing::GpuRouting;
use super::update::{Low, Rows, to_low};
use super::ways::{self, Cores, SMALL_TILE_ROWS};
use super::weights::{Matrices, Weights, each_group};
use super::{Kernels, OP, kernels, some};
use crate::dropout::Dropout;
use crate::gpu::{Argument, Buffer, Kernel, Shape};
use crate::{Error, Result};

kernels! { GATE_UP = "gate_up":
"const bf16*, ", "const bf16*, const bf16*, const bf16*, i32, i32, ", "bf16*, bf16*" }
kernels! { DOWN = "down": "const bf16*, ", "const bf16*, const bf16*, i32, ", "bf16*" }
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
        out.expect(OP, "sums of experts", self.routing.tokens() * self.experts.hidden())?;
        let (kept, low_down) = self.kept(x)?;
        let mut values = x.gpu().empty(self.routing.slots().len() * self.experts.hidden())?;
        self.down(&kept.inner, &low_down, &mut values)?;
        self.combine(&values, Some(self.routing.weights()), out, accumulate)?;
        Ok(kept)
    }

    /// What [`ExpertsCall::forward`] keeps, to the bit, without the sums: these are not asked for again where a forward pass is
    /// repeated for its backward pass. The gradient of a row's weight is `inner · (d_out · down)`, so that the product with
    /// down and the combining are left out.
    pub fn forward_again(&self, x: &Buffer<bf16>) -> Result<Kept> {
        Ok(self.kept(x)?.0)
    }

    /// With what the product with down takes besides.
    fn kept(&self, x: &Buffer<bf16>) -> Result<(Kept, Buffer<bf16>)> {
        self.check()?;
        let (hidden, width) = (self.experts.hidden(), self.experts.width());
        let tokens = self.routing.tokens();
        x.expect(OP, "x", tokens * hidden)?;
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
        Ok((kept, low_down))
    }

    fn gate_up(&self, x: &Buffer<bf16>, kept: &mut Kept) -> Result<()> {
        let [gate, up, _] = self.ranks();
        let b = |which: usize| some(self.lora.map(|lora| &lora.projections[which].b));
        let rows = self.routing.slots().len();
        each_group(self.experts, Matrices::GateUp, rows, |weights, range| {
            let low = some(Some(&kept.low_gate_up));
            let (ranks, out) = ([gate, up].map(|rank| (rank as i32).into()), &mut *kept);
            let arguments = [x.into()]
                .into_iter()
                .chain(weights.arguments)
                .chain([low, b(0), b(1)])
                .chain(ranks)
                .chain(self.schedule(range))
                .chain([(&mut out.gate_up).into(), (&mut out.inner).into()]);
            let columns = self.experts.width().div_ceil(TILE_COLUMNS / 2);
            self.launch(&GATE_UP, weights, columns, arguments)
        })
    }

    fn down(&self, inner: &Buffer<bf16>, low: &Buffer<bf16>, values: &mut Buffer<bf16>) -> Result<()> {
        let rows = self.routing.slots().len();
        each_group(self.experts, Matrices::Down, rows, |weights, range| {
            let b = some(self.lora.map(|lora| &lora.projections[2].b));
            let rank = (self.ranks()[2] as i32).into();
            let arguments = [inner.into()]
                .into_iter()
                .chain(weights.arguments)
                .chain([some(Some(low)), b, rank])
                .chain(self.schedule(range))
                .chain([(&mut *values).into()]);
            let columns = self.experts.hidden().div_ceil(TILE_COLUMNS);
            self.launch(&DOWN, weights, columns, arguments)
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

    /// Where tiles are, for the grouped products of some experts, and the widths.
    pub(super) fn schedule(&self, experts: std::ops::Range<usize>) -> [Argument; 9] {
        let routing = self.routing;
        let numbers = [experts.start, experts.end, routing.per_token(), self.experts.hidden(), self.experts.width()];
        let [first, last, per_token, hidden, width] = numbers.map(|number| (number as i32).into());
        let (tiles, tile_offsets) = (routing.tiles().into(), routing.tile_offsets().into());
        let (slots, offsets) = (routing.slots().into(), routing.offsets().into());
        [slots, offsets, tiles, tile_offsets, first, last, per_token, hidden, width]
    }

    /// Launches that of a product's kernels which is for these weights and the tiles of the routing, `columns` of them beside
    /// each other.
    pub(super) fn launch(
        &self,
        kernels: &Kernels,
        weights: Weights,
        columns: usize,
        arguments: impl IntoIterator<Item = Argument>,
    ) -> Result<()> {
        let gpu = self.experts.gpu();
        let small = self.routing.tile_rows() == SMALL_TILE_ROWS;
        let which = 2 * usize::from(weights.nf4) + usize::from(small);
        let wanted = self.experts.cores.unwrap_or_else(|| ways::cores(gpu));
        // Blocks of a multiprocessor, and values of k in all stages of both operands.
        let (kernel, on_each, staged) = match (&kernels.warpgroup, wanted) {
            (Some(kernels), Cores::Warpgroup) => (&kernels[which], if small && weights.nf4 { 3 } else { 2 }, 192),
            // Two stages of 64 or four of 32; half as many again where tiles are small.
            _ => (&kernels.warp[which], 2, if small { 192 } else { 128 }),
        };
        let shared = (self.routing.tile_rows() + TILE_COLUMNS) * staged * size_of::<bf16>();
        let blocks = gpu.blocks(self.routing.tile_bound() * columns, on_each);
        gpu.launch(kernel, Shape::of(blocks, 128).with_shared(shared), arguments)
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
