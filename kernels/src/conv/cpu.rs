//! The causal convolution on `f32`. Channels are the inner loop, so every load is contiguous and vectorises; rows are
//! shared out in blocks. A block reads a few rows of its neighbours (the halo) but writes only its own, and each value
//! is summed in one fixed order, so the result does not depend on the number of threads.

use rayon::prelude::*;

use super::layout::Segment;
use super::{ConvWeight, HeadGroups};
use crate::Documents;
use crate::fast_math::{silu, silu_and_slope, vectorised};

/// Rows of a task. The backward pass recomputes `taps - 1` more (a tenth), and its scratch of one segment (some hundred
/// channels) stays in the first-level cache.
const ROWS: usize = 32;

/// How far a token is from the borders of its document.
#[derive(Clone, Copy)]
struct Place {
    /// Tokens of the document before this one.
    before: usize,
    /// Tokens of the document after this one.
    after: usize,
}

fn places(documents: &Documents) -> Vec<Place> {
    documents
        .iter()
        .flat_map(|d| (d.start..d.end).map(|t| Place { before: t - d.start, after: d.end - 1 - t }))
        .collect()
}

/// Channels whose sums stay in registers over all taps: four 512-bit vectors.
const BLOCK: usize = 64;

/// `out = Σ_{term < terms} x_term ⊙ w_term`, in that order, where `pair` gives slices as long as `out`.
#[inline(always)]
fn weighted_sum<'a>(out: &mut [f32], terms: usize, pair: impl Fn(usize) -> (&'a [f32], &'a [f32])) {
    let (blocks, tail) = out.as_chunks_mut::<BLOCK>();
    let done = blocks.len() * BLOCK;
    for (index, block) in blocks.iter_mut().enumerate() {
        let mut lanes = [0.0f32; BLOCK];
        for term in 0..terms {
            let (x, w) = pair(term);
            let (x, w) = (&x[index * BLOCK..(index + 1) * BLOCK], &w[index * BLOCK..(index + 1) * BLOCK]);
            for lane in 0..BLOCK {
                lanes[lane] += x[lane] * w[lane];
            }
        }
        *block = lanes;
    }
    tail.fill(0.0);
    for term in 0..terms {
        let (x, w) = pair(term);
        for ((out, &x), &w) in tail.iter_mut().zip(&x[done..]).zip(&w[done..]) {
            *out += x * w;
        }
    }
}

/// `out = Σ_back w[back] ⊙ x[row - back]` over the channels of a segment, oldest token first.
#[inline(always)]
fn convolve_row(
    qkvz: &[f32],
    width: usize,
    row: usize,
    before: usize,
    weight: &ConvWeight,
    segment: Segment,
    out: &mut [f32],
) {
    let Segment { source, channel, length } = segment;
    let terms = weight.taps.min(before + 1);
    weighted_sum(
        out,
        terms,
        #[inline(always)]
        |term| {
            let back = terms - 1 - term;
            let start = (row - back) * width + source;
            (&qkvz[start..start + length], &weight.back(back)[channel..channel + length])
        },
    );
}

/// `silu(conv(x))`: `[rows, projection]` to `[rows, convolved]`.
pub(crate) fn forward(qkvz: &[f32], weight: &ConvWeight, groups: &HeadGroups, documents: &Documents) -> Vec<f32> {
    let (width, channels) = (groups.projection_width(), groups.convolved_width());
    let (places, segments) = (places(documents), groups.segments());
    let mut y = vec![0.0; places.len() * channels];
    y.par_chunks_mut(ROWS * channels).enumerate().for_each(|(block, y)| {
        vectorised(
            #[inline(always)]
            || {
                // A segment's window of rows stays in the first-level cache from tap to tap.
                for &segment in &segments {
                    for (index, y) in y.chunks_exact_mut(channels).enumerate() {
                        let row = block * ROWS + index;
                        let out = &mut y[segment.channel..segment.channel + segment.length];
                        convolve_row(qkvz, width, row, places[row].before, weight, segment, out);
                        for value in out {
                            *value = silu(*value);
                        }
                    }
                }
            },
        );
    });
    y
}

/// Gradient of the projection: `dx[t] = Σ_back w[back] ⊙ dp[t + back]`, `dp = dy ⊙ silu'(p)`; zero where z stands.
pub(crate) fn backward(
    qkvz: &[f32],
    weight: &ConvWeight,
    groups: &HeadGroups,
    documents: &Documents,
    dy: &[f32],
) -> Vec<f32> {
    let width = groups.projection_width();
    let (places, segments) = (places(documents), groups.segments());
    let longest = segments.iter().map(|s| s.length).max().unwrap_or(0);
    let mut d_qkvz = vec![0.0; qkvz.len()];
    d_qkvz.par_chunks_mut(ROWS * width).enumerate().for_each(|(block, d_qkvz)| {
        let mut scratch = vec![0.0; (ROWS + weight.taps - 1) * longest];
        vectorised(
            #[inline(always)]
            || {
                for &segment in &segments {
                    backward_block(qkvz, weight, groups, &places, dy, (block * ROWS, segment), &mut scratch, d_qkvz);
                }
            },
        );
    });
    d_qkvz
}

/// The gradient of one segment of the rows from `first` on that `d_qkvz` holds.
#[inline(always)]
fn backward_block(
    qkvz: &[f32],
    weight: &ConvWeight,
    groups: &HeadGroups,
    places: &[Place],
    dy: &[f32],
    (first, segment): (usize, Segment),
    scratch: &mut [f32],
    d_qkvz: &mut [f32],
) {
    let (width, channels) = (groups.projection_width(), groups.convolved_width());
    let Segment { source, channel, length } = segment;
    let rows = d_qkvz.len() / width;
    let with_halo = (rows + weight.taps - 1).min(places.len() - first);
    for (index, dp) in scratch.chunks_exact_mut(length).take(with_halo).enumerate() {
        let row = first + index;
        convolve_row(qkvz, width, row, places[row].before, weight, segment, dp);
        let start = row * channels + channel;
        for (dp, &dy) in dp.iter_mut().zip(&dy[start..start + length]) {
            *dp = dy * silu_and_slope(*dp).1;
        }
    }
    for (index, d_row) in d_qkvz.chunks_exact_mut(width).enumerate() {
        let terms = weight.taps.min(places[first + index].after + 1);
        weighted_sum(
            &mut d_row[source..source + length],
            terms,
            #[inline(always)]
            |back| {
                let dp = &scratch[(index + back) * length..(index + back + 1) * length];
                (dp, &weight.back(back)[channel..channel + length])
            },
        );
    }
}
