//! Trainable parameters in a GPU's memory: values in `f32`, their gradients, and the bf16 copies that products read.
//!
//! All values lie in one buffer and all gradients in another, so that gradients are cleared by one call; each parameter begins
//! at a multiple of 512 bytes.

use std::collections::BTreeMap;

use brightrun_kernels::gpu::{Buffer, Gpu};
use half::bf16;

use crate::adapters::{Adapters, Parameter};
use crate::{Error, Result};

/// Parameters begin at multiples of so many values.
const GRAIN: usize = 128;

/// One trainable tensor of [`Adapters`] on a GPU.
#[derive(Debug)]
pub struct Trained {
    /// The same on the host: its name, and whose it is.
    pub parameter: Parameter,
    /// The values.
    pub values: Buffer<f32>,
    /// The sum of the gradients of all micro-batches since it was cleared.
    pub gradient: Buffer<f32>,
    /// The values rounded to bf16; those of routed experts are copied to other places, by their layer.
    pub copy: Option<Buffer<bf16>>,
    /// For routed experts: the rows that each one had since gradients were cleared.
    pub hits: Option<Buffer<u32>>,
}

/// All trainable parameters on a GPU.
#[derive(Debug)]
pub struct GpuAdapters {
    trained: Vec<Trained>,
    by_name: BTreeMap<String, usize>,
    gradients: Buffer<f32>,
    hits: Buffer<u32>,
}

// === impl GpuAdapters ===

impl GpuAdapters {
    /// The parameters with their values, in the order of [`Adapters::parameters`].
    pub fn of(gpu: &Gpu, adapters: &Adapters) -> Result<Self> {
        let parameters = adapters.parameters();
        let (mut places, mut next) = (Vec::new(), 0);
        let (mut hit_places, mut experts) = (Vec::new(), 0);
        for parameter in &parameters {
            places.push(next..next + parameter.var.elem_count());
            next = (next + parameter.var.elem_count()).next_multiple_of(GRAIN);
            let own = parameter.experts.as_ref().map_or(0, |layout| layout.experts());
            hit_places.push(experts..experts + own);
            experts += own;
        }
        let (values, gradients) = (gpu.zeros::<f32>(next)?, gpu.zeros::<f32>(next)?);
        let hits = gpu.zeros::<u32>(experts)?;
        let mut trained = Vec::with_capacity(parameters.len());
        for ((parameter, place), hit_place) in parameters.into_iter().zip(places).zip(hit_places) {
            let values = values.part(place.clone())?;
            let has_experts = parameter.experts.is_some();
            let copy = (!has_experts).then(|| gpu.empty::<bf16>(place.len())).transpose()?;
            let hits = has_experts.then(|| hits.part(hit_place)).transpose()?;
            let mut trainable = Trained { parameter, values, gradient: gradients.part(place)?, copy, hits };
            trainable.upload()?;
            trained.push(trainable);
        }
        let by_name = trained.iter().enumerate().map(|(index, one)| (one.parameter.name.clone(), index)).collect();
        Ok(Self { trained, by_name, gradients, hits })
    }

    /// All of them, in the order of [`Adapters::parameters`].
    pub fn trained(&self) -> &[Trained] {
        &self.trained
    }

    /// The number of the parameter with this name.
    pub(super) fn find(&self, name: &str) -> Result<usize> {
        self.by_name.get(name).copied().ok_or_else(|| Error::Invalid(format!("there is no parameter {name}")))
    }

    /// A matrix of a dense linear, under its name: what products read, and where its gradient is added.
    pub(super) fn dense(&self, name: &str) -> Result<(Buffer<bf16>, Buffer<f32>)> {
        let trained = self.get(self.find(name)?)?;
        let copy = trained.copy.as_ref().ok_or_else(|| Error::Invalid(format!("{name} is no matrix of a linear")))?;
        Ok((copy.shared(), trained.gradient.shared()))
    }

    pub(super) fn get(&self, index: usize) -> Result<&Trained> {
        self.trained.get(index).ok_or_else(|| Error::Invalid(format!("there is no parameter {index}")))
    }

    /// Makes all gradients zero, and forgets which experts had rows.
    pub fn clear_gradients(&mut self) -> Result<()> {
        self.gradients.fill_zero()?;
        Ok(self.hits.fill_zero()?)
    }

    /// Takes the values of the host again.
    pub fn upload(&mut self) -> Result<()> {
        self.trained.iter_mut().try_for_each(Trained::upload)
    }

    /// Gives the values to the host, where files and checkpoints are written from.
    pub fn write_back(&self) -> Result<()> {
        self.trained.iter().try_for_each(|one| one.parameter.set_values(&one.values.download()?))
    }
}

// === impl Trained ===

impl Trained {
    fn upload(&mut self) -> Result<()> {
        let values = self.parameter.values()?;
        self.values.upload(&values)?;
        if let Some(copy) = &mut self.copy {
            let rounded: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
            copy.upload(&rounded)?;
        }
        Ok(())
    }
}
