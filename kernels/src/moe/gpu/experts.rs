//! The frozen experts of a layer in a GPU's memory.

use half::bf16;

use super::OP;
use super::ways::Cores;
use crate::dropout::splitmix;
use crate::gpu::{Buffer, FrozenPart, Gpu};
use crate::moe::Expert;
use crate::nf4::{
    BLOCK, GpuNf4, GpuScales, NESTED_BLOCK, Nf4Matrix, RandomScales, Reading, Scales, dynamic_map, random_scales,
};
use crate::noise::{random_bytes, uniform_bf16};
use crate::{Error, FrozenWeight, Result};

/// Values that products move at once: widths are multiples of it.
const CHUNK: usize = 8;

/// All experts of a layer, each kind of matrix in one buffer, expert after expert.
#[derive(Debug)]
pub struct GpuExperts {
    experts: usize,
    hidden: usize,
    width: usize,
    pub(super) stored: Stored,
    /// As was asked for; otherwise by the number of rows.
    pub(super) reading: Option<Reading>,
    /// As was asked for; otherwise by what the GPU has.
    pub(super) cores: Option<Cores>,
}

/// How the weights are stored.
#[derive(Debug)]
pub(super) enum Stored {
    /// bf16: `[experts, 2 · width, hidden]` with gate's rows first, and `[experts, hidden, width]`.
    Plain { gate_up: Buffer<bf16>, down: Buffer<bf16> },
    /// NF4: each expert's gate and up, and its down.
    Nf4 { gate_up: Box<Nf4Group>, down: Box<Nf4Group> },
}

/// Matrices of one size in NF4, one behind the other; each was quantised by itself.
#[derive(Debug)]
pub(super) struct Nf4Group {
    /// Values of one matrix.
    pub(super) count: usize,
    pub(super) packed: Buffer<u8>,
    pub(super) scales: GroupScales,
}

/// The absmax of every block of every matrix.
#[derive(Debug)]
pub(super) enum GroupScales {
    Plain(Buffer<f32>),
    Double { codes: Buffer<u8>, nested: Buffer<f32>, offsets: Buffer<f32>, map: Buffer<f32> },
}

// === impl GpuExperts ===

impl GpuExperts {
    /// Room for experts in NF4, with double quantisation or without, which [`GpuExperts::set`] fills.
    pub fn nf4(gpu: &Gpu, experts: usize, hidden: usize, width: usize, double: bool) -> Result<Self> {
        check(experts, hidden, width)?;
        let group = |matrices| Nf4Group::new(gpu, matrices, hidden * width, double).map(Box::new);
        let stored = Stored::Nf4 { gate_up: group(2 * experts)?, down: group(experts)? };
        Ok(Self { experts, hidden, width, stored, reading: None, cores: None })
    }

    /// Room for experts in bf16, which [`GpuExperts::set`] fills.
    pub fn plain(gpu: &Gpu, experts: usize, hidden: usize, width: usize) -> Result<Self> {
        check(experts, hidden, width)?;
        let gate_up = gpu.empty(experts * 2 * width * hidden)?;
        let stored = Stored::Plain { gate_up, down: gpu.empty(experts * hidden * width)? };
        Ok(Self { experts, hidden, width, stored, reading: None, cores: None })
    }

    /// Numbers of both signs, `limit` or less, made on the GPU: for measuring, where values do not matter. In NF4, with double
    /// quantisation or without, or in bf16.
    pub fn random(
        gpu: &Gpu,
        [experts, hidden, width]: [usize; 3],
        double: Option<bool>,
        limit: f32,
        key: u64,
    ) -> Result<Self> {
        check(experts, hidden, width)?;
        let count = hidden * width;
        let Some(double) = double else {
            let gate_up = uniform_bf16(gpu, experts * 2 * count, limit, key)?;
            let stored = Stored::Plain { gate_up, down: uniform_bf16(gpu, experts * count, limit, splitmix(key))? };
            return Ok(Self { experts, hidden, width, stored, reading: None, cores: None });
        };
        let group =
            |matrices, key| -> Result<_> { Ok(Box::new(Nf4Group::random(gpu, matrices, count, double, limit, key)?)) };
        let stored = Stored::Nf4 { gate_up: group(2 * experts, key)?, down: group(experts, splitmix(key))? };
        Ok(Self { experts, hidden, width, stored, reading: None, cores: None })
    }

    /// Copies an expert's weights, gate, up and down, which are stored as the others are.
    pub fn set(&mut self, expert: usize, weights: [&FrozenWeight; 3]) -> Result<()> {
        let (hidden, width) = (self.hidden, self.width);
        self.check_shapes(expert, weights.map(|weight| (weight.rows(), weight.columns())))?;
        match &mut self.stored {
            Stored::Nf4 { gate_up, down } => {
                let places = [(&*gate_up, 2 * expert), (&*gate_up, 2 * expert + 1), (&*down, expert)];
                for ((group, index), weight) in places.into_iter().zip(weights) {
                    let FrozenWeight::Nf4(matrix) = weight else { return Err(mixed()) };
                    group.set(index, matrix)?;
                }
            }
            Stored::Plain { gate_up, down } => {
                let count = hidden * width;
                let places = [(&*gate_up, 2 * expert), (&*gate_up, 2 * expert + 1), (&*down, expert)];
                for ((buffer, index), weight) in places.into_iter().zip(weights) {
                    let FrozenWeight::Plain { values, .. } = weight else { return Err(mixed()) };
                    let rounded: Vec<bf16> = values.iter().map(|value| bf16::from_f32(*value)).collect();
                    buffer.part(index * count..(index + 1) * count)?.upload(&rounded)?;
                }
            }
        }
        Ok(())
    }

    /// The same for weights in NF4 that are in the GPU's memory already.
    pub fn set_on_gpu(&mut self, expert: usize, weights: [&GpuNf4; 3]) -> Result<()> {
        let shapes = weights.map(|weight| (weight.rows(), weight.columns()));
        self.check_shapes(expert, shapes)?;
        let Stored::Nf4 { gate_up, down } = &self.stored else { return Err(mixed()) };
        gate_up.set_on_gpu(2 * expert, weights[0])?;
        gate_up.set_on_gpu(2 * expert + 1, weights[1])?;
        down.set_on_gpu(expert, weights[2])
    }

    /// Fails unless there is such an expert, and gate, up and down look like this.
    fn check_shapes(&self, expert: usize, found: [(usize, usize); 3]) -> Result<()> {
        if expert >= self.experts {
            return Err(Error::shape(OP, "expert", self.experts, expert));
        }
        let (hidden, width) = (self.hidden, self.width);
        let expected = [(width, hidden), (width, hidden), (hidden, width)];
        if found == expected { Ok(()) } else { Err(Error::shape(OP, "an expert's weights", expected, found)) }
    }

    /// These experts, copied to a GPU.
    pub fn of(gpu: &Gpu, experts: &[Expert]) -> Result<Self> {
        let Some(first) = experts.first() else { return Err(Error::shape(OP, "experts", "at least one", 0)) };
        let (hidden, width) = (first.hidden(), first.intermediate());
        let double = first.weights().iter().any(
            |(_, weight)| matches!(weight, FrozenWeight::Nf4(matrix) if matches!(matrix.scales(), Scales::Double { .. })),
        );
        let mut all = match first.weights()[0].1 {
            FrozenWeight::Nf4(_) => Self::nf4(gpu, experts.len(), hidden, width, double)?,
            FrozenWeight::Plain { .. } => Self::plain(gpu, experts.len(), hidden, width)?,
        };
        for (index, expert) in experts.iter().enumerate() {
            match expert.weights()[..] {
                [(_, gate), (_, up), (_, down)] => all.set(index, [gate, up, down])?,
                // Gate and up in one.
                [(_, FrozenWeight::Plain { values, .. }), (_, down)] => {
                    let half =
                        |range: std::ops::Range<usize>| FrozenWeight::plain(values[range].to_vec(), width, hidden);
                    let (gate, up) = (half(0..width * hidden)?, half(width * hidden..2 * width * hidden)?);
                    all.set(index, [&gate, &up, down])?;
                }
                _ => return Err(mixed()),
            }
        }
        Ok(all)
    }

    /// Has products read weights in NF4 in this way, however many rows there are. Only what lies in whole blocks can be
    /// decoded inside of products.
    pub fn read_by(&mut self, reading: Reading) {
        self.reading = Some(reading);
    }

    /// Everything that their values follow from: gate and up, then down.
    pub fn frozen(&self) -> [Vec<FrozenPart>; 2] {
        match &self.stored {
            Stored::Plain { gate_up, down } => [gate_up, down].map(|values| vec![FrozenPart::of("values", values)]),
            Stored::Nf4 { gate_up, down } => [gate_up.frozen(), down.frozen()],
        }
    }

    /// Has products computed by this instruction; an error where the GPU has none of that kind.
    pub fn multiply_by(&mut self, cores: Cores) -> Result<()> {
        if !cores.are_on(self.gpu()) {
            let facts = self.gpu().facts();
            let reason = format!("{} ({:?}) has no {cores:?} products", facts.name, facts.capability);
            return Err(Error::invalid(OP, reason));
        }
        self.cores = Some(cores);
        Ok(())
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Width of the residual stream.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Width between the projections.
    pub fn width(&self) -> usize {
        self.width
    }

    pub(super) fn gpu(&self) -> &Gpu {
        match &self.stored {
            Stored::Plain { down, .. } => down.gpu(),
            Stored::Nf4 { down, .. } => down.packed.gpu(),
        }
    }
}

fn check(experts: usize, hidden: usize, width: usize) -> Result<()> {
    let fits = |count: usize| count > 0 && count.is_multiple_of(CHUNK);
    if experts > 0 && fits(hidden) && fits(width) && i32::try_from(2 * hidden * width).is_ok() {
        return Ok(());
    }
    let found = (experts, hidden, width);
    Err(Error::shape(OP, "experts, hidden and width", "some experts, and widths that are multiples of 8", found))
}

fn mixed() -> Error {
    Error::invalid(OP, "experts are stored in different ways: NF4 or plain, but all of a layer alike")
}

// === impl Nf4Group ===

impl Nf4Group {
    fn random(gpu: &Gpu, matrices: usize, count: usize, double: bool, limit: f32, key: u64) -> Result<Self> {
        let blocks = count.div_ceil(BLOCK);
        let scales = if double {
            let RandomScales { codes, nested, offset } = random_scales(gpu, blocks, matrices, limit, key)?;
            let (offsets, map) = (gpu.of(&vec![offset; matrices])?, gpu.of(dynamic_map())?);
            GroupScales::Double { codes, nested, offsets, map }
        } else {
            GroupScales::Plain(gpu.of(&vec![limit; matrices * blocks])?)
        };
        Ok(Self { count, packed: random_bytes(gpu, matrices * count / 2, 0..=u8::MAX, key)?, scales })
    }

    fn frozen(&self) -> Vec<FrozenPart> {
        let packed = FrozenPart::of("packed", &self.packed);
        match &self.scales {
            GroupScales::Plain(absmax) => vec![packed, FrozenPart::of("absmax", absmax)],
            GroupScales::Double { codes, nested, offsets, map } => vec![
                packed,
                FrozenPart::of("codes", codes),
                FrozenPart::of("nested", nested),
                FrozenPart::of("offsets", offsets),
                FrozenPart::of("map", map),
            ],
        }
    }

    fn new(gpu: &Gpu, matrices: usize, count: usize, double: bool) -> Result<Self> {
        let blocks = count.div_ceil(BLOCK);
        let scales = if double {
            GroupScales::Double {
                codes: gpu.empty(matrices * blocks)?,
                nested: gpu.empty(matrices * blocks.div_ceil(NESTED_BLOCK))?,
                offsets: gpu.empty(matrices)?,
                map: gpu.of(dynamic_map())?,
            }
        } else {
            GroupScales::Plain(gpu.empty(matrices * blocks)?)
        };
        Ok(Self { count, packed: gpu.empty(matrices * count / 2)?, scales })
    }

    fn set_on_gpu(&self, index: usize, matrix: &GpuNf4) -> Result<()> {
        fn put<T: crate::gpu::Element>(all: &Buffer<T>, index: usize, values: &Buffer<T>) -> Result<()> {
            all.part(index * values.len()..(index + 1) * values.len())?.copy_from(values)
        }
        let (packed, scales) = matrix.parts();
        put(&self.packed, index, packed)?;
        match (&self.scales, scales) {
            (GroupScales::Plain(all), GpuScales::Plain(absmax)) => put(all, index, absmax),
            (
                GroupScales::Double { codes, nested, offsets, .. },
                GpuScales::Double { codes: c, nested: n, offset, .. },
            ) => {
                put(codes, index, c)?;
                put(nested, index, n)?;
                offsets.part(index..index + 1)?.upload(&[*offset])
            }
            _ => Err(mixed()),
        }
    }

    fn set(&self, index: usize, matrix: &Nf4Matrix) -> Result<()> {
        fn put<T: crate::gpu::Element>(all: &Buffer<T>, index: usize, values: &[T]) -> Result<()> {
            all.part(index * values.len()..(index + 1) * values.len())?.upload(values)
        }
        put(&self.packed, index, matrix.packed())?;
        match (&self.scales, matrix.scales()) {
            (GroupScales::Plain(all), Scales::Plain(absmax)) => put(all, index, absmax),
            (GroupScales::Double { codes, nested, offsets, .. }, Scales::Double { codes: c, nested: n, offset }) => {
                put(codes, index, c)?;
                put(nested, index, n)?;
                put(offsets, index, &[*offset])
            }
            _ => Err(mixed()),
        }
    }
}
