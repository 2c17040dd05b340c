//! One micro-batch, forward and backward, with the memory of one layer.
//!
//! The layers run once without a graph and leave only their inputs. The head turns the last output into the loss and
//! its gradient. Then, from the last layer back, each one runs again from its detached input, now with a graph, gets
//! the gradient of its output and gives the gradient of its input and of its adapters. Layers that keep their graph
//! ([`Recompute::None`]) skip the second run; everything else is the same code, so both give the same bits.

mod expert_use;
mod gradients;
mod load_balancing;
pub(crate) mod noise;

use std::time::Duration;

use brightrun_kernels::dropout::splitmix;
use brightrun_kernels::seed::seed;
use candle_core::{Tensor, Var};

use crate::batch::MicroBatch;
use crate::clock::{Clock, Still};
use crate::model::{LayerOutput, Model, PassDropout, RouterOutput};
use crate::{Error, Result};
use load_balancing::LoadBalancing;

pub use expert_use::{ExpertCounts, LayerCounts};
pub use gradients::Gradients;

/// What is kept of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recompute {
    /// Only every layer's input: least memory.
    Layers,
    /// Every layer's graph: fastest, for models small enough.
    None,
}

/// How a step is computed; the same for a whole run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOptions {
    /// What is kept of the forward pass.
    pub recompute: Recompute,
    /// Dropout on the LoRA path.
    pub dropout: f32,
    /// Seed of the dropout masks and the noise.
    pub seed: u64,
    /// Noise on the embeddings (NEFTune); 0 for none.
    pub neftune_alpha: f32,
    /// Weight of the load-balancing loss, where it is on.
    pub aux_coefficient: Option<f64>,
}

// === impl StepOptions ===

impl StepOptions {
    /// The dropout of a micro-batch: its masks follow from the seed and the position alone.
    pub fn pass_dropout(&self, position: Position) -> Option<PassDropout> {
        (self.dropout > 0.0).then(|| PassDropout { probability: self.dropout, key: self.key(position) })
    }

    /// Everything random of a micro-batch follows from this.
    pub(crate) fn key(&self, position: Position) -> u64 {
        splitmix(self.seed ^ splitmix(position.step ^ splitmix(position.micro_batch)))
    }
}

/// What one micro-batch gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MicroReport {
    /// Sum of the cross-entropies.
    pub loss_sum: f64,
    /// Number of targets in the sum.
    pub targets: usize,
    /// Load-balancing loss, where it is on (without its coefficient).
    pub aux_loss: Option<f64>,
    /// Time of the forward pass and the loss.
    pub forward: Duration,
    /// Time of the backward pass.
    pub backward: Duration,
}

fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(tensor.to_scalar::<f32>()?))
}

pub(crate) fn check_lengths(batch: &MicroBatch) -> Result<()> {
    let tokens = batch.documents.tokens();
    if batch.tokens.len() != tokens || batch.targets.len() != tokens {
        return Err(Error::Invalid(format!(
            "a micro-batch of {tokens} places has {} tokens and {} targets",
            batch.tokens.len(),
            batch.targets.len()
        )));
    }
    Ok(())
}

/// Forward only: the loss of a batch, and its load-balancing loss when asked for.
pub fn evaluate(model: &Model, batch: &MicroBatch, with_aux: bool) -> Result<MicroReport> {
    evaluate_adapted(model, batch, with_aux, true)
}

/// [`evaluate`] with the adapters, or without them as the base model.
pub fn evaluate_adapted(model: &Model, batch: &MicroBatch, with_aux: bool, adapted: bool) -> Result<MicroReport> {
    check_lengths(batch)?;
    let pass = model.pass(&batch.documents, None)?.without_graph().with_adapters(adapted);
    let mut hidden = model.embed(&batch.tokens)?;
    let mut routers = Vec::with_capacity(model.layers().len());
    for layer in model.layers() {
        let output = layer.forward(&hidden, &pass)?;
        hidden = output.hidden.detach();
        routers.push(output.router.filter(|_| with_aux));
    }
    let loss_sum = scalar(&model.loss_sum(&hidden, &batch.targets, &pass)?)?;
    let aux = match with_aux {
        true => {
            LoadBalancing::new(&routers, &batch.documents.validity(), 0.0).map(|aux| aux.value(&routers)).transpose()?
        }
        false => None,
    };
    let (forward, backward) = Default::default();
    Ok(MicroReport { loss_sum, targets: batch.target_count(), aux_loss: aux, forward, backward })
}

/// Position of a micro-batch in its optimiser step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Optimiser step, counted from 0.
    pub step: u64,
    /// Micro-batch of the step, counted from 0.
    pub micro_batch: u64,
    /// Micro-batches of the step.
    pub micro_batches: u64,
}

/// [`accumulate_timed`] where nobody asks for the time.
pub fn accumulate(
    model: &Model,
    batch: &MicroBatch,
    options: &StepOptions,
    position: Position,
    targets: usize,
    gradients: &mut Gradients,
) -> Result<MicroReport> {
    accumulate_timed(model, batch, options, position, targets, gradients, &Still)
}

/// Forward and backward of one micro-batch. `targets` is the number of targets in all micro-batches of the optimiser
/// step, so that accumulated gradients are those of one large batch.
pub fn accumulate_timed(
    model: &Model,
    batch: &MicroBatch,
    options: &StepOptions,
    position: Position,
    targets: usize,
    gradients: &mut Gradients,
    clock: &dyn Clock,
) -> Result<MicroReport> {
    let begin = clock.elapsed();
    check_lengths(batch)?;
    if targets == 0 {
        return Err(Error::Invalid("an optimiser step without a single target token cannot be taken".into()));
    }
    let pass = model.pass(&batch.documents, options.pass_dropout(position))?;
    let plain = pass.without_graph();
    let first = first_with_adapters(model);

    let mut inputs = Vec::with_capacity(model.layers().len());
    let mut kept = Vec::with_capacity(model.layers().len());
    let mut routers = Vec::with_capacity(model.layers().len());
    let validity = batch.documents.validity();
    let mut hidden = model.embed(&batch.tokens)?;
    if options.neftune_alpha > 0.0 {
        hidden = noise::add(&hidden, &batch.documents, options.neftune_alpha, options.key(position))?;
    }
    for (index, layer) in model.layers().iter().enumerate() {
        let keep = options.recompute == Recompute::None && index >= first;
        let input = LayerInput::new(hidden, index > first)?;
        let output = match keep {
            true => layer.forward(input.tensor(), &pass)?,
            false => layer.forward(input.detached(), &plain)?,
        };
        hidden = output.hidden.detach();
        if let Some(router) = &output.router {
            gradients.mark_hits(index, router);
            gradients.experts.add(index, router, &validity)?;
        }
        routers.push(output.router.as_ref().filter(|_| options.aux_coefficient.is_some()).map(RouterOutput::detached));
        kept.push(keep.then_some(output));
        inputs.push((index >= first).then_some(input));
    }
    let share = 1.0 / position.micro_batches as f64;
    let aux =
        options.aux_coefficient.and_then(|coefficient| LoadBalancing::new(&routers, &validity, coefficient * share));
    let report_aux = aux.as_ref().map(|aux| aux.value(&routers)).transpose()?;

    let last = Var::from_tensor(&hidden)?;
    drop(hidden);
    let loss = model.loss_sum(last.as_tensor(), &batch.targets, &pass)?;
    let loss_sum = scalar(&loss)?;
    let forward = clock.elapsed().saturating_sub(begin);
    let mut store = (loss * (1.0 / targets as f64))?.backward()?;
    gradients.take(&mut store)?;
    let mut upstream = store.remove(last.as_tensor());
    drop((store, last));

    for index in (first..model.layers().len()).rev() {
        let Some(input) = inputs[index].take() else { continue };
        pass.go_on()?;
        let output = match kept[index].take() {
            Some(output) => output,
            None => model.layers()[index].forward(input.tensor(), &pass)?,
        };
        upstream = layer_backward(&input, &output, upstream, aux.as_ref(), gradients)?;
    }
    let backward = clock.elapsed().saturating_sub(begin + forward);
    Ok(MicroReport { loss_sum, targets: batch.target_count(), aux_loss: report_aux, forward, backward })
}

/// Layers before the first one that learns need no gradient at all.
fn first_with_adapters(model: &Model) -> usize {
    model.layers().iter().position(|layer| layer.is_adapted()).unwrap_or(model.layers().len())
}

/// A layer's input: a leaf of its graph where its gradient is wanted, a constant otherwise.
enum LayerInput {
    Leaf { var: Var, plain: Tensor },
    Constant(Tensor),
}

impl LayerInput {
    fn new(hidden: Tensor, wanted: bool) -> Result<Self> {
        if !wanted {
            return Ok(Self::Constant(hidden));
        }
        let var = Var::from_tensor(&hidden)?;
        Ok(Self::Leaf { plain: var.as_detached_tensor(), var })
    }

    fn tensor(&self) -> &Tensor {
        match self {
            Self::Leaf { var, .. } => var.as_tensor(),
            Self::Constant(tensor) => tensor,
        }
    }

    fn detached(&self) -> &Tensor {
        match self {
            Self::Leaf { plain, .. } => plain,
            Self::Constant(tensor) => tensor,
        }
    }
}

/// Gives a layer's graph the gradient of its output; returns that of its input where it was a leaf.
fn layer_backward(
    input: &LayerInput,
    output: &LayerOutput,
    upstream: Option<Tensor>,
    aux: Option<&LoadBalancing>,
    gradients: &mut Gradients,
) -> Result<Option<Tensor>> {
    let mut root = match &upstream {
        Some(upstream) => Some(seed(&output.hidden, upstream)?),
        None => None,
    };
    if let (Some(aux), Some(router)) = (aux, &output.router) {
        let term = aux.term(router)?;
        root = Some(match root {
            Some(root) => (root + term)?,
            None => term,
        });
    }
    let Some(root) = root else { return Ok(None) };
    let mut store = root.backward()?;
    gradients.take(&mut store)?;
    Ok(match input {
        LayerInput::Leaf { var, .. } => store.remove(var.as_tensor()).map(|g| g.detach()),
        LayerInput::Constant(_) => None,
    })
}
