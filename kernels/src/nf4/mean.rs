//! The mean of a vector in the very order of additions that PyTorch uses for contiguous `f32` on one CPU thread.
//!
//! bitsandbytes takes the offset of the nested scales from `torch.mean`, and one ulp of it would move every weight.
//! PyTorch adds 8 lanes (AVX2; it uses no wider sum on other processors either), 4 vectors at a time, in a cascade of
//! 4 levels: each level collects `step` sums of the level below before they move up.

const LANES: usize = 8;
const VECTORS: usize = 4;
const LEVELS: usize = 4;
/// Values of a row.
pub(super) const WIDTH: usize = LANES * VECTORS;

/// Mean of a non-empty slice, as `torch.mean` rounds it.
pub(crate) fn mean(values: &[f32]) -> f32 {
    let sum = if values.len() < LANES { short_sum(values) } else { long_sum(values) };
    sum / values.len() as f32
}

fn long_sum(values: &[f32]) -> f32 {
    let (vectors, rest) = values.as_chunks::<LANES>();
    let (rows, last) = vectors.as_chunks::<VECTORS>();
    let mut partial = cascade::<WIDTH>(rows.as_flattened().as_flattened());
    for vector in last {
        add(&mut partial[..LANES], vector);
    }
    let (first, others) = partial.split_at_mut(LANES);
    for vector in others.chunks_exact(LANES) {
        add(first, vector);
    }
    let tail = rest.iter().fold(0.0, |sum, value| sum + value);
    first.iter().fold(tail, |sum, value| sum + value)
}

/// Fewer values than lanes: the same with lanes of one value.
fn short_sum(values: &[f32]) -> f32 {
    let whole = values.len() / VECTORS * VECTORS;
    let mut partial = cascade::<VECTORS>(&values[..whole]);
    for value in &values[whole..] {
        partial[0] += value;
    }
    let [first, others @ ..] = partial;
    others.iter().fold(first, |sum, value| sum + value)
}

/// How many rows are summed before their sum moves up, as a power of two.
pub(super) fn group_power(rows: usize) -> u32 {
    (rows.next_power_of_two().trailing_zeros() / LEVELS as u32).max(4)
}

/// Sums the rows of `N` values, one sum for each column.
fn cascade<const N: usize>(values: &[f32]) -> [f32; N] {
    let rows = values.as_chunks::<N>().0;
    let power = group_power(rows.len());
    let step = 1usize << power;
    let mut levels = [[0.0f32; N]; LEVELS];
    let mut groups = rows.chunks_exact(step);
    for (index, group) in groups.by_ref().enumerate() {
        for row in group {
            add(&mut levels[0], row);
        }
        let done = (index + 1) * step;
        for level in 1..LEVELS {
            let below = std::mem::replace(&mut levels[level - 1], [0.0; N]);
            add(&mut levels[level], &below);
            if done & ((step - 1) << (level as u32 * power)) != 0 {
                break;
            }
        }
    }
    for row in groups.remainder() {
        add(&mut levels[0], row);
    }
    let [mut sum, upper @ ..] = levels;
    for level in &upper {
        add(&mut sum, level);
    }
    sum
}

fn add(sum: &mut [f32], values: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}

#[cfg(test)]
mod tests {
    use super::mean;

    #[test]
    fn means_round_as_those_of_pytorch() {
        // torch.set_num_threads(1); torch.tensor([((i * 2654435761) % 2**32) / 2**32 for i in range(n)]).mean()
        let golden: &[(usize, u32)] = &[
            (1, 0x0000_0000),
            (3, 0x3e91_c449),
            (7, 0x3ed9_df23),
            (8, 0x3ed3_8455),
            (31, 0x3efe_1d29),
            (33, 0x3efd_3cca),
            (100, 0x3efc_40dd),
            (511, 0x3eff_6ae3),
            (600, 0x3eff_c016),
            (2047, 0x3eff_eea8),
            (5000, 0x3eff_f96f),
            (65537, 0x3eff_ff7a),
            (300001, 0x3eff_ffb3),
        ];
        for &(count, bits) in golden {
            let values: Vec<f32> = (0..count as u64)
                .map(|i| ((i * 2_654_435_761 % (1 << 32)) as f64 / (1u64 << 32) as f64) as f32)
                .collect();
            assert_eq!(mean(&values).to_bits(), bits, "{count} values");
        }
    }
}
