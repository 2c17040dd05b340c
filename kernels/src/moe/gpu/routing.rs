//! Which expert gets which row, decided where the logits are.

use half::bf16;

use super::{OP, ways};
use crate::gpu::{Buffer, Gpu, Kernel, Shape};
use crate::{Error, Result};

const CHOOSE: [Kernel; 3] = {
    const ARGUMENTS: &str = "const f32*, i32, i32, i32, i32, u32*, f32*, u32*";
    [
        Kernel::new("moe_choose_128", ARGUMENTS),
        Kernel::new("moe_choose_512", ARGUMENTS),
        Kernel::new("moe_choose_1024", ARGUMENTS),
    ]
};
const WEIGHTS_BACKWARD: [Kernel; 3] = {
    const ARGUMENTS: &str =
        "const f32*, const u32*, const f32*, i32, const f32*, const f32*, f32, i32, i32, i32, f32*, bf16*";
    [
        Kernel::new("moe_weights_backward_128", ARGUMENTS),
        Kernel::new("moe_weights_backward_512", ARGUMENTS),
        Kernel::new("moe_weights_backward_1024", ARGUMENTS),
    ]
};
const LOAD_SUMS: [Kernel; 3] = {
    const ARGUMENTS: &str = "const f32*, const u32*, const f32*, i32, i32, i32, f32*, u32*";
    [
        Kernel::new("moe_load_sums_128", ARGUMENTS),
        Kernel::new("moe_load_sums_512", ARGUMENTS),
        Kernel::new("moe_load_sums_1024", ARGUMENTS),
    ]
};
const LOAD_TOTAL: Kernel = Kernel::new("moe_load_total", "const f32*, i32, i32, f32*");
const SHARES: Kernel = Kernel::new("moe_shares", "const u32*, const f32*, i32, f32, f32*, f32*");
const SCAN: Kernel = Kernel::new("moe_scan", "u32*, i32, i32, u32*");
const ADD_COUNTS: Kernel = Kernel::new("moe_add_counts", "const u32*, i32, u32*");
const OFFSETS: Kernel = Kernel::new("moe_offsets", "const u32*, i32, i32, u32*, u32*, u32*");
const PLACE: Kernel = Kernel::new("moe_place", "const u32*, const u32*, const u32*, i32, i32, i32, u32*, u32*");

/// Experts at most: so many logits the lanes of a warp hold.
const EXPERTS: usize = 1024;
/// Choices at most: one a lane.
const CHOICES: usize = 32;
const THREADS: u32 = 256;
const WARPS: usize = 8;
/// Tokens of a block of the sort.
const CHUNK: usize = 64;

/// The routing of one batch, in a GPU's memory. A *slot* is one of a token's choices, `token * per_token + rank of the
/// choice`; a *row* is a slot's place when all are sorted by expert.
#[derive(Debug)]
pub struct GpuRouting {
    tokens: usize,
    experts: usize,
    per_token: usize,
    normalise: bool,
    tile_rows: usize,
    chosen: Buffer<u32>,
    weights: Buffer<f32>,
    offsets: Buffer<u32>,
    slots: Buffer<u32>,
    rows: Buffer<u32>,
    tiles: Buffer<u32>,
    tile_offsets: Buffer<u32>,
}

/// What the load-balancing loss asks of all layers of a micro-batch, summed up layer by layer.
#[derive(Debug)]
pub struct LoadSums {
    /// Choices of each expert, by real tokens.
    pub counts: Buffer<u32>,
    /// `Σ softmax(logits)` of each expert, over real tokens.
    pub probabilities: Buffer<f32>,
}

/// The load-balancing loss of a micro-batch as the backward pass of every layer needs it.
#[derive(Debug)]
pub struct Balance<'a> {
    /// `E · f_e / rows`, of [`LoadSums::shares`].
    pub shares: &'a Buffer<f32>,
    /// 0 at padding; everything is real where there is none.
    pub valid: Option<&'a Buffer<f32>>,
    /// The derivative of what is minimised by the load-balancing loss.
    pub factor: f32,
}

// === impl GpuRouting ===

impl GpuRouting {
    /// Chooses the `per_token` largest of each token's `experts` logits, largest first, equal ones in order; their weights
    /// are the softmax over all experts, divided by the sum of the chosen where `normalise`.
    pub fn from_logits(logits: &Buffer<f32>, experts: usize, per_token: usize, normalise: bool) -> Result<Self> {
        let possible = (1..=EXPERTS).contains(&experts) && (1..=CHOICES.min(experts)).contains(&per_token);
        if !possible || !logits.len().is_multiple_of(experts) {
            return Err(Error::shape(OP, "logits", ("tokens", experts, "top", per_token), logits.len()));
        }
        let tokens = logits.len() / experts;
        let slots = tokens * per_token;
        if i32::try_from(slots).is_err() {
            return Err(Error::shape(OP, "choices", i32::MAX, slots));
        }
        let gpu = logits.gpu();
        let chunks = tokens.div_ceil(CHUNK);
        let tile_rows = ways::tile_rows(gpu, slots / experts);
        let mut routing = Self {
            tokens,
            experts,
            per_token,
            normalise,
            tile_rows,
            chosen: gpu.empty(slots)?,
            weights: gpu.empty(slots)?,
            offsets: gpu.empty(experts + 1)?,
            slots: gpu.empty(slots)?,
            rows: gpu.empty(slots)?,
            tiles: gpu.empty(2 * tile_bound(slots, experts, tile_rows))?,
            tile_offsets: gpu.empty(experts + 1)?,
        };
        let mut counts = gpu.empty::<u32>(chunks * experts)?;
        let shape = Shape::of(chunks as u32, THREADS);
        let (chosen, weights) = (&mut routing.chosen, &mut routing.weights);
        let [tokens, experts, per_token] = [tokens, experts, per_token].map(|count| (count as i32).into());
        let normalise = i32::from(normalise).into();
        let arguments =
            [logits.into(), tokens, experts, per_token, normalise, chosen.into(), weights.into(), (&mut counts).into()];
        gpu.launch(variant(&CHOOSE, routing.experts), shape, arguments)?;
        routing.sort(gpu, &mut counts, chunks)?;
        Ok(routing)
    }

    /// From the counts of each chunk to offsets, tiles and rows.
    fn sort(&mut self, gpu: &Gpu, counts: &mut Buffer<u32>, chunks: usize) -> Result<()> {
        let mut totals = gpu.zeros::<u32>(self.experts)?;
        let [tokens, experts, per_token] = self.sizes();
        let scan = Shape::of(self.experts.div_ceil(32) as u32, THREADS);
        let arguments = [(&mut *counts).into(), (chunks as i32).into(), experts.into(), (&mut totals).into()];
        gpu.launch(&SCAN, scan, arguments)?;
        let (offsets, tiles) = (&mut self.offsets, &mut self.tiles);
        let rows = (self.tile_rows as i32).into();
        let arguments =
            [(&totals).into(), experts.into(), rows, offsets.into(), tiles.into(), (&mut self.tile_offsets).into()];
        gpu.launch(&OFFSETS, Shape::of(1, EXPERTS as u32), arguments)?;
        let shape = Shape::of(chunks as u32, THREADS).with_shared(WARPS * self.experts * size_of::<u32>());
        let arguments = [
            (&self.chosen).into(),
            (&*counts).into(),
            (&self.offsets).into(),
            tokens.into(),
            experts.into(),
            per_token.into(),
            (&mut self.slots).into(),
            (&mut self.rows).into(),
        ];
        gpu.launch(&PLACE, shape, arguments)
    }

    fn sizes(&self) -> [i32; 3] {
        [self.tokens, self.experts, self.per_token].map(|count| count as i32)
    }

    /// From the gradient of the weights to that of the logits, written in one of both forms or in both. `balance` adds the
    /// load-balancing loss.
    pub fn backward(
        &self,
        logits: &Buffer<f32>,
        d_weights: &Buffer<f32>,
        balance: Option<&Balance<'_>>,
        d_logits: Option<&mut Buffer<f32>>,
        d_logits_rounded: Option<&mut Buffer<bf16>>,
    ) -> Result<()> {
        let count = self.tokens * self.experts;
        logits.expect(OP, "logits", count)?;
        d_weights.expect(OP, "gradients of routing weights", self.slots.len())?;
        d_logits.as_ref().map_or(Ok(()), |wide| wide.expect(OP, "gradients of logits", count))?;
        d_logits_rounded.as_ref().map_or(Ok(()), |narrow| narrow.expect(OP, "gradients of logits", count))?;
        let (shares, valid) = (balance.map(|balance| balance.shares), balance.and_then(|balance| balance.valid));
        shares.map_or(Ok(()), |shares| shares.expect(OP, "shares", self.experts))?;
        self.expect_valid(valid)?;
        let gpu = logits.gpu();
        let [tokens, experts, per_token] = self.sizes();
        let arguments = [
            logits.into(),
            (&self.chosen).into(),
            d_weights.into(),
            i32::from(self.normalise).into(),
            shares.into(),
            valid.into(),
            balance.map_or(0.0, |balance| balance.factor).into(),
            tokens.into(),
            experts.into(),
            per_token.into(),
            d_logits.into(),
            d_logits_rounded.into(),
        ];
        let shape = Shape::of(gpu.blocks(self.tokens.div_ceil(WARPS), 8), THREADS);
        gpu.launch(variant(&WEIGHTS_BACKWARD, self.experts), shape, arguments)
    }

    fn expect_valid(&self, valid: Option<&Buffer<f32>>) -> Result<()> {
        valid.map_or(Ok(()), |valid| valid.expect(OP, "marks of real tokens", self.tokens))
    }

    /// Adds the number of each expert's rows.
    pub fn add_counts(&self, counts: &mut Buffer<u32>) -> Result<()> {
        counts.expect(OP, "experts", self.experts)?;
        let gpu = counts.gpu().clone();
        let shape = Shape::of(self.experts.div_ceil(THREADS as usize) as u32, THREADS);
        let experts = (self.experts as i32).into();
        gpu.launch(&ADD_COUNTS, shape, [(&self.offsets).into(), experts, counts.into()])
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Choices per token.
    pub fn per_token(&self) -> usize {
        self.per_token
    }

    /// The expert of every slot.
    pub fn chosen(&self) -> &Buffer<u32> {
        &self.chosen
    }

    /// The routing weight of every slot.
    pub fn weights(&self) -> &Buffer<f32> {
        &self.weights
    }

    /// Where the rows of each expert begin, and their number at the end.
    pub fn offsets(&self) -> &Buffer<u32> {
        &self.offsets
    }

    /// The slot of every row; the rows of an expert are in the order of tokens.
    pub fn slots(&self) -> &Buffer<u32> {
        &self.slots
    }

    /// The row of every slot.
    pub fn rows(&self) -> &Buffer<u32> {
        &self.rows
    }

    /// Rows of a tile.
    pub(super) fn tile_rows(&self) -> usize {
        self.tile_rows
    }

    /// The most tiles that there can be.
    pub(super) fn tile_bound(&self) -> usize {
        tile_bound(self.slots.len(), self.experts, self.tile_rows)
    }

    /// Expert and first row of every tile of the grouped products.
    pub(super) fn tiles(&self) -> &Buffer<u32> {
        &self.tiles
    }

    /// The first tile of each expert, and the number of all at the end.
    pub(super) fn tile_offsets(&self) -> &Buffer<u32> {
        &self.tile_offsets
    }
}

// === impl LoadSums ===

impl LoadSums {
    /// Of no layer yet.
    pub fn new(gpu: &Gpu, experts: usize) -> Result<Self> {
        Ok(Self { counts: gpu.zeros(experts)?, probabilities: gpu.zeros(experts)? })
    }

    /// Adds a layer's tokens, those where `valid` is not 0.
    pub fn add(&mut self, routing: &GpuRouting, logits: &Buffer<f32>, valid: Option<&Buffer<f32>>) -> Result<()> {
        logits.expect(OP, "logits", routing.tokens * routing.experts)?;
        self.counts.expect(OP, "experts", routing.experts)?;
        routing.expect_valid(valid)?;
        let gpu = logits.gpu();
        let chunks = routing.tokens.div_ceil(CHUNK);
        let mut sums = gpu.empty::<f32>(chunks * routing.experts)?;
        let [tokens, experts, per_token] = routing.sizes();
        let arguments = [
            logits.into(),
            (&routing.chosen).into(),
            valid.into(),
            tokens.into(),
            experts.into(),
            per_token.into(),
            (&mut sums).into(),
            (&mut self.counts).into(),
        ];
        gpu.launch(variant(&LOAD_SUMS, routing.experts), Shape::of(chunks as u32, THREADS), arguments)?;
        let shape = Shape::of(routing.experts.div_ceil(THREADS as usize) as u32, THREADS);
        let arguments = [(&sums).into(), (chunks as i32).into(), experts.into(), (&mut self.probabilities).into()];
        gpu.launch(&LOAD_TOTAL, shape, arguments)
    }

    /// Of all layers: `E · f_e / rows` of every expert, where `rows` is the number of layers times that of real tokens, and
    /// the loss itself.
    pub fn shares(&self, rows: f32) -> Result<(Buffer<f32>, Buffer<f32>)> {
        let gpu = self.counts.gpu();
        let (mut shares, mut loss) = (gpu.empty(self.counts.len())?, gpu.empty(1)?);
        let experts = (self.counts.len() as i32).into();
        let (counts, probabilities) = ((&self.counts).into(), (&self.probabilities).into());
        let arguments = [counts, probabilities, experts, rows.into(), (&mut shares).into(), (&mut loss).into()];
        gpu.launch(&SHARES, Shape::of(1, THREADS), arguments)?;
        Ok((shares, loss))
    }
}

/// The most tiles that so many rows of so many experts can have.
fn tile_bound(rows: usize, experts: usize, tile_rows: usize) -> usize {
    rows / tile_rows + experts.min(rows)
}

/// The kernel whose lanes hold so many logits.
pub(super) fn variant(kernels: &[Kernel; 3], experts: usize) -> &Kernel {
    &kernels[match experts {
        0..=128 => 0,
        129..=512 => 1,
        _ => 2,
    }]
}
