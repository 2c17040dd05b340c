//! One micro-batch, forward and backward, with the memory of one layer.
//!
//! The layers run once without a graph and leave only their inputs. The head turns the last output into the loss and
//! its gradient. Then, from the last layer back, each one runs again from its detached input, now with a graph, gets
//! the gradient of its output and gives the gradient of its input and of its adapters. Layers that keep their graph
//! ([`Recompute::None`]) skip the second run; everything else is the same code, so both give the same bits.

use std::sync::Arc;

use brightrun_kernels::dropout::splitmix;
use brightrun_kernels::moe::aux_loss;
use brightrun_kernels::seed::seed;
use candle_core::{Tensor, Var, backprop::GradStore};

use crate::adapters::{Adapters, Parameter};
use crate::batch::MicroBatch;
use crate::model::{LayerOutput, Model, Pass, PassDropout, RouterOutput};
use crate::{Error, Result};

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
    /// Seed of the dropout masks.
    pub seed: u64,
    /// Weight of the load-balancing loss, where it is on.
    pub aux_coefficient: Option<f64>,
}

/// Gradients of all parameters, summed over micro-batches.
#[derive(Debug)]
pub struct Gradients {
    parameters: Vec<Parameter>,
    values: Vec<Option<Tensor>>,
    /// For parameters of routed experts: which experts had a row.
    hits: Vec<Vec<bool>>,
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
}

// === impl Gradients ===

impl Gradients {
    /// None yet.
    pub fn new(adapters: &Adapters) -> Self {
        let parameters = adapters.parameters();
        let hits =
            parameters.iter().map(|p| vec![false; p.experts.as_ref().map_or(0, |layout| layout.experts())]).collect();
        Self { values: vec![None; parameters.len()], hits, parameters }
    }

    /// The parameters, with the gradient of each (if any reached it) and, for routed experts, who had rows.
    pub fn iter(&self) -> impl Iterator<Item = (&Parameter, Option<&Tensor>, &[bool])> {
        self.parameters.iter().zip(&self.values).zip(&self.hits).map(|((p, g), h)| (p, g.as_ref(), h.as_slice()))
    }

    /// The gradient of a parameter; zeros where none reached it.
    pub fn of(&self, var: &Var) -> Result<Tensor> {
        let found = self.parameters.iter().position(|p| p.var.id() == var.id()).and_then(|i| self.values[i].clone());
        match found {
            Some(gradient) => Ok(gradient),
            None => Ok(var.as_tensor().zeros_like()?),
        }
    }

    fn take(&mut self, store: &mut GradStore) -> Result<()> {
        for (parameter, value) in self.parameters.iter().zip(&mut self.values) {
            let Some(gradient) = store.remove(parameter.var.as_tensor()) else { continue };
            // A gradient that stays attached would keep the whole graph alive.
            let gradient = gradient.detach();
            *value = Some(match value.take() {
                Some(sum) => (sum + gradient)?,
                None => gradient,
            });
        }
        Ok(())
    }

    fn mark_hits(&mut self, layer: usize, router: &RouterOutput) {
        let path = format!("model.layers.{layer}.mlp.experts");
        for (parameter, hits) in self.parameters.iter().zip(&mut self.hits) {
            if parameter.experts.is_some() && parameter.path == path {
                hits.iter_mut().zip(router.routing.counts()).for_each(|(hit, rows)| *hit |= rows > 0);
            }
        }
    }
}

/// The key of a micro-batch's dropout masks.
fn dropout(options: &StepOptions, step: u64, micro_batch: u64) -> Option<PassDropout> {
    (options.dropout > 0.0).then(|| PassDropout {
        probability: options.dropout,
        key: splitmix(options.seed ^ splitmix(step ^ splitmix(micro_batch))),
    })
}

fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(tensor.to_scalar::<f32>()?))
}

fn check_lengths(batch: &MicroBatch) -> Result<()> {
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

/// Shares `E · f_e / rows` over all sparse layers, so that the loss is `Σ_layers Σ_t Σ_e share_e p_te`; padding is not
/// counted.
fn aux_shares(routers: &[Option<RouterOutput>], valid: &[f32]) -> Option<Arc<[f32]>> {
    let routers: Vec<_> = routers.iter().flatten().collect();
    let experts = routers.first()?.routing.experts();
    let rows = routers.len() as f64 * valid.iter().map(|v| f64::from(*v)).sum::<f64>();
    let mut counts = vec![0.0f64; experts];
    for router in routers {
        let k = router.routing.per_token();
        for (slot, &expert) in router.routing.chosen().iter().enumerate() {
            counts[expert as usize] += f64::from(valid[slot / k]);
        }
    }
    Some(counts.iter().map(|count| (experts as f64 * count / rows / rows) as f32).collect())
}

/// Forward only: the loss of a batch, and its load-balancing loss when asked for.
pub fn evaluate(model: &Model, batch: &MicroBatch, with_aux: bool) -> Result<MicroReport> {
    check_lengths(batch)?;
    let pass = model.pass(&batch.documents, None)?.without_graph();
    let mut hidden = model.embed(&batch.tokens)?;
    let mut routers = Vec::with_capacity(model.layers().len());
    for layer in model.layers() {
        let output = layer.forward(&hidden, &pass)?;
        hidden = output.hidden.detach();
        routers.push(output.router.filter(|_| with_aux));
    }
    let loss_sum = scalar(&model.loss_sum(&hidden, &batch.targets, &pass)?)?;
    let aux = match with_aux {
        true => Aux::new(&routers, &batch.documents.validity(), 0.0).map(|aux| aux.value(&routers)).transpose()?,
        false => None,
    };
    Ok(MicroReport { loss_sum, targets: batch.target_count(), aux_loss: aux })
}

/// The load-balancing loss of one micro-batch, with the shares it was found to have.
struct Aux {
    shares: Arc<[f32]>,
    valid: Arc<[f32]>,
    coefficient: f64,
}

impl Aux {
    fn new(routers: &[Option<RouterOutput>], valid: &[f32], coefficient: f64) -> Option<Self> {
        Some(Self { shares: aux_shares(routers, valid)?, valid: valid.into(), coefficient })
    }

    fn value(&self, routers: &[Option<RouterOutput>]) -> Result<f64> {
        routers
            .iter()
            .flatten()
            .try_fold(0.0, |sum, r| Ok(sum + scalar(&aux_loss(&r.logits, &self.shares, &self.valid)?)?))
    }

    /// This layer's part, as a scalar of the graph.
    fn term(&self, router: &RouterOutput) -> Result<Tensor> {
        Ok((aux_loss(&router.logits, &self.shares, &self.valid)? * self.coefficient)?)
    }
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

/// Forward and backward of one micro-batch. `targets` is the number of targets in all micro-batches of the optimiser
/// step, so that accumulated gradients are those of one large batch.
pub fn accumulate(
    model: &Model,
    batch: &MicroBatch,
    options: &StepOptions,
    position: Position,
    targets: usize,
    gradients: &mut Gradients,
) -> Result<MicroReport> {
    check_lengths(batch)?;
    if targets == 0 {
        return Err(Error::Invalid("an optimiser step without a single target token cannot be taken".into()));
    }
    let pass = model.pass(&batch.documents, dropout(options, position.step, position.micro_batch))?;
    let plain = pass.without_graph();
    let first = first_with_adapters(model);

    let mut inputs = Vec::with_capacity(model.layers().len());
    let mut kept = Vec::with_capacity(model.layers().len());
    let mut routers = Vec::with_capacity(model.layers().len());
    let mut hidden = model.embed(&batch.tokens)?;
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
        }
        routers.push(output.router.as_ref().filter(|_| options.aux_coefficient.is_some()).map(RouterOutput::detached));
        kept.push(keep.then_some(output));
        inputs.push((index >= first).then_some(input));
    }
    let share = 1.0 / position.micro_batches as f64;
    let aux = options
        .aux_coefficient
        .and_then(|coefficient| Aux::new(&routers, &batch.documents.validity(), coefficient * share));
    let report_aux = aux.as_ref().map(|aux| aux.value(&routers)).transpose()?;

    let last = Var::from_tensor(&hidden)?;
    drop(hidden);
    let loss = model.loss_sum(last.as_tensor(), &batch.targets, &pass)?;
    let report = MicroReport { loss_sum: scalar(&loss)?, targets: batch.target_count(), aux_loss: report_aux };
    let mut store = (loss * (1.0 / targets as f64))?.backward()?;
    gradients.take(&mut store)?;
    let mut upstream = store.remove(last.as_tensor());
    drop((store, last));

    for index in (first..model.layers().len()).rev() {
        let Some(input) = inputs[index].take() else { continue };
        let output = match kept[index].take() {
            Some(output) => output,
            None => model.layers()[index].forward(input.tensor(), &pass)?,
        };
        upstream = layer_backward(&input, &output, upstream, aux.as_ref(), gradients)?;
    }
    Ok(report)
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
    aux: Option<&Aux>,
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

/// The loss of a whole graph, without any of the above: what the tests compare with.
pub fn whole_graph_loss(
    model: &Model,
    batch: &MicroBatch,
    options: &StepOptions,
    position: Position,
) -> Result<Tensor> {
    let pass: Pass = model.pass(&batch.documents, dropout(options, position.step, position.micro_batch))?;
    let mut hidden = model.embed(&batch.tokens)?;
    for layer in model.layers() {
        hidden = layer.forward(&hidden, &pass)?.hidden;
    }
    model.loss_sum(&hidden, &batch.targets, &pass)
}
