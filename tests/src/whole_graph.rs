//! A micro-batch as one graph through the whole model, with a load-balancing loss of plain tensor operations: what the
//! layer-by-layer step is compared with.

use anyhow::Result;
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::batch::MicroBatch;
use brightrun_trainer::lora::AdapterTensors;
use brightrun_trainer::model::{Model, PassDropout, RouterOutput};
use candle_core::{DType, Device, Tensor};

/// The two losses of a micro-batch, as scalars of one graph.
#[derive(Debug)]
pub struct Losses {
    /// Sum of the cross-entropies.
    pub sum: Tensor,
    /// The load-balancing loss.
    pub load_balancing: Tensor,
}

/// Runs a micro-batch.
pub fn losses(model: &Model, batch: &MicroBatch, dropout: Option<PassDropout>) -> Result<Losses> {
    let pass = model.pass(&batch.documents, dropout)?;
    let mut hidden = model.embed(&batch.tokens)?;
    let mut routers = Vec::new();
    for layer in model.layers() {
        let output = layer.forward(&hidden, &pass)?;
        hidden = output.hidden;
        routers.extend(output.router);
    }
    let sum = model.loss_sum(&hidden, &batch.targets, &pass)?;
    Ok(Losses { sum, load_balancing: load_balancing_loss(&routers, &batch.documents.validity())? })
}

/// `E · Σ_e f_e P_e`, with `f_e` the share of places given to expert `e` and `P_e` its mean probability, over the real
/// tokens of all layers.
fn load_balancing_loss(routers: &[RouterOutput], valid: &[f32]) -> Result<Tensor> {
    let experts = routers.first().map_or(0, |router| router.routing.experts());
    let rows = valid.iter().sum::<f32>() * routers.len() as f32;
    let mask = Tensor::from_vec(valid.to_vec(), (valid.len(), 1), &Device::Cpu)?;
    let mut counts = vec![0.0f32; experts];
    let mut mean = Tensor::zeros(experts, DType::F32, &Device::Cpu)?;
    for router in routers {
        let per_token = router.routing.per_token();
        let chosen = router.routing.chosen().iter().enumerate();
        chosen.for_each(|(slot, &expert)| counts[expert as usize] += valid[slot / per_token]);
        let top = router.logits.max_keepdim(1)?.detach();
        let exponentials = router.logits.broadcast_sub(&top)?.exp()?;
        let probabilities = exponentials.broadcast_div(&exponentials.sum_keepdim(1)?)?;
        mean = (mean + (probabilities.broadcast_mul(&mask)?.sum(0)? / f64::from(rows))?)?;
    }
    let share: Vec<f32> = counts.iter().map(|count| count / rows * experts as f32).collect();
    Ok((mean * Tensor::from_vec(share, experts, &Device::Cpu)?)?.sum_all()?)
}

/// The gradient of a loss, by module; zero where none arrives.
pub fn gradient(adapters: &Adapters, loss: &Tensor) -> Result<AdapterTensors> {
    let store = loss.backward()?;
    Ok(adapters.split(|var| Ok(store.get(var).cloned().map_or_else(|| var.as_tensor().zeros_like(), Ok)?))?)
}
