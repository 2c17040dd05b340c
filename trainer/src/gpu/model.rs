//! A model in a GPU's memory.

use brightrun_kernels::Documents;
use brightrun_kernels::embedding::GpuEmbedding;
use brightrun_kernels::gpu::Gpu;
use brightrun_kernels::lora_linear::gpu::GpuWeight;
use brightrun_kernels::moe::ExpertUse;
use brightrun_kernels::rope::{GpuRopeTable, RopeTable};

use super::adapters::GpuAdapters;
use super::head::Head;
use super::inputs::Room;
use super::layer::Layer;
use super::load::{Loader, Source};
use super::pass::Pass;
use crate::adapters::Adapters;
use crate::config::{MlpKind, ModelConfig};
use crate::model::PassDropout;
use crate::step::ExpertCounts;
use crate::weights::BasePrecision;
use crate::{Error, Result};

/// Positions the rotation table starts with; it grows with the longest document.
const FIRST_POSITIONS: usize = 512;

/// A causal language model with its adapters in a GPU's memory.
pub struct GpuModel {
    pub(super) gpu: Gpu,
    pub(super) config: ModelConfig,
    pub(super) embedding: GpuEmbedding,
    pub(super) layers: Vec<Layer>,
    pub(super) head: Head,
    pub(super) adapters: GpuAdapters,
    /// How experts were used since that was asked for, and by how many tokens.
    pub(super) uses: (ExpertUse, u64),
    pub(super) room: Room,
    rope: GpuRopeTable,
}

// === impl GpuModel ===

impl GpuModel {
    /// The base in the given precision (bf16 where it is not quantised), with these adapters attached.
    pub fn load(
        gpu: &Gpu,
        config: &ModelConfig,
        source: Source<'_>,
        precision: &BasePrecision,
        adapters: &Adapters,
    ) -> Result<Self> {
        let on_gpu = GpuAdapters::of(gpu, adapters)?;
        let loader = Loader { gpu, config, source, precision, adapters, on_gpu: &on_gpu };
        let (words, width) = (config.vocab_size, config.hidden_size);
        let embedding = loader.matrix("model.embed_tokens.weight", words, width)?;
        let head = match config.tie_word_embeddings {
            true => {
                let weight = GpuWeight::bf16(embedding.shared(), words, width)?;
                loader.linear_of("lm_head", weight, false)?
            }
            false => loader.linear("lm_head", words, width, false)?,
        };
        let head = Head { norm: loader.norm("model.norm")?, linear: head };
        let layers = (0..config.layers.len()).map(|index| Layer::load(&loader, index)).collect::<Result<_>>()?;
        let rope = rope(gpu, config, FIRST_POSITIONS)?;
        let embedding = GpuEmbedding::new(embedding, words)?;
        let uses = (ExpertUse::new(gpu, config.layers.len(), config.moe.experts)?, 0);
        let (gpu, config, room) = (gpu.clone(), config.clone(), Room::default());
        Ok(Self { gpu, config, embedding, layers, head, adapters: on_gpu, uses, room, rope })
    }

    /// The adapters, where they learn.
    pub fn adapters(&self) -> &GpuAdapters {
        &self.adapters
    }

    /// The adapters, to be cleared or changed; whoever changes values calls [`GpuModel::refresh`].
    pub fn adapters_mut(&mut self) -> &mut GpuAdapters {
        &mut self.adapters
    }

    /// Copies the values of routed experts' adapters to where products read them.
    pub fn refresh(&mut self) -> Result<()> {
        let adapters = &self.adapters;
        let mut own = self.layers.iter_mut().filter_map(Layer::expert_adapter_mut);
        own.try_for_each(|adapter| adapter.refresh(adapters))
    }

    /// How the routed experts were used by the micro-batches since this was asked for the last time.
    pub fn take_expert_counts(&mut self) -> Result<ExpertCounts> {
        let (uses, rows) = &mut self.uses;
        let mut counts = ExpertCounts::default();
        for (layer, (kind, own)) in self.config.layers.iter().zip(uses.take()?).enumerate() {
            if kind.mlp == MlpKind::Sparse {
                counts.add_counted(layer, &own.tokens, own.entropy, *rows);
            }
        }
        *rows = 0;
        Ok(counts)
    }

    /// Makes room for the rotations of the longest document.
    pub(super) fn prepare(&mut self, documents: &Documents) -> Result<()> {
        let longest = documents.iter().map(|document| document.len()).max().unwrap_or(0);
        let most = self.config.max_position_embeddings;
        if longest > most {
            return Err(Error::Invalid(format!(
                "a document of {longest} tokens is longer than the model's {most} positions; shorten max_seq_length"
            )));
        }
        if self.rope.positions() < longest {
            self.rope = rope(&self.gpu, &self.config, longest.next_power_of_two())?;
        }
        Ok(())
    }

    /// Prepares a pass over a packed row that [`GpuModel::prepare`] has seen.
    pub(super) fn pass(&self, documents: &Documents, dropout: Option<PassDropout>) -> Result<Pass<'_>> {
        Pass::new(&self.gpu, documents, &self.rope, &self.adapters, dropout)
    }
}

fn rope(gpu: &Gpu, config: &ModelConfig, positions: usize) -> Result<GpuRopeTable> {
    let attention = &config.attention;
    Ok(GpuRopeTable::of(gpu, &RopeTable::new(attention.rotary_dim, attention.rope_theta, positions)?)?)
}
