//! Taking steps and comparing what they gave.

use anyhow::{Context, Result};
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::batch::MicroBatch;
use brightrun_trainer::lora::AdapterTensors;
use brightrun_trainer::model::Model;
use brightrun_trainer::step::{Gradients, Position, Recompute, StepOptions, accumulate};

/// No dropout, no load-balancing loss, layers recomputed.
pub const PLAIN: StepOptions =
    StepOptions { recompute: Recompute::Layers, dropout: 0.0, seed: 7, neftune_alpha: 0.0, aux_coefficient: None };

/// What the micro-batches of one optimiser step gave.
#[derive(Debug)]
pub struct Outcome {
    /// Sum of the cross-entropies.
    pub loss_sum: f64,
    /// Targets of all micro-batches.
    pub targets: usize,
    /// Mean of the micro-batches' load-balancing losses.
    pub aux_loss: Option<f64>,
    /// Gradients by parameter.
    pub gradients: Gradients,
    /// The same by module.
    pub by_module: AdapterTensors,
}

/// One optimiser step's gradients, accumulated over micro-batches.
pub fn gradients(model: &Model, adapters: &Adapters, batches: &[MicroBatch], options: &StepOptions) -> Result<Outcome> {
    let mut gradients = Gradients::new(adapters);
    let targets = batches.iter().map(MicroBatch::target_count).sum();
    let (mut loss_sum, mut aux_loss) = (0.0, None);
    for (index, batch) in batches.iter().enumerate() {
        let position = Position { step: 0, micro_batch: index as u64, micro_batches: batches.len() as u64 };
        let report = accumulate(model, batch, options, position, targets, &mut gradients)?;
        loss_sum += report.loss_sum;
        if let Some(aux) = report.aux_loss {
            *aux_loss.get_or_insert(0.0) += aux / batches.len() as f64;
        }
    }
    let by_module = adapters.split(|var| gradients.of(var))?;
    Ok(Outcome { loss_sum, targets, aux_loss, gradients, by_module })
}

/// The largest difference of any matrix as a share of that matrix's largest expected value, and where it is.
pub fn worst_difference(found: &AdapterTensors, expected: &AdapterTensors) -> Result<(f64, String)> {
    anyhow::ensure!(found.keys().eq(expected.keys()), "the adapted modules differ");
    let mut worst = (0.0, String::new());
    for (path, expected) in expected {
        let found = found.get(path).with_context(|| path.clone())?;
        for (name, f, e) in [("A", &found.a, &expected.a), ("B", &found.b, &expected.b)] {
            let share = crate::golden::share_of_maximum(&f.values, &e.values);
            if share.is_nan() || share > worst.0 {
                worst = (share, format!("{path}.{name}"));
            }
            if share.is_nan() {
                return Ok(worst);
            }
        }
    }
    Ok(worst)
}

/// The parameters whose gradient is missing or, in the part of a routed expert that had rows, all zero.
pub fn without_gradient(outcome: &Outcome) -> Result<Vec<String>> {
    let mut silent = Vec::new();
    for (parameter, gradient, hits) in outcome.gradients.iter() {
        let Some(gradient) = gradient else {
            silent.push(parameter.path.clone());
            continue;
        };
        let values = gradient.flatten_all()?.to_vec1::<f32>()?;
        let zero = |values: &[f32]| values.iter().all(|value| *value == 0.0);
        match &parameter.experts {
            None if zero(&values) => silent.push(parameter.path.clone()),
            None => {}
            Some(layout) => {
                let dead = (0..layout.experts()).filter(|e| hits[*e] && zero(&values[layout.range(*e)]));
                silent.extend(dead.map(|expert| format!("{}.{expert}", parameter.path)));
            }
        }
    }
    Ok(silent)
}
