//! Where the inputs of layers are between the way forward and the way back.

use std::ops::Range;

use brightrun_kernels::gpu::{Buffer, Gpu, HostBuffer, Lane, Task};
use half::bf16;

use super::model::GpuModel;
use crate::Result;

/// What a step moves to memory of the host while it is not needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// Nothing.
    #[default]
    Nothing,
    /// The inputs of layers that the way back begins with: 2 bytes a value. They go out while their layer runs forward, and
    /// come back while the layer behind them is gone back through, so that two or three are in the GPU's memory.
    LayerInputs,
}

/// Memory of the host for layers' inputs: as much as the largest micro-batch took, and the same until it is not enough.
#[derive(Default)]
pub(super) struct Room {
    offload: Offload,
    host: Option<HostBuffer<bf16>>,
}

/// The inputs of one micro-batch's layers.
pub(super) struct Inputs<'a> {
    gpu: &'a Gpu,
    host: Option<&'a HostBuffer<bf16>>,
    /// Those that are kept.
    layers: Range<usize>,
    kept: Vec<Place>,
    /// The copy that is on its way out.
    out: Option<Task>,
}

enum Place {
    /// Or on its way there, while there is a task.
    Gpu(Buffer<bf16>, Option<Task>),
    Host(HostBuffer<bf16>),
}

// === impl GpuModel ===

impl GpuModel {
    /// Says what steps move to memory of the host from now on. No number depends on it.
    pub fn set_offload(&mut self, offload: Offload) {
        self.room = Room { offload, host: None };
    }
}

// === impl Room ===

impl Room {
    /// Makes room for the inputs of so many layers, each of so many values.
    pub(super) fn make(&mut self, gpu: &Gpu, layers: usize, values: usize) -> Result<()> {
        // The last one is needed at once.
        let wanted = layers.saturating_sub(1) * values;
        let have = self.host.as_ref().map_or(0, HostBuffer::len);
        if self.offload == Offload::LayerInputs && have < wanted {
            self.host = None;
            self.host = Some(gpu.pinned(wanted)?);
        }
        Ok(())
    }
}

// === impl Inputs ===

impl<'a> Inputs<'a> {
    /// For these layers.
    pub(super) fn new(gpu: &'a Gpu, room: &'a Room, layers: Range<usize>) -> Self {
        let kept = Vec::with_capacity(layers.len());
        Self { gpu, host: room.host.as_ref(), layers, kept, out: None }
    }

    /// Keeps the input of the next layer, before it is run, so that a copy goes beside it.
    pub(super) fn push(&mut self, layer: usize, input: &Buffer<bf16>) -> Result<()> {
        // One at a time: the memory of what the layer before has read is given back here.
        self.out.take().map_or(Ok(()), Task::join)?;
        if !self.layers.contains(&layer) {
            return Ok(());
        }
        let index = layer - self.layers.start;
        self.kept.push(match self.host {
            Some(host) if layer + 1 < self.layers.end => {
                let mut part = host.part(index * input.len()..(index + 1) * input.len())?;
                self.out = Some(self.gpu.beside(Lane::Copies, || part.copy_from(input))?);
                Place::Host(part)
            }
            _ => Place::Gpu(input.shared(), None),
        });
        Ok(())
    }

    /// The input of the last layer that is left. That of the layer before it is fetched meanwhile.
    pub(super) fn pop(&mut self) -> Result<Option<Buffer<bf16>>> {
        self.out.take().map_or(Ok(()), Task::join)?;
        let Some(place) = self.kept.pop() else { return Ok(None) };
        let (input, coming) = self.on_gpu(place)?;
        coming.map_or(Ok(()), Task::join)?;
        if let Some(before) = self.kept.pop() {
            let (input, coming) = self.on_gpu(before)?;
            self.kept.push(Place::Gpu(input, coming));
        }
        Ok(Some(input))
    }

    fn on_gpu(&self, place: Place) -> Result<(Buffer<bf16>, Option<Task>)> {
        let from = match place {
            Place::Gpu(input, coming) => return Ok((input, coming)),
            Place::Host(from) => from,
        };
        let mut input = self.gpu.empty(from.len())?;
        let task = self.gpu.beside(Lane::Copies, || input.copy_from_host(&from))?;
        Ok((input, Some(task)))
    }
}
