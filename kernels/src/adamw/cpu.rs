//! AdamW on the CPU: one pass over all arrays, written so that the compiler vectorises it, in chunks of fixed size
//! spread over the threads. All levels give the same bits.

use rayon::prelude::*;

use super::{Hyper, MOMENT_BLOCK, OP};
use crate::fast_math::Level;
use crate::nf4::DynamicMap;
use crate::{Error, Result};

/// Values that one task updates; a multiple of [`MOMENT_BLOCK`].
const CHUNK: usize = 1 << 14;

/// All scalars of a step, computed in `f64` and rounded once, as PyTorch hands them to its loops.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scalars {
    level: Level,
    gradient_scale: f32,
    pub(super) decay: f32,
    /// `torch.lerp` starts from the nearer end: from `m`, or (β1 ≤ 0.5) from the gradient.
    pub(super) from_gradient: bool,
    pub(super) lerp: f32,
    pub(super) beta2: f32,
    pub(super) gain2: f32,
    root_correction2: f32,
    pub(super) epsilon: f32,
    step_size: f32,
}

/// What a moment that began as 0 lacks after so many updates.
pub(super) fn correction(beta: f64, updates: u64) -> f64 {
    1.0 - beta.powf(updates as f64)
}

impl Scalars {
    pub(super) fn new(step: u64, gradient_scale: f32, hyper: &Hyper) -> Result<Self> {
        hyper.check()?;
        if step == 0 {
            return Err(Error::invalid(OP, "steps count from 1"));
        }
        if !gradient_scale.is_finite() {
            let reason = format!("the gradient's factor is {gradient_scale}: its norm was not finite");
            return Err(Error::invalid(OP, reason));
        }
        let weight = (1.0 - hyper.beta1) as f32;
        let from_gradient = weight >= 0.5;
        Ok(Self {
            level: Level::best(),
            gradient_scale,
            decay: (1.0 - hyper.learning_rate * hyper.weight_decay) as f32,
            from_gradient,
            lerp: if from_gradient { weight - 1.0 } else { weight },
            beta2: hyper.beta2 as f32,
            gain2: (1.0 - hyper.beta2) as f32,
            root_correction2: correction(hyper.beta2, step).sqrt() as f32,
            epsilon: hyper.epsilon as f32,
            step_size: -(hyper.learning_rate / correction(hyper.beta1, step)) as f32,
        })
    }

    /// The same step with other instructions.
    #[cfg(test)]
    pub(super) fn at(self, level: Level) -> Self {
        Self { level, ..self }
    }

    #[inline(always)]
    fn update(&self, parameter: &mut f32, gradient: f32, m: &mut f32, v: &mut f32) {
        let gradient = gradient * self.gradient_scale;
        let base = if self.from_gradient { gradient } else { *m };
        *m = self.lerp.mul_add(gradient - *m, base);
        *v = (gradient * self.gain2).mul_add(gradient, *v * self.beta2);
        let denominator = v.sqrt() / self.root_correction2 + self.epsilon;
        *parameter = *parameter * self.decay + (self.step_size * *m) / denominator;
    }
}

// === 32-bit moments ===

pub(super) fn step_full(parameters: &mut [f32], gradient: &[f32], m: &mut [f32], v: &mut [f32], scalars: &Scalars) {
    if parameters.len() <= CHUNK {
        return full_chunk(parameters, gradient, m, v, scalars);
    }
    parameters
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
        .for_each(|((parameters, gradient), (m, v))| full_chunk(parameters, gradient, m, v, scalars));
}

fn full_chunk(parameters: &mut [f32], gradient: &[f32], m: &mut [f32], v: &mut [f32], scalars: &Scalars) {
    scalars.level.run(
        #[inline(always)]
        || full_loop(parameters, gradient, m, v, scalars),
    );
}

#[inline(always)]
fn full_loop(parameters: &mut [f32], gradient: &[f32], m: &mut [f32], v: &mut [f32], scalars: &Scalars) {
    for (((parameter, &gradient), m), v) in parameters.iter_mut().zip(gradient).zip(m).zip(v) {
        scalars.update(parameter, gradient, m, v);
    }
}

// === 8-bit moments ===

pub(super) fn step_blockwise(
    parameters: &mut [f32],
    gradient: &[f32],
    (m, m_scale): (&mut [u8], &mut [f32]),
    (v, v_scale): (&mut [u8], &mut [f32]),
    scalars: &Scalars,
) {
    const BLOCKS: usize = CHUNK / MOMENT_BLOCK;
    let maps = (DynamicMap::signed(), DynamicMap::unsigned());
    parameters
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(m.par_chunks_mut(CHUNK).zip(m_scale.par_chunks_mut(BLOCKS)))
        .zip(v.par_chunks_mut(CHUNK).zip(v_scale.par_chunks_mut(BLOCKS)))
        .for_each(|(((parameters, gradient), (m, m_scale)), (v, v_scale))| {
            let tensors = parameters.chunks_mut(MOMENT_BLOCK).zip(gradient.chunks(MOMENT_BLOCK));
            let m = m.chunks_mut(MOMENT_BLOCK).zip(m_scale);
            let v = v.chunks_mut(MOMENT_BLOCK).zip(v_scale);
            for (((parameters, gradient), m), v) in tensors.zip(m).zip(v) {
                step_block(parameters, gradient, m, v, maps, scalars);
            }
        });
}

/// Codes and scale of one moment of one block.
type Block<'a> = (&'a mut [u8], &'a mut f32);

fn step_block(
    parameters: &mut [f32],
    gradient: &[f32],
    m: Block,
    v: Block,
    maps: (&DynamicMap, &DynamicMap),
    scalars: &Scalars,
) {
    scalars.level.run(
        #[inline(always)]
        || block_loop(parameters, gradient, m, v, maps, scalars),
    );
}

/// Decodes the moments, steps in `f32` and encodes them again.
#[inline(always)]
fn block_loop(
    parameters: &mut [f32],
    gradient: &[f32],
    (m, m_scale): Block,
    (v, v_scale): Block,
    (signed, unsigned): (&DynamicMap, &DynamicMap),
    scalars: &Scalars,
) {
    let (mut m_values, mut v_values) = ([0f32; MOMENT_BLOCK], [0f32; MOMENT_BLOCK]);
    let (m_values, v_values) = (&mut m_values[..m.len()], &mut v_values[..v.len()]);
    decode(signed, m, *m_scale, m_values);
    decode(unsigned, v, *v_scale, v_values);
    full_loop(parameters, gradient, m_values, v_values, scalars);
    *m_scale = encode(signed, m_values, m);
    *v_scale = encode(unsigned, v_values, v);
    for (code, value) in v.iter_mut().zip(v_values) {
        *code = (*code).max(u8::from(*value > 0.0));
    }
}

#[inline(always)]
fn decode(map: &DynamicMap, codes: &[u8], scale: f32, values: &mut [f32]) {
    for (value, &code) in values.iter_mut().zip(codes) {
        *value = map.codes()[usize::from(code)] * scale;
    }
}

/// Writes the nearest codes and returns the scale. A block of zeros has the scale 0, and 1 in its place to divide by.
#[inline(always)]
fn encode(map: &DynamicMap, values: &[f32], codes: &mut [u8]) -> f32 {
    // The bits of magnitudes sort like the magnitudes, and what is not finite sorts above: it cannot hide.
    let bits = values.iter().fold(0, |greatest, value| greatest.max(value.to_bits() & 0x7fff_ffff));
    let scale = f32::from_bits(bits);
    let divisor = if scale == 0.0 { 1.0 } else { scale };
    for (code, &value) in codes.iter_mut().zip(values) {
        *code = map.nearest(value / divisor);
    }
    scale
}
