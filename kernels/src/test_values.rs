//! What the parity tests share: reproducible values, comparison against `f64`, numeric derivatives.

/// Reproducible values in -1..1.
pub(crate) fn uniform(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            // splitmix64; 24 bits, so that a value is the same in f32.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 23) - 1.0
        })
        .collect()
}

/// As `f32`.
pub(crate) fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

/// Equal within `tolerance`, relative to the largest expected value (or 1).
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let scale = expected.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
    for (index, (&f, &e)) in found.iter().zip(expected).enumerate() {
        let difference = (f64::from(f) - e).abs();
        assert!(difference <= tolerance * scale, "{what}[{index}]: {f} against {e} (scale {scale})");
    }
}

/// `gradient` is the derivative of `f` at `x`, by central differences.
pub(crate) fn assert_derivative(what: &str, x: &[f64], gradient: &[f64], f: impl Fn(&[f64]) -> f64) {
    const STEP: f64 = 1e-5;
    assert_eq!(x.len(), gradient.len(), "{what}: length");
    let mut moved = x.to_vec();
    for index in 0..x.len() {
        moved[index] = x[index] + STEP;
        let above = f(&moved);
        moved[index] = x[index] - STEP;
        let below = f(&moved);
        moved[index] = x[index];
        let slope = (above - below) / (2.0 * STEP);
        assert!(
            (slope - gradient[index]).abs() < 1e-6 * (1.0 + slope.abs()),
            "{what}[{index}]: {slope} against {}",
            gradient[index]
        );
    }
}
