//! What is done value by value, dropout, and rows of the embedding table.

use half::bf16;

use super::{BF16, Checks, EXACT, F32, Sizes};
use crate::Result;
use crate::dropout::Dropout;
use crate::elements::{add, scale, scale_floats, scaled, to_bf16, to_floats};
use crate::embedding::{GpuEmbedding, TokenIds};
use crate::gpu::Buffer;

const SMALL: [usize; 8] = [1, 7, 8, 2047, 8192, 8195, 16_384, 20_011];
const REAL: [usize; 2] = [1_000_003, 1 << 22];

/// Rows of the table, their width, tokens.
const SMALL_TABLES: [[usize; 3]; 5] = [[1, 1, 2], [5, 7, 9], [11, 64, 13], [3, 2048, 5], [4, 2056, 3]];
const REAL_TABLES: [[usize; 3]; 1] = [[4099, 2048, 1000]];

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    let small = checks.sizes == Sizes::Small;
    let counts: &[_] = if small { &SMALL } else { &REAL };
    for &count in counts {
        checks.case(format!("{count} elements"));
        by_element(checks, count)?;
        checks.case(format!("dropout of {count} elements"));
        dropout(checks, count)?;
    }
    let tables: &[_] = if small { &SMALL_TABLES } else { &REAL_TABLES };
    for &[vocabulary, width, tokens] in tables {
        checks.case(format!("embedding {tokens} of {vocabulary} x {width}"));
        embedding(checks, vocabulary, width, tokens)?;
    }
    nothing(checks)
}

/// No values at all are no error.
fn nothing(checks: &mut Checks<'_>) -> Result<()> {
    checks.case("elements, dropout and embedding of nothing");
    let (none, floats) = (|| checks.gpu.empty::<bf16>(0), || checks.gpu.empty::<f32>(0));
    scaled(&none()?, 2.0, &mut none()?)?;
    scale(&mut none()?, 2.0)?;
    add(&none()?, &mut none()?)?;
    to_bf16(&floats()?, &mut none()?)?;
    to_floats(&none()?, &mut floats()?)?;
    scale_floats(&mut floats()?, 2.0)?;
    Dropout::keyed(0.3, &[1]).of_buffer(&none()?, 0, &mut none()?)?;
    let table = checks.gpu.zeros(3 * 8)?;
    GpuEmbedding::new(table, 3)?.forward(&TokenIds::of(checks.gpu, &[], 3)?, &mut none()?)
}

/// As a GPU rounds: from `f32`.
fn rounded(values: impl Iterator<Item = f64>) -> Vec<f64> {
    values.map(|value| bf16::from_f32(value as f32).to_f64()).collect()
}

fn by_element(checks: &mut Checks<'_>, count: usize) -> Result<()> {
    const FACTOR: f32 = 0.375;
    let (x, wide_x) = checks.bf16(count)?;
    let (y, wide_y) = checks.bf16(count)?;
    let product = rounded(wide_x.iter().map(|x| f64::from(FACTOR) * x));
    let mut out: Buffer<bf16> = checks.gpu.empty(count)?;
    scaled(&x, FACTOR, &mut out)?;
    checks.compare("product", &out, &product, EXACT)?;
    out.copy_from(&x)?;
    scale(&mut out, FACTOR)?;
    checks.compare("product in its place", &out, &product, EXACT)?;
    out.copy_from(&y)?;
    add(&x, &mut out)?;
    checks.compare("sum", &out, &rounded(wide_x.iter().zip(&wide_y).map(|(x, y)| x + y)), EXACT)?;

    let (floats, wide_floats) = checks.f32(count)?;
    to_bf16(&floats, &mut out)?;
    checks.compare("in bf16", &out, &rounded(wide_floats.iter().copied()), EXACT)?;
    let mut floats = checks.gpu.empty(count)?;
    to_floats(&x, &mut floats)?;
    checks.compare("in f32", &floats, &wide_x, EXACT)?;
    scale_floats(&mut floats, 1.1)?;
    let product: Vec<f64> = wide_x.iter().map(|x| f64::from(1.1f32) * x).collect();
    checks.compare("product in f32", &floats, &product, F32)
}

fn dropout(checks: &mut Checks<'_>, count: usize) -> Result<()> {
    let key = (checks.random.values(1)[0] * 1e9) as i64;
    let dropout = Dropout::keyed(0.3, &[key.cast_unsigned()]);
    let (x, wide_x) = checks.bf16(count)?;
    let (before, wide_before) = checks.bf16(count)?;
    // The second one crosses the border of 32 bits.
    for first in [0, u64::from(u32::MAX) - 5] {
        let kept = |index: usize, value: f64| f64::from(dropout.factor(first + index as u64)) * value;
        let expected: Vec<f64> = wide_x.iter().enumerate().map(|(index, x)| kept(index, *x)).collect();
        let mut y: Buffer<bf16> = checks.gpu.empty(count)?;
        dropout.of_buffer(&x, first, &mut y)?;
        checks.compare("masked", &y, &expected, BF16)?;
        y.copy_from(&x)?;
        dropout.apply_to_buffer(&mut y, first)?;
        checks.compare("masked in its place", &y, &expected, BF16)?;
        y.copy_from(&before)?;
        dropout.add_to_buffer(&x, first, &mut y)?;
        let expected: Vec<f64> = expected.iter().zip(&wide_before).map(|(x, before)| x + before).collect();
        checks.compare("masked and added", &y, &expected, BF16)?;
    }
    Ok(())
}

fn embedding(checks: &mut Checks<'_>, vocabulary: usize, width: usize, tokens: usize) -> Result<()> {
    let (table, values) = checks.bf16(vocabulary * width)?;
    let draws = checks.random.values(tokens);
    let ids: Vec<u32> = draws.iter().map(|draw| (draw.abs() * vocabulary as f64) as u32 % vocabulary as u32).collect();
    let expected: Vec<f64> = ids.iter().flat_map(|&id| &values[id as usize * width..][..width]).copied().collect();
    let mut out = checks.gpu.empty(tokens * width)?;
    GpuEmbedding::new(table, vocabulary)?.forward(&TokenIds::of(checks.gpu, &ids, vocabulary)?, &mut out)?;
    checks.compare("rows", &out, &expected, EXACT)
}
