//! Head and loss: the loss of every row, their sum, the gradient of the rows, and those of a LoRA pair on the head.

use half::bf16;

use super::{BF16, BF16_GRADIENT, Checks, EXACT, F32, Sizes};
use crate::Result;
use crate::cross_entropy::{
    GPU_CHUNK_ROWS, GpuHead, GpuHeadLora, GpuLossGradients, GpuLosses, GpuTargets, Tiles, gpu_fused, gpu_fused_with,
    reference,
};
use crate::dropout::Dropout;
use crate::gpu::Buffer;

const SCALE: f32 = 0.125;

/// Factor of the pair on the head.
const PAIR: f32 = 0.5;

/// Sizes of a case.
#[derive(Clone, Copy)]
struct Case {
    rows: usize,
    vocabulary: usize,
    width: usize,
    /// Greatest magnitude of a row's values.
    size: f64,
    /// Of the pair on the head, 0 without one, and its dropout.
    rank: usize,
    probability: f32,
    chunk_rows: usize,
    /// Tiles that the card would not choose by itself.
    tiles: Option<Tiles>,
}

const LARGE: Option<Tiles> = Some(Tiles { large_logits: true, large_gradient: true });
const MIXED: Option<Tiles> = Some(Tiles { large_logits: false, large_gradient: true });

const SMALL: [Case; 12] = [
    Case { rows: 1, ..plain(1003, 40, 1.0) },
    Case { rows: 7, ..plain(2, 8, 1.0) },
    Case { rows: 201, chunk_rows: 100, ..plain(67, 136, 1.0) },
    Case { rows: 3, ..plain(129, 8, 60.0) },
    Case { rows: 5, ..plain(77, 64, 1e4) },
    Case { rows: 290, tiles: LARGE, ..plain(70, 8, 1.0) },
    Case { rows: 9, rank: 3, ..plain(130, 24, 1.0) },
    Case { rows: 20, rank: 9, tiles: MIXED, ..plain(70, 40, 1.0) },
    Case { rows: 200, rank: 16, probability: 0.3, chunk_rows: 64, ..plain(67, 8, 1.0) },
    Case { rows: 4, rank: 130, probability: 0.5, ..plain(200, 16, 0.5) },
    // Whole tiles, and chunks that end with the rows.
    Case { rows: 1, ..plain(128, 64, 1.0) },
    Case { rows: 256, rank: 16, chunk_rows: 128, ..plain(128, 32, 1.0) },
];
const REAL: [Case; 7] = [
    Case { rows: 300, ..plain(151_936, 2048, 0.25) },
    Case { rows: 37, ..plain(151_936, 2048, 8.0) },
    Case { rows: 1500, ..plain(4096, 2048, 1.0) },
    Case { rows: 1500, tiles: LARGE, ..plain(4096, 2048, 1.0) },
    Case { rows: 1500, tiles: MIXED, ..plain(4096, 2048, 1.0) },
    Case { rows: 700, rank: 16, probability: 0.1, ..plain(4099, 2048, 1.0) },
    Case { rows: 130, rank: 64, ..plain(30_000, 512, 1.0) },
];

const fn plain(vocabulary: usize, width: usize, size: f64) -> Case {
    Case { rows: 0, vocabulary, width, size, rank: 0, probability: 0.0, chunk_rows: GPU_CHUNK_ROWS, tiles: None }
}

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    let cases: &[Case] = if checks.sizes == Sizes::Small { &SMALL } else { &REAL };
    for case in cases {
        case.compare(checks)?;
    }
    checks.case("cross entropy without a target");
    nothing(checks)?;
    checks.case("cross entropy with a row that is no number");
    broken(checks)
}

/// A row that is no number breaks the loss if it has a target, and nothing if it has none.
fn broken(checks: &mut Checks<'_>) -> Result<()> {
    let (weight, mut values) = (checks.bf16(24)?.0, vec![bf16::ONE; 16]);
    values[9] = bf16::NAN;
    let hidden = checks.gpu.of(&values)?;
    let head = GpuHead { weight: &weight, vocabulary: 3, width: 8, lora: None };
    for (target, finite) in [(Some(1), 0u8), (None, 1)] {
        let targets = GpuTargets::new(checks.gpu, &[Some(2), target], 3)?;
        let (mut sum, mut each) = (checks.gpu.zeros(1)?, checks.gpu.empty(targets.count())?);
        let losses = GpuLosses { sum: &mut sum, each: &mut each };
        gpu_fused(&head, &hidden, &targets, GPU_CHUNK_ROWS, losses, None)?;
        let found = u8::from(f64::from_bits(sum.download()?[0]).is_finite());
        checks.compare_values("finite", &[found], &[f64::from(finite)], EXACT);
    }
    Ok(())
}

fn nothing(checks: &mut Checks<'_>) -> Result<()> {
    let (weight, hidden) = (checks.bf16(24)?.0, checks.bf16(16)?.0);
    for rows in [0, 2] {
        let targets = GpuTargets::new(checks.gpu, &vec![None; rows], 3)?;
        let (mut sum, mut each) = (checks.gpu.of(&[2f64.to_bits()])?, checks.gpu.empty(0)?);
        let mut d_hidden = checks.gpu.of(&vec![bf16::ONE; 8 * rows])?;
        let gradients = GpuLossGradients { scale: 1.0, hidden: &mut d_hidden, lora: None };
        let head = GpuHead { weight: &weight, vocabulary: 3, width: 8, lora: None };
        let losses = GpuLosses { sum: &mut sum, each: &mut each };
        gpu_fused(&head, &hidden.part(0..8 * rows)?, &targets, GPU_CHUNK_ROWS, losses, Some(gradients))?;
        checks.compare_values("sum", &[f64::from_bits(sum.download()?[0])], &[2.0], F32);
        if rows > 0 {
            checks.compare("gradient of hidden", &d_hidden, &[0.0; 16], F32)?;
        }
    }
    Ok(())
}

// === impl Case ===

impl Case {
    /// About a third of the rows without a target; the first one has the last word, and the last the first one's.
    fn targets(&self, checks: &mut Checks<'_>) -> Vec<Option<u32>> {
        let draws = checks.random.values(self.rows);
        let target = |(row, draw): (usize, &f64)| match row {
            row if row == 0 || row + 1 == self.rows => Some(self.vocabulary as u32 - 1),
            _ => (*draw > -0.4).then(|| ((draw + 1.0) * 1e6) as u32 % self.vocabulary as u32),
        };
        draws.iter().enumerate().map(target).collect()
    }

    fn compare(&self, checks: &mut Checks<'_>) -> Result<()> {
        let Self { rows, vocabulary, width, size, rank, probability, chunk_rows, tiles } = *self;
        let pair = if rank > 0 { format!(", rank {rank}, dropout {probability}") } else { String::new() };
        checks.case(format!("cross entropy, {rows} x {width} to {vocabulary} words, size {size}{pair}"));
        let targets = self.targets(checks);
        let (weight, weight_values) = checks.bf16(vocabulary * width)?;
        let (hidden, values) = checks.bf16_within(size, rows * width)?;
        let ((a, a_values), (b, b_values)) = (checks.bf16(rank * width)?, checks.bf16_within(0.5, vocabulary * rank)?);
        let dropout = (probability > 0.0).then(|| Dropout::keyed(probability, &[rows as u64]));
        let lora = reference::Lora { a: &a_values, b: &b_values, scale: f64::from(PAIR), dropout };
        let lora = (rank > 0).then_some(lora);
        let expected = reference::loss(&values, width, &weight_values, lora, &targets);

        let kept = GpuTargets::new(checks.gpu, &targets, vocabulary)?;
        let lora = (rank > 0).then_some(GpuHeadLora { a: &a, b: &b, rank, scale: PAIR, dropout });
        let head = GpuHead { weight: &weight, vocabulary, width, lora };
        let (mut sum, mut each) = (checks.gpu.zeros(1)?, checks.gpu.empty(kept.count())?);
        if rank == 0 {
            let losses = GpuLosses { sum: &mut sum, each: &mut each };
            gpu_fused(&head, &hidden, &kept, chunk_rows, losses, None)?;
            checks.compare("losses alone", &each, &self.each(&values, &weight_values, &targets), F32)?;
        }
        let mut d_hidden: Buffer<bf16> = checks.gpu.empty(values.len())?;
        let (mut d_a, a_before) = checks.f32(rank * width)?;
        let (mut d_b, b_before) = checks.f32(vocabulary * rank)?;
        let gradients =
            GpuLossGradients { scale: SCALE, hidden: &mut d_hidden, lora: (rank > 0).then_some((&mut d_a, &mut d_b)) };
        let losses = GpuLosses { sum: &mut sum, each: &mut each };
        match tiles {
            None => gpu_fused(&head, &hidden, &kept, chunk_rows, losses, Some(gradients))?,
            Some(tiles) => gpu_fused_with(tiles, &head, &hidden, &kept, chunk_rows, losses, Some(gradients))?,
        }

        // The sum of both times.
        let (times, tolerance) = if rank > 0 { (1.0, BF16) } else { (2.0, F32) };
        checks.compare_values("sum", &[f64::from_bits(sum.download()?[0])], &[times * expected.loss], tolerance);
        if rank == 0 {
            checks.compare("losses", &each, &self.each(&values, &weight_values, &targets), F32)?;
        }
        let scaled = |values: &[f64]| values.iter().map(|value| value * f64::from(SCALE)).collect::<Vec<_>>();
        checks.compare("gradient of hidden", &d_hidden, &scaled(&expected.d_hidden), BF16_GRADIENT)?;
        if rank > 0 {
            // What was added, and not what it was added to, which would hide it.
            let added = |found: Vec<f32>, before: &[f64]| -> Vec<f64> {
                found.iter().zip(before).map(|(found, before)| f64::from(*found) - before).collect()
            };
            let (found_a, found_b) = (added(d_a.download()?, &a_before), added(d_b.download()?, &b_before));
            checks.compare_values("gradient of A", &found_a, &scaled(&expected.d_a), BF16_GRADIENT);
            checks.compare_values("gradient of B", &found_b, &scaled(&expected.d_b), BF16_GRADIENT);
        }
        Ok(())
    }

    /// The loss of each row that has one.
    fn each(&self, hidden: &[f64], weight: &[f64], targets: &[Option<u32>]) -> Vec<f64> {
        let rows = hidden.chunks_exact(self.width).zip(targets).filter(|(_, target)| target.is_some());
        rows.map(|(row, target)| reference::loss(row, self.width, weight, None, &[*target]).loss).collect()
    }
}
