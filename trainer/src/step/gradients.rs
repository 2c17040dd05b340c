//! The gradients of an optimiser step, summed over its micro-batches.

use candle_core::{Tensor, Var, backprop::GradStore};

use super::expert_use::ExpertCounts;
use crate::Result;
use crate::adapters::{Adapters, Parameter};
use crate::model::RouterOutput;
use crate::weights::expert_list;

/// Gradients of all parameters and the use of the experts, summed over micro-batches.
#[derive(Debug)]
pub struct Gradients {
    parameters: Vec<Parameter>,
    values: Vec<Option<Tensor>>,
    /// For parameters of routed experts: which experts had a row.
    hits: Vec<Vec<bool>>,
    pub(super) experts: ExpertCounts,
}

// === impl Gradients ===

impl Gradients {
    /// None yet.
    pub fn new(adapters: &Adapters) -> Self {
        let parameters = adapters.parameters();
        let hits =
            parameters.iter().map(|p| vec![false; p.experts.as_ref().map_or(0, |layout| layout.experts())]).collect();
        Self { values: vec![None; parameters.len()], hits, parameters, experts: ExpertCounts::default() }
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

    /// How the routed experts were used.
    pub fn experts(&self) -> &ExpertCounts {
        &self.experts
    }

    /// The same, and the gradients are gone.
    pub(crate) fn into_experts(self) -> ExpertCounts {
        self.experts
    }

    pub(super) fn take(&mut self, store: &mut GradStore) -> Result<()> {
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

    pub(super) fn mark_hits(&mut self, layer: usize, router: &RouterOutput) {
        let path = expert_list(layer);
        for (parameter, hits) in self.parameters.iter().zip(&mut self.hits) {
            if parameter.experts.is_some() && parameter.path == path {
                hits.iter_mut().zip(router.routing.counts()).for_each(|(hit, rows)| *hit |= rows > 0);
            }
        }
    }
}

#[cfg(test)]
impl Gradients {
    /// By the numbers of a parameter and of a value in it: its gradient, none where the first value has none; and which
    /// experts had a row.
    pub(crate) fn given(
        adapters: &Adapters,
        gradient: impl Fn(usize, usize) -> Option<f32>,
        hit: impl Fn(usize) -> bool,
    ) -> Self {
        let mut all = Self::new(adapters);
        for (index, (parameter, value)) in all.parameters.iter().zip(&mut all.values).enumerate() {
            let values: Option<Vec<f32>> = (0..parameter.var.elem_count()).map(|at| gradient(index, at)).collect();
            *value =
                values.map(|values| Tensor::from_vec(values, parameter.var.shape(), parameter.var.device()).unwrap());
        }
        for hits in &mut all.hits {
            hits.iter_mut().enumerate().for_each(|(expert, own)| *own = hit(expert));
        }
        all
    }
}
