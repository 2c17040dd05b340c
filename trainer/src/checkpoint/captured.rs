//! What a checkpoint will hold, copied from the run at one moment.

use safetensors::Dtype;
use serde::Serialize;

use super::{
    MAX_METRICS_BYTES, MAX_PROGRESS_BYTES,
    manifest::{MAX_STEP, METRICS, PROGRESS},
    tensors::{self, Array, Shape},
};
use crate::{
    Error, Result,
    adapters::{Adapters, Parameter},
    optim::{OptimizerState, StatePart, StateValues},
};

/// Copies of everything that a run goes on from. Made between two steps on the thread that takes them; writing it is
/// another thread's work.
#[derive(Debug)]
pub struct Captured {
    pub(super) step: u64,
    pub(super) best: bool,
    pub(super) adapter: Arrays,
    pub(super) optimizer: Arrays,
    pub(super) progress: Vec<u8>,
    pub(super) metrics: Vec<u8>,
}

/// The content of a file of arrays.
#[derive(Debug)]
pub(super) struct Arrays {
    header: Vec<u8>,
    arrays: Vec<Array>,
}

// === impl Captured ===

impl Captured {
    /// After so many steps. `progress` is whatever the caller needs to know to go on; numbers in it come back bit by bit,
    /// but one that is not finite becomes `null`. `metrics` is what was measured so far.
    pub fn take(
        step: u64,
        adapters: &Adapters,
        optimizer: &dyn OptimizerState,
        progress: &impl Serialize,
        metrics: &[u8],
    ) -> Result<Self> {
        if step > MAX_STEP {
            return Err(Error::Invalid(format!("step {step}: a checkpoint counts to {MAX_STEP}")));
        }
        let progress = serde_json::to_vec_pretty(progress)
            .map_err(|error| Error::Invalid(format!("the progress of the run cannot be written: {error}")))?;
        within(PROGRESS, progress.len(), MAX_PROGRESS_BYTES)?;
        within(METRICS, metrics.len(), MAX_METRICS_BYTES)?;
        let parameters = adapters.parameters();
        let values =
            |parameter: &Parameter, shape| Ok(Array { shape, values: StateValues::Floats(parameter.values()?) });
        let adapter = parameters.iter().zip(adapter_shapes(&parameters)).map(|(p, shape)| values(p, shape));
        let state = optimizer_places(&parameters, optimizer)
            .map(|(index, part, shape)| Ok(Array { shape, values: optimizer.part(index, part)? }));
        Ok(Self {
            step,
            best: false,
            adapter: Arrays::new(adapter.collect::<Result<_>>()?)?,
            optimizer: Arrays::new(state.collect::<Result<_>>()?)?,
            progress,
            metrics: metrics.to_vec(),
        })
    }

    /// Marks the run as better here than at any step before: this checkpoint is kept until another one is marked.
    #[must_use]
    pub fn best(self) -> Self {
        Self { best: true, ..self }
    }

    /// The optimiser steps that were taken.
    pub fn step(&self) -> u64 {
        self.step
    }
}

fn within(name: &str, bytes: usize, most: u64) -> Result<()> {
    if bytes as u64 <= most {
        return Ok(());
    }
    Err(Error::Invalid(format!("{name} would have {bytes} bytes; a checkpoint holds at most {most}")))
}

/// The arrays of an adapter, in the order of its file.
pub(super) fn adapter_shapes(parameters: &[Parameter]) -> Vec<Shape> {
    let shape = |parameter: &Parameter| Shape {
        name: parameter.name.clone(),
        dtype: Dtype::F32,
        shape: parameter.var.dims().to_vec(),
    };
    parameters.iter().map(shape).collect()
}

/// The arrays of an optimiser's state, in the order of its file: part by part, so that all are aligned to their type.
pub(super) fn optimizer_places<'a>(
    parameters: &'a [Parameter],
    optimizer: &'a dyn OptimizerState,
) -> impl Iterator<Item = (usize, StatePart, Shape)> + 'a {
    optimizer.parts().iter().flat_map(move |&part| {
        parameters.iter().enumerate().map(move |(index, parameter)| {
            let (dtype, count) = optimizer.part_layout(index, part);
            let name = format!("{}.{}", parameter.name, part.name());
            (index, part, Shape { name, dtype, shape: vec![count] })
        })
    })
}

// === impl Arrays ===

impl Arrays {
    fn new(arrays: Vec<Array>) -> Result<Self> {
        let header = tensors::header(arrays.iter().map(|array| &array.shape))?;
        Ok(Self { header, arrays })
    }

    pub(super) fn write(&self, file: &mut dyn std::io::Write) -> std::io::Result<()> {
        tensors::write(file, &self.header, &self.arrays)
    }
}
