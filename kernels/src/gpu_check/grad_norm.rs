//! The norm of a list of gradients, and the factor that clips it.

use super::{Checks, EXACT, F32, Sizes};
use crate::Result;
use crate::gpu::Buffer;
use crate::grad_norm::{GpuGradientNorm, reference};
use crate::self_test::values::narrow;

/// The sums are `f64`; only their order differs from the reference's.
const NORM: f64 = 1e-12;
const SMALL: [usize; 8] = [1, 0, 3, 4096, 4097, 9, 5001, 127];
const REAL: [usize; 5] = [31_457_280, 1, 5_000_003, 0, 1_048_576];

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    let lengths: &[usize] = if checks.sizes == Sizes::Small { &SMALL } else { &REAL };
    for (name, size, max_norm) in [
        ("plain", 1.0, Some(1.0)),
        ("within the limit", 1e-4, Some(1.0)),
        ("without a limit", 1.0, None),
        ("huge", 3e38, Some(1e6)),
        ("tiny", 1e-30, Some(1e-38)),
    ] {
        checks.case(format!("gradient norm, {name}"));
        let values: Vec<Vec<f32>> = lengths.iter().map(|&count| scaled(checks, size, count)).collect();
        let mut norm = GpuGradientNorm::new(checks.gpu, upload(checks, &values)?, max_norm)?;
        norm.measure()?;
        let expected = values.iter().map(|values| reference::sum_of_squares(values)).sum::<f64>().sqrt();
        checks.compare_values("norm", &[norm.norm()?], &[expected], NORM);
        let factor = max_norm.map_or(1.0, |max_norm| (max_norm / (expected + 1e-6)).min(1.0));
        checks.compare("factor", norm.factor(), &[factor], F32)?;
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        checks.case(format!("gradient norm with {bad}"));
        let mut values: Vec<Vec<f32>> = lengths.iter().map(|&count| scaled(checks, 1.0, count)).collect();
        values[4][7] = bad;
        let mut norm = GpuGradientNorm::new(checks.gpu, upload(checks, &values)?, Some(1.0))?;
        norm.measure()?;
        let shows = !norm.norm()?.is_finite() && norm.factor().download()?[0].is_nan();
        checks.compare_values("shows", &[u8::from(shows)], &[1.0], EXACT);
    }
    Ok(())
}

fn scaled(checks: &mut Checks<'_>, size: f32, count: usize) -> Vec<f32> {
    narrow(&checks.random.values(count)).iter().map(|value| value * size).collect()
}

/// Every other one begins where 16 bytes at a time cannot be read.
fn upload(checks: &Checks<'_>, values: &[Vec<f32>]) -> Result<Vec<Buffer<f32>>> {
    let place = |(index, values): (usize, &Vec<f32>)| {
        let offset = index % 2;
        let mut part = checks.gpu.zeros(offset + values.len())?.part(offset..offset + values.len())?;
        part.upload(values)?;
        Ok(part)
    };
    values.iter().enumerate().map(place).collect()
}
