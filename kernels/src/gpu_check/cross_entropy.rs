//! Head and loss: the loss of every row, their sum, and the gradient of the rows.

use half::bf16;

use super::{BF16_GRADIENT, Checks, F32, Sizes};
use crate::Result;
use crate::cross_entropy::{GpuHead, GpuLossGradients, GpuLosses, GpuTargets, gpu_fused, reference};
use crate::gpu::Buffer;

const SCALE: f32 = 0.125;

/// A head and rows, in bf16.
struct Case {
    vocabulary: usize,
    width: usize,
    /// Greatest magnitude of a row's values.
    size: f64,
    targets: Vec<Option<u32>>,
}

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    let cases: &[(usize, usize, usize, f64)] = match checks.sizes {
        Sizes::Small => {
            &[(1, 1003, 40, 1.0), (7, 1, 8, 1.0), (131, 261, 136, 1.0), (3, 129, 8, 60.0), (5, 77, 64, 1e4)]
        }
        Sizes::Real => &[(300, 151_936, 2048, 0.25), (1100, 4096, 2048, 1.0), (37, 151_936, 2048, 8.0)],
    };
    for &(rows, vocabulary, width, size) in cases {
        checks.case(format!("cross entropy, {rows} x {width} to {vocabulary} words, size {size}"));
        let draws = checks.random.values(rows);
        // About a third of the rows without a target; the first one has the last word.
        let target = |(row, draw): (usize, &f64)| match row {
            0 => Some(vocabulary as u32 - 1),
            _ => (*draw > -0.4).then(|| ((draw + 1.0) * 1e6) as u32 % vocabulary as u32),
        };
        let targets = draws.iter().enumerate().map(target).collect();
        Case { vocabulary, width, size, targets }.compare(checks)?;
    }
    checks.case("cross entropy without a target");
    nothing(checks)
}

fn nothing(checks: &mut Checks<'_>) -> Result<()> {
    let (weight, hidden) = (checks.bf16(24)?.0, checks.bf16(16)?.0);
    for rows in [0, 2] {
        let targets = GpuTargets::new(checks.gpu, &vec![None; rows], 3)?;
        let (mut sum, mut each) = (checks.gpu.of(&[2f64.to_bits()])?, checks.gpu.empty(0)?);
        let mut d_hidden = checks.gpu.of(&vec![bf16::ONE; 8 * rows])?;
        let gradients = GpuLossGradients { scale: 1.0, hidden: &mut d_hidden };
        let head = GpuHead { weight: &weight, vocabulary: 3, width: 8 };
        let losses = GpuLosses { sum: &mut sum, each: &mut each };
        gpu_fused(&head, &hidden.part(0..8 * rows)?, &targets, losses, Some(gradients))?;
        checks.compare_values("sum", &[f64::from_bits(sum.download()?[0])], &[2.0], F32);
        if rows > 0 {
            checks.compare("gradient of hidden", &d_hidden, &[0.0; 16], F32)?;
        }
    }
    Ok(())
}

// === impl Case ===

impl Case {
    fn compare(&self, checks: &mut Checks<'_>) -> Result<()> {
        let Self { vocabulary, width, size, ref targets } = *self;
        let (weight, weight_values) = checks.bf16(vocabulary * width)?;
        let (hidden, values) = checks.bf16_within(size, targets.len() * width)?;
        let expected = reference::loss(&values, width, &weight_values, None, targets);
        let kept = GpuTargets::new(checks.gpu, targets, vocabulary)?;
        let head = GpuHead { weight: &weight, vocabulary, width };
        let (mut sum, mut each) = (checks.gpu.zeros(1)?, checks.gpu.empty(kept.count())?);
        gpu_fused(&head, &hidden, &kept, GpuLosses { sum: &mut sum, each: &mut each }, None)?;
        let alone = each.download()?;
        let mut d_hidden: Buffer<bf16> = checks.gpu.empty(values.len())?;
        let gradients = GpuLossGradients { scale: SCALE, hidden: &mut d_hidden };
        gpu_fused(&head, &hidden, &kept, GpuLosses { sum: &mut sum, each: &mut each }, Some(gradients))?;

        let each_expected = self.each(&values, &weight_values);
        checks.compare("losses", &each, &each_expected, F32)?;
        checks.compare_values("losses without gradients", &alone, &each_expected, F32);
        // The sum of both times.
        checks.compare_values("sum", &[f64::from_bits(sum.download()?[0])], &[2.0 * expected.loss], F32);
        let scaled: Vec<f64> = expected.d_hidden.iter().map(|value| value * f64::from(SCALE)).collect();
        checks.compare("gradient of hidden", &d_hidden, &scaled, BF16_GRADIENT)
    }

    /// The loss of each row that has one.
    fn each(&self, hidden: &[f64], weight: &[f64]) -> Vec<f64> {
        let rows = hidden.chunks_exact(self.width).zip(&self.targets).filter(|(_, target)| target.is_some());
        rows.map(|(row, target)| reference::loss(row, self.width, weight, None, &[*target]).loss).collect()
    }
}
