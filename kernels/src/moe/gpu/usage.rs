//! How the experts of all layers are used, counted where the router decides.

use super::OP;
use super::routing::{GpuRouting, variant};
use crate::gpu::{Buffer, Gpu, Kernel, Shape};
use crate::{Error, Result};

const USE: [Kernel; 3] = {
    const ARGUMENTS: &str = "const f32*, const u32*, const f32*, i32, i32, i32, u32*, u64*";
    [
        Kernel::new("moe_use_128", ARGUMENTS),
        Kernel::new("moe_use_512", ARGUMENTS),
        Kernel::new("moe_use_1024", ARGUMENTS),
    ]
};
const THREADS: u32 = 256;
/// Blocks of a launch, each of which has a sum of its own.
const SHARES: usize = 64;

/// Sums over micro-batches, layer by layer.
#[derive(Debug)]
pub struct ExpertUse {
    experts: usize,
    /// Of every layer, each expert's.
    counts: Buffer<u32>,
    /// Of every layer, that of each share of the tokens, as the bits of `f64`.
    entropies: Buffer<u64>,
}

/// The use of one layer's experts.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerUse {
    /// Tokens that chose each expert.
    pub tokens: Vec<u32>,
    /// Sum of the entropies of the tokens' softmax, in nats.
    pub entropy: f64,
}

// === impl ExpertUse ===

impl ExpertUse {
    /// Of so many layers; nothing is counted yet.
    pub fn new(gpu: &Gpu, layers: usize, experts: usize) -> Result<Self> {
        Ok(Self { experts, counts: gpu.zeros(layers * experts)?, entropies: gpu.zeros(layers * SHARES)? })
    }

    /// Adds a layer's tokens, those where `valid` is not 0.
    pub fn add(
        &self,
        layer: usize,
        routing: &GpuRouting,
        logits: &Buffer<f32>,
        valid: Option<&Buffer<f32>>,
    ) -> Result<()> {
        let (tokens, experts) = (routing.tokens(), routing.experts());
        logits.expect(OP, "logits", tokens * experts)?;
        valid.map_or(Ok(()), |valid| valid.expect(OP, "marks of real tokens", tokens))?;
        if experts != self.experts {
            return Err(Error::shape(OP, "experts", self.experts, experts));
        }
        let mut counts = self.counts.part(layer * experts..(layer + 1) * experts)?;
        let mut entropies = self.entropies.part(layer * SHARES..(layer + 1) * SHARES)?;
        let [tokens, wide, per_token] = [tokens, experts, routing.per_token()].map(|count| (count as i32).into());
        let arguments = [
            logits.into(),
            routing.chosen().into(),
            valid.into(),
            tokens,
            wide,
            per_token,
            (&mut counts).into(),
            (&mut entropies).into(),
        ];
        counts.gpu().clone().launch(variant(&USE, experts), Shape::of(SHARES as u32, THREADS), arguments)
    }

    /// What was counted, layer by layer; from then on it is counted anew.
    pub fn take(&mut self) -> Result<Vec<LayerUse>> {
        let (counts, entropies) = (self.counts.download()?, self.entropies.download()?);
        self.counts.fill_zero()?;
        self.entropies.fill_zero()?;
        let layers = counts.chunks(self.experts.max(1)).zip(entropies.chunks(SHARES));
        Ok(layers
            .map(|(tokens, shares)| LayerUse {
                tokens: tokens.to_vec(),
                entropy: shares.iter().map(|bits| f64::from_bits(*bits)).sum(),
            })
            .collect())
    }
}
