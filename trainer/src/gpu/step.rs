//! One micro-batch, forward and backward: [`crate::step`] on a GPU.

use brightrun_kernels::embedding::TokenIds;
use brightrun_kernels::gpu::Buffer;
use brightrun_kernels::moe::LoadSums;
use brightrun_kernels::noise;
use half::bf16;

use super::inputs::Inputs;
use super::mlp::Balancing;
use super::model::GpuModel;
use super::pass::Pass;
use crate::batch::MicroBatch;
use crate::clock::Clock;
use crate::step::noise::{magnitudes, own_key};
use crate::step::{MicroReport, Position, StepOptions, check_lengths};
use crate::{Error, Result};

/// What the routers of all layers did.
struct Load {
    sums: LoadSums,
    layers: usize,
}

impl GpuModel {
    /// Forward only: the loss of a batch, with the adapters, or without them as the base model.
    pub fn evaluate(&mut self, batch: &MicroBatch, adapted: bool) -> Result<MicroReport> {
        check_lengths(batch)?;
        self.prepare(&batch.documents)?;
        let mut pass = self.pass(&batch.documents, None)?;
        pass.adapted = adapted;
        let mut hidden = self.embed(&batch.tokens)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, &pass)?.0;
        }
        let mut sum = self.gpu.of(&[0f64.to_bits()])?;
        self.head.loss(&hidden, &batch.targets, None, &mut sum, &pass)?;
        report(batch, &sum, None)
    }

    /// Forward and backward of one micro-batch; gradients are added to those of the adapters. `targets` is the number of
    /// targets in all micro-batches of the optimiser step.
    pub fn accumulate(
        &mut self,
        batch: &MicroBatch,
        options: &StepOptions,
        position: Position,
        targets: usize,
        clock: &dyn Clock,
    ) -> Result<MicroReport> {
        let begin = clock.elapsed();
        check_lengths(batch)?;
        if targets == 0 {
            return Err(Error::Invalid("an optimiser step without a single target token cannot be taken".into()));
        }
        self.prepare(&batch.documents)?;
        let first = self.first_with_adapters();
        let values = batch.tokens.len() * self.config.hidden_size;
        self.room.make(&self.gpu, self.layers.len() - first, values)?;
        let pass = self.pass(&batch.documents, options.pass_dropout(position))?;
        let mut hidden = self.embed(&batch.tokens)?;
        if options.neftune_alpha > 0.0 {
            let magnitudes = magnitudes(&batch.documents, self.config.hidden_size, options.neftune_alpha);
            noise::add_rows(&mut hidden, &self.gpu.of(&magnitudes)?, own_key(options.key(position)))?;
        }
        let mut load = match options.aux_coefficient {
            Some(_) => Some(Load { sums: LoadSums::new(&self.gpu, self.config.moe.experts)?, layers: 0 }),
            None => None,
        };
        let valid = self.gpu.of(&batch.documents.validity())?;
        let mut inputs = Inputs::new(&self.gpu, &self.room, first..self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            inputs.push(index, &hidden)?;
            let (out, tape) = layer.forward(&hidden, &pass)?;
            if let Some(router) = tape.router() {
                if let Some(hits) = self.hits(index)? {
                    router.routing.add_counts(&mut hits.shared())?;
                }
                self.uses.0.add(index, &router.routing, &router.logits, Some(&valid))?;
                if let Some(load) = &mut load {
                    load.sums.add(&router.routing, &router.logits, Some(&valid))?;
                    load.layers += 1;
                }
            }
            drop(tape);
            hidden = out;
        }
        let (balance, aux) = match load.zip(options.aux_coefficient) {
            Some((load, coefficient)) if load.layers > 0 => {
                let factor = (coefficient / position.micro_batches as f64) as f32;
                let (balance, aux) = load.finish(valid, real_tokens(batch), factor)?;
                (Some(balance), Some(aux))
            }
            _ => (None, None),
        };
        let mut sum = self.gpu.of(&[0f64.to_bits()])?;
        let scale = 1.0 / targets as f64;
        let upstream = self.head.loss(&hidden, &batch.targets, Some(scale as f32), &mut sum, &pass)?;
        drop(hidden);
        let mut upstream = upstream.ok_or_else(|| Error::Invalid("the head made no gradient".into()))?;
        let forward = clock.elapsed().saturating_sub(begin);
        for index in (first..self.layers.len()).rev() {
            let Some(input) = inputs.pop()? else { continue };
            upstream = self.layer_backward(index, &input, &upstream, balance.as_ref(), &pass)?;
        }
        drop(upstream);
        let mut report = report(batch, &sum, aux.as_ref())?;
        self.uses.1 += real_tokens(batch) as u64;
        report.forward = forward;
        report.backward = clock.elapsed().saturating_sub(begin + forward);
        Ok(report)
    }

    fn layer_backward(
        &self,
        index: usize,
        input: &Buffer<bf16>,
        upstream: &Buffer<bf16>,
        balance: Option<&Balancing>,
        pass: &Pass<'_>,
    ) -> Result<Buffer<bf16>> {
        let layer = &self.layers[index];
        let tape = layer.forward_again(input, pass)?;
        layer.backward(input, tape, upstream, balance, pass)
    }

    /// The embeddings of tokens, `[N, hidden]`.
    fn embed(&self, tokens: &[u32]) -> Result<Buffer<bf16>> {
        let ids = TokenIds::of(&self.gpu, tokens, self.config.vocab_size)?;
        let mut rows = self.gpu.empty(tokens.len() * self.config.hidden_size)?;
        self.embedding.forward(&ids, &mut rows)?;
        Ok(rows)
    }

    /// Layers before the first one that learns need no gradient at all.
    fn first_with_adapters(&self) -> usize {
        self.layers.iter().position(|layer| layer.is_adapted()).unwrap_or(self.layers.len())
    }

    /// Where the rows of a layer's experts are counted, if these learn.
    fn hits(&self, layer: usize) -> Result<Option<&Buffer<u32>>> {
        match self.layers[layer].expert_adapter() {
            Some(adapter) => Ok(self.adapters.get(adapter.parameter)?.hits.as_ref()),
            None => Ok(None),
        }
    }
}

impl Load {
    /// The loss, and what the backward pass needs of it.
    fn finish(self, valid: Buffer<f32>, real: usize, factor: f32) -> Result<(Balancing, Buffer<f32>)> {
        let (shares, loss) = self.sums.shares((self.layers * real) as f32)?;
        Ok((Balancing { shares, valid, factor }, loss))
    }
}

/// Tokens that are no padding.
fn real_tokens(batch: &MicroBatch) -> usize {
    batch.documents.iter().map(|document| document.valid_end - document.start).sum()
}

/// Waits for all of it.
fn report(batch: &MicroBatch, sum: &Buffer<u64>, aux: Option<&Buffer<f32>>) -> Result<MicroReport> {
    let aux_loss = aux.map(|aux| aux.download()).transpose()?.map(|aux| f64::from(aux[0]));
    let loss_sum = f64::from_bits(sum.download()?[0]);
    let (forward, backward) = Default::default();
    Ok(MicroReport { loss_sum, targets: batch.target_count(), aux_loss, forward, backward })
}
