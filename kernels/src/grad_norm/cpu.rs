//! Sums of squares in chunks of fixed size and lanes of fixed number: the same additions in the same order on every
//! processor and any number of threads.

use rayon::prelude::*;

use crate::fast_math::Level;

/// Values that one task adds.
const CHUNK: usize = 1 << 16;

/// Independent sums inside a chunk, enough to fill the vector units.
const LANES: usize = 32;

pub(super) fn sum_of_squares(values: &[f32]) -> f64 {
    sum_of_squares_at(Level::best(), values)
}

/// [`sum_of_squares`] with chosen instructions.
pub(super) fn sum_of_squares_at(level: Level, values: &[f32]) -> f64 {
    let chunk_sum = |chunk: &[f32]| {
        level.run(
            #[inline(always)]
            || sum_chunk(chunk),
        )
    };
    if values.len() <= CHUNK {
        return chunk_sum(values);
    }
    let sums: Vec<f64> = values.par_chunks(CHUNK).map(chunk_sum).collect();
    sums.iter().sum()
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
