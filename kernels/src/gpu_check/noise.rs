//! Noise: every number is the reference's.

use half::bf16;

use super::{Checks, EXACT};
use crate::Result;
use crate::dropout::splitmix;
use crate::noise::{add_rows, random_bytes, uniform, uniform_bf16};

const COUNTS: [usize; 5] = [1, 8, 13, 4096, 4099];

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    for count in COUNTS {
        let key = checks.random.key();
        checks.case(format!("noise, {count} values"));
        let rounded = |value: f32| bf16::from_f32(value).to_f64();
        let expected: Vec<f64> = (0..count).map(|place| rounded(uniform(key, place as u64) * 0.02)).collect();
        checks.compare("uniform", &uniform_bf16(checks.gpu, count, 0.02, key)?, &expected, EXACT)?;

        let byte = |place: usize| splitmix(key ^ splitmix(place as u64 / 8)).to_le_bytes()[place % 8];
        let expected: Vec<f64> =
            (0..count).map(|place| f64::from(100 + ((u32::from(byte(place)) * 51) >> 8))).collect();
        checks.compare("bytes", &random_bytes(checks.gpu, count, 100..=150, key)?, &expected, EXACT)?;

        let rows = 5;
        let (mut x, values) = checks.bf16(rows * count)?;
        let magnitudes = [0.5f32, 0.0, 0.25, 2.0, 0.1];
        let sum = |(place, value): (usize, &f64)| match magnitudes[place / count] {
            0.0 => *value,
            magnitude => rounded(*value as f32 + uniform(key, place as u64) * magnitude),
        };
        let expected: Vec<f64> = values.iter().enumerate().map(sum).collect();
        add_rows(&mut x, &checks.gpu.of(&magnitudes)?, key)?;
        checks.compare("added to rows", &x, &expected, EXACT)?;
    }
    checks.case("noise, no values");
    uniform_bf16(checks.gpu, 0, 0.02, 1)?;
    random_bytes(checks.gpu, 0, 100..=150, 1).map(drop)
}
