//! `exp`, the sigmoid family and sums, written so that the compiler turns a loop over them into vector code, and
//! [`vectorised`], which compiles such a loop for the widest vectors of the machine. Only plain `+`, `-`, `*` and `/`
//! are used and sums have a fixed shape, so every instruction set gives the same bits.

mod level;
pub(crate) mod reference;

pub(crate) use level::{Level, vectorised};

/// Values one rayon task works on: 64 KiB of `f32`, some ten microseconds, which hides the cost of handing out a task
/// and stays inside the second-level cache.
const VALUES_PER_TASK: usize = 1 << 14;

/// How many rows of this width make one rayon task.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (VALUES_PER_TASK / width.max(1)).max(1)
}

/// `e^x` within 2 units in the last place; 0 and infinity beyond the range of `f32`, NaN for NaN.
///
/// `x = n·ln 2 + r` with `|r| <= ln 2 / 2`; the constants are those of the Cephes library's `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first with so few bits that its product with n is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 · 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Outside of these bounds the result is 0 or infinity; comparisons keep NaN as it is.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.987_569_1e-4f32;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let p = (p * (r * r) + r) + 1.0;
    // 2^n in two factors, since n reaches 128 above and the subnormal numbers below.
    let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = exponent >> 1;
    p * power_of_two(half) * power_of_two(exponent.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x · sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `silu(x)` and its derivative `s·(1 + x·(1 - s))`, `s = sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu_and_slope(x: f32) -> (f32, f32) {
    let s = sigmoid(x);
    (x * s, s * (1.0 + x * (1.0 - s)))
}

/// Independent partial sums: four 512-bit registers, which hide the latency of an addition. (A loop over fewer lanes is
/// unrolled by the compiler before it is vectorised, and comes out scalar.)
const LANES: usize = 64;

/// The sum of the lanes, halves upon halves.
#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `Σ a·b`. The slices must have one length.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    let mut lanes = [0.0f32; LANES];
    let (blocks_a, blocks_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let mut tail = 0.0;
    for (&a, &b) in blocks_a.remainder().iter().zip(blocks_b.remainder()) {
        tail += a * b;
    }
    for (a, b) in blocks_a.zip(blocks_b) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    fold(lanes) + tail
}

/// `Σ a·b·c`. The slices must have one length.
#[inline(always)]
pub(crate) fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let (b, c) = (&b[..a.len()], &c[..a.len()]);
    let mut lanes = [0.0f32; LANES];
    let (blocks_a, blocks_b, blocks_c) = (a.chunks_exact(LANES), b.chunks_exact(LANES), c.chunks_exact(LANES));
    let mut tail = 0.0;
    for ((&a, &b), &c) in blocks_a.remainder().iter().zip(blocks_b.remainder()).zip(blocks_c.remainder()) {
        tail += a * b * c;
    }
    for ((a, b), c) in blocks_a.zip(blocks_b).zip(blocks_c) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane] * c[lane];
        }
    }
    fold(lanes) + tail
}

/// The sum of a slice.
#[inline(always)]
pub(crate) fn sum(a: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let blocks = a.chunks_exact(LANES);
    let mut tail = 0.0;
    for &a in blocks.remainder() {
        tail += a;
    }
    for a in blocks {
        for lane in 0..LANES {
            lanes[lane] += a[lane];
        }
    }
    fold(lanes) + tail
}

/// The largest value of a slice (`-∞` of an empty one; NaN values are passed over).
#[inline(always)]
pub(crate) fn largest(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let blocks = a.chunks_exact(LANES);
    let tail = blocks.remainder().iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m });
    for block in blocks {
        for (lane, &value) in lanes.iter_mut().zip(block) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.iter().fold(tail, |m, &v| if v > m { v } else { m })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units of the last place of the rounded true value.
    fn ulps(found: f32, expected: f64) -> f64 {
        let rounded = (expected as f32).abs().max(f32::MIN_POSITIVE);
        let unit = f64::from(f32::from_bits(rounded.to_bits() + 1)) - f64::from(rounded);
        (f64::from(found) - expected).abs() / unit
    }

    fn grid(low: f32, high: f32) -> Vec<f32> {
        let count = 400_000;
        (0..=count).map(|i| low + (high - low) * (i as f32 / count as f32)).collect()
    }

    fn map(values: &[f32], f: impl Fn(f32) -> f32) -> Vec<f32> {
        let mut out = vec![0.0; values.len()];
        vectorised(|| {
            for (o, &v) in out.iter_mut().zip(values) {
                *o = f(v);
            }
        });
        out
    }

    #[test]
    fn exp_is_within_two_ulps() {
        let worst = |low, high| {
            let values = grid(low, high);
            let found = map(&values, exp);
            values.iter().zip(found).map(|(&x, y)| ulps(y, f64::from(x).exp())).fold(0.0, f64::max)
        };
        assert!(worst(-87.0, 88.7) < 2.0, "{}", worst(-87.0, 88.7));
        assert!(worst(-1.0, 1.0) < 2.0, "{}", worst(-1.0, 1.0));
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(-150.0), 0.0);
        assert!(exp(f32::NAN).is_nan());
        // Subnormal results lose bits but not their size.
        assert!((f64::from(exp(-100.0)) / (-100f64).exp() - 1.0).abs() < 0.05);
    }

    #[test]
    fn the_sigmoid_family_follows_exp() {
        let values = grid(-60.0, 60.0);
        for (&x, found) in values.iter().zip(map(&values, sigmoid)) {
            assert!(ulps(found, reference::sigmoid(f64::from(x))) < 4.0, "sigmoid({x})");
        }
        for (&x, found) in values.iter().zip(map(&values, silu)) {
            assert!(ulps(found, f64::from(x) / (1.0 + (-f64::from(x)).exp())) < 4.0, "silu({x})");
        }
        for &x in &values {
            let (value, slope) = silu_and_slope(x);
            let s = reference::sigmoid(f64::from(x));
            assert!((f64::from(value) - f64::from(x) * s).abs() <= 1e-6 * f64::from(x).abs());
            assert!((f64::from(slope) - s * (1.0 + f64::from(x) * (1.0 - s))).abs() < 1e-6, "slope at {x}");
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let values = grid(-90.0, 90.0);
        let bits = |level: Level| {
            let mut out = vec![0.0; values.len()];
            let product = level.run(
                #[inline(always)]
                || {
                    for (o, &v) in out.iter_mut().zip(&values) {
                        *o = silu(v);
                    }
                    dot(&values, &values)
                },
            );
            (out.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), product.to_bits())
        };
        let plain = bits(Level::Portable);
        assert!(Level::available().all(|level| bits(level) == plain));
    }

    #[test]
    fn sums_cover_every_length() {
        for length in [0, 1, 63, 64, 65, 128, 190, 1000] {
            let a: Vec<f32> = (0..length).map(|i| ((i * 37) % 19) as f32 - 9.0).collect();
            let b: Vec<f32> = (0..length).map(|i| ((i * 11) % 7) as f32 - 3.0).collect();
            // Small integers: every partial sum is exact.
            assert_eq!(sum(&a), a.iter().sum::<f32>());
            assert_eq!(dot(&a, &b), a.iter().zip(&b).map(|(x, y)| x * y).sum::<f32>());
            assert_eq!(dot3(&a, &b, &b), a.iter().zip(&b).map(|(x, y)| x * y * y).sum::<f32>());
            assert_eq!(largest(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
