//! The experts' LoRA matrices as products read them: bf16, with ranks padded to what tensor cores take.

use half::bf16;

use super::OP;
use crate::gpu::{Buffer, Gpu, Kernel, Shape};
use crate::moe::{ExpertLoraLayout, ExpertProjection};
use crate::{Error, Result};

const COPY: Kernel = Kernel::new(
    "moe_lora_copy",
    "const f32*, const u32*, const u32*, const f32*, i32, i32, i32, i32, i32, bf16*, bf16*",
);
const THREADS: u32 = 256;
/// Ranks come in pieces of so many.
const PIECE: usize = 16;

/// The LoRA matrices of a layer's experts. The parameter itself is one flat `f32` buffer in the order of an
/// [`ExpertLoraLayout`]; here are its bf16 copies, which [`GpuExpertLora::refresh`] makes anew after every step.
#[derive(Debug)]
pub struct GpuExpertLora {
    values: usize,
    hidden: usize,
    width: usize,
    /// Gate, up and down.
    pub(super) projections: [GpuProjection; 3],
    /// `A` of gate and of up beside each other: `[experts, both ranks, hidden]`.
    pub(super) gate_up_a: Buffer<bf16>,
    /// `[experts, rank, width]`.
    pub(super) down_a: Buffer<bf16>,
}

/// One projection of all experts.
#[derive(Debug)]
pub(super) struct GpuProjection {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// The largest rank, padded; 0 where no expert is adapted.
    pub(super) rank: usize,
    /// Where each expert's `A` begins in the flat parameter, with `B` behind it.
    pub(super) places: Buffer<u32>,
    /// Each expert's own rank, 0 where it is not adapted.
    pub(super) ranks: Buffer<u32>,
    pub(super) scales: Buffer<f32>,
    /// `scale · B`: `[experts, outputs, rank]`.
    pub(super) b: Buffer<bf16>,
}

// === impl GpuExpertLora ===

impl GpuExpertLora {
    /// Room for the matrices of this layout.
    pub fn new(gpu: &Gpu, layout: &ExpertLoraLayout, hidden: usize, width: usize) -> Result<Self> {
        if i32::try_from(layout.len()).is_err() {
            return Err(Error::shape(OP, "values of the experts' LoRA", i32::MAX, layout.len()));
        }
        let experts = layout.experts();
        let of = |which: usize| {
            (0..experts).map(move |expert| {
                let own = layout.expert(expert);
                [&own.gate, &own.up, &own.down][which].as_ref()
            })
        };
        let projection =
            |which, inputs, outputs| GpuProjection::new(gpu, of(which).collect::<Vec<_>>(), inputs, outputs);
        let projections = [projection(0, hidden, width)?, projection(1, hidden, width)?, projection(2, width, hidden)?];
        let [gate, up, down] = [0, 1, 2].map(|which| projections[which].rank);
        Ok(Self {
            values: layout.len(),
            hidden,
            width,
            gate_up_a: gpu.empty(experts * (gate + up) * hidden)?,
            down_a: gpu.empty(experts * down * width)?,
            projections,
        })
    }

    /// Copies the parameter.
    pub fn refresh(&mut self, parameter: &Buffer<f32>) -> Result<()> {
        parameter.expect(OP, "values of the experts' LoRA", self.values)?;
        let [gate, up, down] = &mut self.projections;
        let both = gate.rank + up.rank;
        let (of_gate, of_down) = (gate.rank, down.rank);
        gate.copy(parameter, &mut self.gate_up_a, both, 0)?;
        up.copy(parameter, &mut self.gate_up_a, both, of_gate)?;
        down.copy(parameter, &mut self.down_a, of_down, 0)
    }

    /// Number of values of the flat parameter.
    pub fn len(&self) -> usize {
        self.values
    }

    /// Whether no expert is adapted.
    pub fn is_empty(&self) -> bool {
        self.values == 0
    }

    /// Padded ranks of gate, up and down.
    pub(super) fn ranks(&self) -> [usize; 3] {
        [0, 1, 2].map(|which| self.projections[which].rank)
    }

    pub(super) fn expect(&self, experts: usize, hidden: usize, width: usize) -> Result<()> {
        let found = (self.projections[0].ranks.len(), self.hidden, self.width);
        if found == (experts, hidden, width) {
            Ok(())
        } else {
            Err(Error::shape(OP, "LoRA of experts, hidden and width", (experts, hidden, width), found))
        }
    }
}

// === impl GpuProjection ===

impl GpuProjection {
    fn new(gpu: &Gpu, all: Vec<Option<&ExpertProjection>>, inputs: usize, outputs: usize) -> Result<Self> {
        if let Some(own) = all.iter().flatten().find(|own| own.b.start != own.a.end) {
            return Err(Error::shape(OP, "B behind its A", own.a.end, own.b.start));
        }
        let column = |of: &dyn Fn(&ExpertProjection) -> usize| -> Vec<u32> {
            all.iter().map(|own| own.map_or(0, |own| of(own) as u32)).collect()
        };
        let ranks = column(&|own| own.rank);
        let rank = (ranks.iter().max().map_or(0, |rank| *rank as usize)).next_multiple_of(PIECE);
        let scales: Vec<f32> = all.iter().map(|own| own.map_or(0.0, |own| own.scale)).collect();
        Ok(Self {
            inputs,
            outputs,
            rank,
            places: gpu.of(&column(&|own| own.a.start))?,
            ranks: gpu.of(&ranks)?,
            scales: gpu.of(&scales)?,
            b: gpu.empty(all.len() * outputs * rank)?,
        })
    }

    fn copy(&mut self, parameter: &Buffer<f32>, a: &mut Buffer<bf16>, width: usize, first: usize) -> Result<()> {
        if self.rank == 0 {
            return Ok(());
        }
        let gpu = parameter.gpu();
        let pairs = self.rank * (self.inputs + self.outputs) / 2;
        let shape = Shape::grid([pairs.div_ceil(THREADS as usize) as u32, self.ranks.len() as u32, 1], THREADS);
        let [inputs, outputs, rank, width, first] =
            [self.inputs, self.outputs, self.rank, width, first].map(|count| (count as i32).into());
        let arguments = [
            parameter.into(),
            (&self.places).into(),
            (&self.ranks).into(),
            (&self.scales).into(),
            inputs,
            outputs,
            rank,
            width,
            first,
            a.into(),
            (&mut self.b).into(),
        ];
        gpu.launch(&COPY, shape, arguments)
    }
}
