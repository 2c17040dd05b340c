//! AdamW of many tensors beside the CPU's, to the bit: values, moments, copies and counts, over several steps of which one
//! has no finite norm; and the state taken out, put into another one, and gone on with.

use half::bf16;

use super::{Checks, EXACT, Sizes};
use crate::adamw::{self, GpuAdamW, GpuParameter, Gradients, Hyper, MomentKind, MomentPart, MomentValues, Moments};
use crate::gpu::Buffer;
use crate::self_test::values::narrow;
use crate::{Error, Result};

const HYPER: Hyper = Hyper { learning_rate: 2e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 };
const SMALL: [usize; 10] = [1, 255, 0, 256, 257, 7, 1000, 2, 3001, 640];
const REAL: [usize; 7] = [1, 16_777_216, 0, 61_440, 1_000_003, 255, 8];
const STEPS: u64 = 5;
/// The step whose gradients had no norm.
const BROKEN: u64 = 3;
const PARTS: [(&str, MomentPart); 4] = [
    ("first moments", MomentPart::First),
    ("second moments", MomentPart::Second),
    ("first scales", MomentPart::FirstScale),
    ("second scales", MomentPart::SecondScale),
];

/// What the CPU has, and the same on the GPU.
struct Both {
    rates: Vec<f64>,
    values: Vec<Vec<f32>>,
    /// Moments and number of updates of each.
    states: Vec<(Moments, u64)>,
    on_gpu: Vec<Buffer<f32>>,
    gradients: Vec<Buffer<f32>>,
    copies: Vec<Option<Buffer<bf16>>>,
    hits: Vec<Option<Buffer<u32>>>,
}

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    let lengths: &[usize] = if checks.sizes == Sizes::Small { &SMALL } else { &REAL };
    for (kind, name) in [(MomentKind::Full, "32-bit"), (MomentKind::Blockwise, "8-bit")] {
        // β1 below a half: the mean starts from the gradient.
        for (beta1, clear) in [(0.9, Gradients::Clear), (0.4, Gradients::Keep)] {
            checks.case(format!("adamw, {name} moments, beta1 {beta1}"));
            follow(checks, lengths, kind, &Hyper { beta1, ..HYPER }, clear)?;
        }
    }
    Ok(())
}

fn follow(
    checks: &mut Checks<'_>,
    lengths: &[usize],
    kind: MomentKind,
    hyper: &Hyper,
    gradients: Gradients,
) -> Result<()> {
    let mut both = Both::new(checks, lengths, kind)?;
    let mut optimizer = GpuAdamW::new(checks.gpu, kind, hyper, both.parameters(), STEPS)?;
    optimizer.write_copies()?;
    for step in 1..=STEPS {
        let hyper = Hyper { learning_rate: hyper.learning_rate / step as f64, ..*hyper };
        let factor = if step == BROKEN { f32::NAN } else { 0.75 };
        let given = both.give_gradients(checks, step)?;
        optimizer.set_learning_rate(hyper.learning_rate)?;
        optimizer.step(&checks.gpu.of(&[factor])?, gradients)?;
        let taken = if step == BROKEN { vec![false; lengths.len()] } else { both.step(&given, factor, &hyper, step)? };
        let left = |(given, taken): (&Vec<f32>, &bool)| -> Vec<f32> {
            let cleared = gradients == Gradients::Clear && *taken;
            given.iter().map(|value| if cleared { 0.0 } else { *value }).collect()
        };
        let left: Vec<Vec<f32>> = given.iter().zip(&taken).map(left).collect();
        checks.compare_values("gradients", &downloaded(&both.gradients)?, &joined(&left), EXACT);
        if step == 2 {
            // Another one goes on with what this one knew.
            let before = optimizer;
            optimizer = GpuAdamW::new(checks.gpu, kind, &hyper, both.parameters(), STEPS)?;
            for tensors in [0..1, 1..lengths.len()] {
                for (_, part) in PARTS {
                    optimizer.set_moments(part, tensors.clone(), &before.moments(part, tensors.clone())?)?;
                }
                optimizer.set_updates(tensors.start, &before.updates(tensors)?)?;
            }
        }
    }
    both.compare(checks, &optimizer)
}

// === impl Both ===

impl Both {
    fn new(checks: &mut Checks<'_>, lengths: &[usize], kind: MomentKind) -> Result<Self> {
        let values: Vec<Vec<f32>> = lengths.iter().map(|&count| narrow(&checks.random.values(count))).collect();
        let gpu = checks.gpu;
        // Some begin where 16 bytes at a time cannot be read, some have no copy, some rows were counted.
        let place = |(index, values): (usize, &Vec<f32>)| {
            let offset = [0, 1, 4][index % 3];
            let mut part = gpu.zeros(offset + values.len())?.part(offset..offset + values.len())?;
            part.upload(values)?;
            Ok(part)
        };
        let numbered = |count: usize| (0..lengths.len()).map(move |index| (index, lengths[index], count));
        Ok(Self {
            rates: (0..lengths.len()).map(|index| if index % 4 == 1 { 16.0 } else { 1.0 }).collect(),
            on_gpu: values.iter().enumerate().map(place).collect::<Result<_>>()?,
            gradients: lengths.iter().map(|&count| gpu.zeros(count)).collect::<Result<_>>()?,
            copies: numbered(0)
                .map(|(index, count, _)| (index % 5 != 4).then(|| gpu.empty(count)).transpose())
                .collect::<Result<_>>()?,
            hits: numbered(1)
                .map(|(index, _, count)| (index % 3 == 0).then(|| gpu.zeros(count)).transpose())
                .collect::<Result<_>>()?,
            states: lengths.iter().map(|&count| (fresh(kind, count), 0)).collect(),
            values,
        })
    }

    fn parameters(&self) -> Vec<GpuParameter> {
        let parameter = |index: usize| GpuParameter {
            values: self.on_gpu[index].shared(),
            gradient: self.gradients[index].shared(),
            copy: self.copies[index].as_ref().map(Buffer::shared),
            rate: self.rates[index],
            hits: self.hits[index].as_ref().map(Buffer::shared),
        };
        (0..self.values.len()).map(parameter).collect()
    }

    /// Gradients of many sizes, and rows for one tensor in two of those that count them.
    fn give_gradients(&mut self, checks: &mut Checks<'_>, step: u64) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::new();
        for (index, (values, gradient)) in self.values.iter().zip(&mut self.gradients).enumerate() {
            let mut given = narrow(&checks.random.values(values.len()));
            for (i, value) in given.iter_mut().enumerate() {
                *value *= if (i as u64 + step).is_multiple_of(3) { 0.0 } else { 10f32.powi(-(i as i32 % 6)) };
            }
            gradient.upload(&given)?;
            if let Some(hits) = &mut self.hits[index] {
                hits.upload(&[u32::from(has_rows(index, step)) * 7])?;
            }
            all.push(given);
        }
        Ok(all)
    }

    /// The step on the CPU; says which tensors took it.
    fn step(&mut self, gradients: &[Vec<f32>], factor: f32, hyper: &Hyper, step: u64) -> Result<Vec<bool>> {
        let mut taken = Vec::new();
        for (index, gradient) in gradients.iter().enumerate() {
            let takes = self.hits[index].is_none() || has_rows(index, step);
            if takes {
                let (moments, updates) = &mut self.states[index];
                *updates += 1;
                let hyper = Hyper { learning_rate: hyper.learning_rate * self.rates[index], ..*hyper };
                adamw::step(&mut self.values[index], gradient, moments, *updates, factor, &hyper)?;
            }
            taken.push(takes);
        }
        Ok(taken)
    }

    fn compare(&self, checks: &mut Checks<'_>, optimizer: &GpuAdamW) -> Result<()> {
        checks.compare_values("values", &downloaded(&self.on_gpu)?, &joined(&self.values), EXACT);
        let mut found = Vec::new();
        let mut expected = Vec::new();
        for (copy, values) in self.copies.iter().zip(&self.values) {
            if let Some(copy) = copy {
                found.extend(copy.download()?);
                expected.extend(values.iter().map(|value| bf16::from_f32(*value).to_f64()));
            }
        }
        checks.compare_values("copies", &found, &expected, EXACT);
        let tensors = 0..self.states.len();
        let updates: Vec<f64> = self.states.iter().map(|(_, updates)| *updates as f64).collect();
        let found: Vec<f64> = optimizer.updates(tensors.clone())?.into_iter().map(|updates| updates as f64).collect();
        checks.compare_values("updates", &found, &updates, EXACT);
        for (what, part) in PARTS {
            let expected: Vec<f64> = self.states.iter().flat_map(|(moments, _)| values(moments, part)).collect();
            let found: Vec<f64> = match optimizer.moments(part, tensors.clone())? {
                MomentValues::Floats(values) => values.into_iter().map(f64::from).collect(),
                MomentValues::Codes(values) => values.into_iter().map(f64::from).collect(),
            };
            if optimizer.moment_count(part, tensors.clone())? != expected.len() {
                return Err(Error::invalid("adamw", "another number of moments than there are"));
            }
            if !expected.is_empty() || !found.is_empty() {
                checks.compare_values(what, &found, &expected, EXACT);
            }
        }
        let refused = optimizer.moments(MomentPart::First, 1..self.states.len() + 1).is_err();
        if !refused { Err(Error::invalid("adamw", "the state of a tensor that there is not")) } else { Ok(()) }
    }
}

fn has_rows(index: usize, step: u64) -> bool {
    (index as u64 + step).is_multiple_of(2)
}

fn fresh(kind: MomentKind, count: usize) -> Moments {
    match kind {
        MomentKind::Full => Moments::full(count),
        MomentKind::Blockwise => Moments::blockwise(count),
    }
}

fn downloaded(buffers: &[Buffer<f32>]) -> Result<Vec<f32>> {
    let all: Result<Vec<_>> = buffers.iter().map(Buffer::download).collect();
    Ok(all?.concat())
}

fn joined(values: &[Vec<f32>]) -> Vec<f64> {
    values.iter().flatten().map(|value| f64::from(*value)).collect()
}

/// One of the arrays of moments.
fn values(moments: &Moments, part: MomentPart) -> Vec<f64> {
    let floats = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect();
    let codes = |values: &[u8]| values.iter().map(|value| f64::from(*value)).collect();
    match (moments, part) {
        (Moments::Full { m, .. }, MomentPart::First) => floats(m),
        (Moments::Full { v, .. }, MomentPart::Second) => floats(v),
        (Moments::Full { .. }, _) => Vec::new(),
        (Moments::Blockwise { m, .. }, MomentPart::First) => codes(m),
        (Moments::Blockwise { v, .. }, MomentPart::Second) => codes(v),
        (Moments::Blockwise { m_scale, .. }, MomentPart::FirstScale) => floats(m_scale),
        (Moments::Blockwise { v_scale, .. }, MomentPart::SecondScale) => floats(v_scale),
    }
}
