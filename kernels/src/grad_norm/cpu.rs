//! Sums of squares in chunks of fixed size and lanes of fixed number: the same additions in the same order on every
//! processor and any number of threads.

use rayon::prelude::*;

/// Values that one task adds.
const CHUNK: usize = 1 << 16;

/// Independent sums inside a chunk, enough to fill the vector units.
const LANES: usize = 32;

/// Instructions to use.
#[derive(Debug, Clone, Copy)]
pub(super) enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// All levels this processor has, the best one last.
    pub(super) fn available() -> impl Iterator<Item = Self> {
        let levels = [
            Some(Self::Portable),
            #[cfg(target_arch = "x86_64")]
            is_x86_feature_detected!("avx512f").then_some(Self::Avx512),
        ];
        levels.into_iter().flatten()
    }
}

pub(super) fn sum_of_squares(values: &[f32]) -> f64 {
    sum_of_squares_at(Level::available().last().unwrap_or(Level::Portable), values)
}

/// [`sum_of_squares`] with chosen instructions.
pub(super) fn sum_of_squares_at(level: Level, values: &[f32]) -> f64 {
    let chunk_sum = |chunk: &[f32]| match level {
        Level::Portable => sum_chunk(chunk),
        // SAFETY: this level comes from `Level::available`, which asked the processor for it.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { sum_chunk_avx512(chunk) },
    };
    if values.len() <= CHUNK {
        return chunk_sum(values);
    }
    let sums: Vec<f64> = values.par_chunks(CHUNK).map(chunk_sum).collect();
    sums.iter().sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_chunk_avx512(values: &[f32]) -> f64 {
    sum_chunk(values)
}

#[inline(always)]
fn sum_chunk(values: &[f32]) -> f64 {
    let mut lanes = [0f64; LANES];
    let (rows, rest) = values.as_chunks::<LANES>();
    for row in rows {
        for (lane, &value) in lanes.iter_mut().zip(row) {
            *lane += f64::from(value) * f64::from(value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(value) * f64::from(value);
    }
    lanes.iter().sum()
}
