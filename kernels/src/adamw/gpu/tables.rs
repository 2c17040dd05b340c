//! What the kernels look up: the tensors, the constants of a step, and the maps of the 8-bit moments.

use super::super::cpu::{Scalars, correction};
use super::{GpuParameter, Hyper, OP};
use crate::gpu::{Buffer, Gpu};
use crate::nf4::DynamicMap;
use crate::{Error, Result};

/// Codes that are uploaded at a time.
const UPLOAD: usize = 1 << 24;

/// Of each tensor the addresses of its values, gradient, copy and hits (0 for none), its length, and the number of its
/// rate; and all rates.
pub(super) fn tensors(parameters: &[GpuParameter]) -> (Vec<u64>, Vec<f64>) {
    let (mut table, mut rates) = (Vec::new(), Vec::new());
    for GpuParameter { values, gradient, copy, rate, hits } in parameters {
        let kind = rates.iter().position(|known| known == rate).unwrap_or_else(|| {
            rates.push(*rate);
            rates.len() - 1
        });
        let copy = copy.as_ref().map_or(0, Buffer::address);
        let hits = hits.as_ref().map_or(0, Buffer::address);
        table.extend([values.address(), gradient.address(), copy, values.len() as u64, hits, kind as u64]);
    }
    (table, rates)
}

/// For each rate the learning rate (`f64`) and the factor of the values (`f32`), as bits.
pub(super) fn rates(hyper: &Hyper, rates: &[f64]) -> Result<Vec<u64>> {
    let mut all = Vec::with_capacity(2 * rates.len());
    for rate in rates {
        let hyper = Hyper { learning_rate: hyper.learning_rate * rate, ..*hyper };
        all.extend([hyper.learning_rate.to_bits(), u64::from(Scalars::new(1, 1.0, &hyper)?.decay.to_bits())]);
    }
    Ok(all)
}

/// What is the same in all steps.
pub(super) fn method(hyper: &Hyper) -> Result<[f32; 5]> {
    let Scalars { lerp, beta2, gain2, epsilon, from_gradient, .. } = Scalars::new(1, 1.0, hyper)?;
    Ok([lerp, beta2, gain2, epsilon, f32::from(u8::from(from_gradient))])
}

/// Codes, limits and buckets of the signed and the unsigned map, each at a multiple of 16; the unsigned one is never
/// asked for values below 0.
pub(super) fn maps() -> Vec<u8> {
    let (signed, unsigned) = (DynamicMap::signed(), DynamicMap::unsigned());
    let ((signed_limits, signed_buckets), (unsigned_limits, unsigned_buckets)) = (signed.search(), unsigned.search());
    let mut bytes = Vec::new();
    for floats in [signed.codes(), unsigned.codes(), signed_limits, unsigned_limits] {
        bytes.extend(floats.iter().flat_map(|value| value.to_le_bytes()));
    }
    for buckets in [signed_buckets, &unsigned_buckets[..unsigned_buckets.len() / 2]] {
        bytes.extend_from_slice(buckets);
        bytes.resize(bytes.len().next_multiple_of(16), 0);
    }
    bytes
}

/// Memory full of one code.
pub(super) fn filled(gpu: &Gpu, code: u8, count: usize) -> Result<Buffer<u8>> {
    let buffer = gpu.empty(count)?;
    let codes = vec![code; count.min(UPLOAD)];
    for begin in (0..count).step_by(UPLOAD) {
        let end = count.min(begin + UPLOAD);
        buffer.part(begin..end)?.upload(&codes[..end - begin])?;
    }
    Ok(buffer)
}

/// `1 - β1^t` and `sqrt(1 - β2^t)` for every number of updates that can be.
#[derive(Debug)]
pub(super) struct Corrections {
    buffer: Buffer<u64>,
    last: u64,
    /// Later ones are those of the last number.
    complete: bool,
    /// No tensor had more updates.
    reached: u64,
}

// === impl Corrections ===

impl Corrections {
    pub(super) fn new(gpu: &Gpu, hyper: &Hyper, steps: u64) -> Result<Self> {
        let mut table = vec![0, 0];
        let (mut last, mut complete) = (0, false);
        while last < steps.min(i32::MAX as u64) && !complete {
            last += 1;
            let (first, second) = (correction(hyper.beta1, last), correction(hyper.beta2, last));
            table.extend([first.to_bits(), u64::from((second.sqrt() as f32).to_bits())]);
            complete = first == 1.0 && second == 1.0;
        }
        Ok(Self { buffer: gpu.of(&table)?, last, complete, reached: 0 })
    }

    /// Number of updates of the last entry.
    pub(super) fn last(&self) -> i32 {
        self.last as i32
    }

    pub(super) fn buffer(&self) -> &Buffer<u64> {
        &self.buffer
    }

    /// One more update of any tensor.
    pub(super) fn go_on(&mut self) -> Result<()> {
        if self.reached >= self.last && !self.complete {
            return Err(Error::invalid(OP, format!("more steps than the {} that were meant", self.last)));
        }
        self.reached += 1;
        Ok(())
    }

    /// A tensor had so many updates.
    pub(super) fn reach(&mut self, updates: u64) {
        self.reached = self.reached.max(updates);
    }
}
