//! From the gradient of the tokens' sums to those of tokens, routing weights and LoRA matrices.

use half::bf16;

use super::forward::{ExpertsCall, Kept, TILE_COLUMNS};
use super::lora::GpuExpertLora;
use super::update::{Low, Rows, dropped, to_gradient, to_low};
use super::weights::{Matrices, Weights, each_group};
use super::{Kernels, OP, kernels, some};
use crate::Result;
use crate::gpu::{Buffer, Kernel, Shape};

kernels! { DOWN_BACKWARD = "down_backward":
"const bf16*, ", "const bf16*, const bf16*, i32, i32, i32, u32, u64, f32, ", "const bf16*, const f32*, bf16*, f32*" }
kernels! { DOWN_BACKWARD_DROPPED = "down_backward", dropped "down_backward_drop":
"const bf16*, ", "const bf16*, const bf16*, i32, i32, i32, u32, u64, f32, ", "const bf16*, const f32*, bf16*, f32*" }
kernels! { GATE_UP_BACKWARD = "gate_up_backward":
"const bf16*, ", "const bf16*, const bf16*, i32, i32, i32, u32, u64, f32, ", "i32, i32, bf16*" }
kernels! { GATE_UP_UPDATE = "gate_up_backward", dropped "gate_up_backward":
"const bf16*, ", "const bf16*, const bf16*, i32, i32, i32, u32, u64, f32, ", "i32, i32, bf16*" }
const SUM_SHARES: Kernel = Kernel::new("moe_sum_shares", "const f32*, i32, const u32*, i32, f32*");

/// Columns of a row that one share of a routing weight's gradient is summed over.
const SHARE: usize = 64;

/// Where gradients go.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Of the tokens, and whether it is added to what is there.
    pub x: Option<(&'a mut Buffer<bf16>, bool)>,
    /// Of the routing weights: `[tokens, per_token]`, replaced.
    pub weights: &'a mut Buffer<f32>,
    /// Of the flat LoRA parameter: added to.
    pub lora: Option<&'a mut Buffer<f32>>,
}

/// Part of the low-rank update of gate and up.
#[derive(Clone, Copy)]
struct Part {
    first: usize,
    rank: usize,
    /// Whose dropout.
    which: usize,
    /// Whether the product with the frozen weights is in it, too; else all is added.
    main: bool,
}

// === impl ExpertsCall ===

impl ExpertsCall<'_> {
    /// The reverse of [`ExpertsCall::forward`].
    pub fn backward(
        &self,
        x: &Buffer<bf16>,
        kept: &Kept,
        d_out: &Buffer<bf16>,
        gradients: Gradients<'_>,
    ) -> Result<()> {
        self.check()?;
        let (hidden, width) = (self.experts.hidden(), self.experts.width());
        let tokens = self.routing.tokens();
        let rows = tokens * self.routing.per_token();
        x.expect(OP, "x", tokens * hidden)?;
        d_out.expect(OP, "gradient of the sums of experts", tokens * hidden)?;
        kept.inner.expect(OP, "kept rows", rows * width)?;
        gradients.weights.expect(OP, "gradients of routing weights", rows)?;
        let gpu = x.gpu();
        let [gate, up, down] = self.ranks();
        let (mut d_low_down, mut d_low_down_weighted) = (gpu.empty(rows * down)?, gpu.empty(rows * down)?);
        if let Some(lora) = self.lora {
            let from = Rows { values: d_out, stride: hidden, first: 0, columns: hidden, of_tokens: true };
            let (projection, low) = (&lora.projections[2], Low { width: down, first: 0 });
            let weighted = Some(&mut d_low_down_weighted);
            to_low(self.routing, from, projection, None, None, low, &mut d_low_down, weighted)?;
        }
        let mut d_gate_up = gpu.empty(rows * 2 * width)?;
        self.through_down(d_out, kept, &d_low_down, &mut d_gate_up, gradients.weights)?;

        let mut d_low_gate_up = gpu.empty(rows * (gate + up))?;
        if let Some(lora) = self.lora {
            for (which, first) in [(0, 0), (1, gate)] {
                let low = Low { width: gate + up, first };
                let from = self.part_of(&d_gate_up, which);
                to_low(self.routing, from, &lora.projections[which], None, None, low, &mut d_low_gate_up, None)?;
            }
            if let Some(d_lora) = gradients.lora {
                d_lora.expect(OP, "gradient of the experts' LoRA", lora.len())?;
                let low = [&d_low_gate_up, &d_low_down_weighted];
                self.lora_gradients(lora, x, kept, d_out, &d_gate_up, low, d_lora)?;
            }
        }
        if let Some((d_x, accumulate)) = gradients.x {
            d_x.expect(OP, "gradient of x", tokens * hidden)?;
            let mut d_rows = gpu.empty(rows * hidden)?;
            self.through_gate_up(&d_gate_up, &d_low_gate_up, &mut d_rows)?;
            self.combine(&d_rows, None, d_x, accumulate)?;
        }
        Ok(())
    }

    /// Gate's or up's half of rows.
    fn part_of<'a>(&self, gate_up: &'a Buffer<bf16>, which: usize) -> Rows<'a> {
        let width = self.experts.width();
        Rows { values: gate_up, stride: 2 * width, first: which * width, columns: width, of_tokens: false }
    }

    fn through_down(
        &self,
        d_out: &Buffer<bf16>,
        kept: &Kept,
        d_low: &Buffer<bf16>,
        d_gate_up: &mut Buffer<bf16>,
        d_weights: &mut Buffer<f32>,
    ) -> Result<()> {
        let gpu = d_out.gpu();
        let width = self.experts.width();
        // A warp has 64 columns of a tile.
        let (slots_count, pieces) = (self.routing.slots().len(), width.div_ceil(SHARE));
        let mut shares = gpu.empty::<f32>(slots_count * pieces)?;
        let kernels = if self.dropout(2).is_some() { &DOWN_BACKWARD_DROPPED } else { &DOWN_BACKWARD };
        each_group(self.experts, Matrices::Down, slots_count, |weights, range| {
            let (low, a) = (some(Some(d_low)), some(self.lora.map(|lora| &lora.down_a)));
            let rank = (self.ranks()[2] as i32).into();
            let arguments = [d_out.into()]
                .into_iter()
                .chain(weights.arguments)
                .chain([low, a, rank, 0i32.into(), rank])
                .chain(dropped(self.dropout(2)))
                .chain(self.schedule(range))
                .chain([(&kept.gate_up).into(), self.routing.weights().into()])
                .chain([(&mut *d_gate_up).into(), (&mut shares).into()]);
            self.launch(kernels, weights, width.div_ceil(TILE_COLUMNS), arguments)
        })?;
        let arguments = [
            (&shares).into(),
            (pieces as i32).into(),
            self.routing.rows().into(),
            (slots_count as i32).into(),
            d_weights.into(),
        ];
        gpu.launch(&SUM_SHARES, Shape::of(slots_count.div_ceil(256) as u32, 256), arguments)
    }

    fn lora_gradients(
        &self,
        lora: &GpuExpertLora,
        x: &Buffer<bf16>,
        kept: &Kept,
        d_out: &Buffer<bf16>,
        d_gate_up: &Buffer<bf16>,
        [d_low_gate_up, d_low_down]: [&Buffer<bf16>; 2],
        gradient: &mut Buffer<f32>,
    ) -> Result<()> {
        let (hidden, width) = (self.experts.hidden(), self.experts.width());
        let [gate, up, down] = self.ranks();
        let tokens = |values| Rows { values, stride: hidden, first: 0, columns: hidden, of_tokens: true };
        let inner = Rows { values: &kept.inner, stride: width, first: 0, columns: width, of_tokens: false };
        let of_down = Low { width: down, first: 0 };
        let routing = self.routing;
        let projection = &lora.projections[2];
        to_gradient(routing, inner, projection, true, self.dropout(2), of_down, d_low_down, gradient)?;
        to_gradient(routing, tokens(d_out), projection, false, None, of_down, &kept.low_down, gradient)?;
        for (which, first) in [(0, 0), (1, gate)] {
            let (projection, low) = (&lora.projections[which], Low { width: gate + up, first });
            let dropout = self.dropout(which);
            to_gradient(routing, tokens(x), projection, true, dropout, low, d_low_gate_up, gradient)?;
            let from = self.part_of(d_gate_up, which);
            to_gradient(routing, from, projection, false, None, low, &kept.low_gate_up, gradient)?;
        }
        Ok(())
    }

    /// All at once where nothing is dropped; else each update by itself, since each has a mask of its own.
    fn through_gate_up(&self, d_gate_up: &Buffer<bf16>, d_low: &Buffer<bf16>, d_rows: &mut Buffer<bf16>) -> Result<()> {
        let [gate, up, _] = self.ranks();
        let apart = self.dropout(0).is_some() || self.dropout(1).is_some();
        let rank = if apart { 0 } else { gate + up };
        self.through_part(d_gate_up, d_low, Part { first: 0, rank, which: 0, main: true }, d_rows)?;
        for (which, first, rank) in [(0, 0, gate), (1, gate, up)] {
            if apart && rank > 0 {
                self.through_part(d_gate_up, d_low, Part { first, rank, which, main: false }, d_rows)?;
            }
        }
        Ok(())
    }

    fn through_part(
        &self,
        d_gate_up: &Buffer<bf16>,
        d_low: &Buffer<bf16>,
        part: Part,
        d_rows: &mut Buffer<bf16>,
    ) -> Result<()> {
        let [gate, up, _] = self.ranks();
        let kernels = if part.main { &GATE_UP_BACKWARD } else { &GATE_UP_UPDATE };
        let mut launch = |weights: Weights, range| {
            let (low, a) = (some(Some(d_low)), some(self.lora.map(|lora| &lora.gate_up_a)));
            let update = [gate + up, part.first, part.rank].map(|number| (number as i32).into());
            let [main, accumulate] = [part.main, !part.main].map(|flag| i32::from(flag).into());
            let arguments = [d_gate_up.into()]
                .into_iter()
                .chain(weights.arguments)
                .chain([low, a])
                .chain(update)
                .chain(dropped(self.dropout(part.which)))
                .chain(self.schedule(range))
                .chain([main, accumulate, (&mut *d_rows).into()]);
            let columns = self.experts.hidden().div_ceil(TILE_COLUMNS);
            self.launch(kernels, weights, columns, arguments)
        };
        if !part.main {
            return launch(Weights::plain(None, 0), 0..self.experts.experts());
        }
        each_group(self.experts, Matrices::GateUp, self.routing.slots().len(), launch)
    }
}
