//! The causal convolution, documents and places in the projection included.

use half::bf16;

use super::{BF16, BF16_GRADIENT, Checks, Sizes};
use crate::conv::{ConvWeight, GpuConv, HeadGroups, reference};
use crate::gpu::Buffer;
use crate::self_test::values::narrow;
use crate::{Documents, GpuDocuments, Result};

/// Key heads, value heads, their sizes; taps; lengths of documents.
const SMALL: [([usize; 4], usize, &[usize]); 10] = [
    ([1, 1, 1, 1], 4, &[1]),
    ([2, 4, 3, 5], 3, &[7, 1, 2, 9]),
    ([1, 2, 8, 8], 4, &[6, 13]),
    ([3, 3, 8, 16], 4, &[1, 1, 1, 1, 30]),
    ([2, 4, 16, 8], 2, &[8, 8, 5]),
    ([2, 6, 24, 40], 4, &[17, 16]),
    ([4, 8, 128, 128], 4, &[66, 3, 70]),
    // Documents shorter than the taps, and documents and rows that end where runs of tokens do.
    ([1, 2, 8, 8], 4, &[1; 33]),
    ([1, 2, 8, 8], 4, &[64, 32, 16, 8, 8]),
    ([1, 1, 3, 5], 4, &[63, 30, 18, 15]),
];
const REAL: [([usize; 4], usize, &[usize]); 2] =
    [([16, 32, 128, 128], 4, &[100, 3, 153]), ([16, 32, 128, 128], 4, &[301])];

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    let shapes: &[_] = if checks.sizes == Sizes::Small { &SMALL } else { &REAL };
    for &([key_heads, value_heads, key_dim, value_dim], taps, lengths) in shapes {
        let groups = HeadGroups { key_heads, value_heads, key_dim, value_dim };
        let documents = Documents::from_lengths(lengths)?;
        checks.case(format!("convolution {lengths:?} x {groups:?}, {taps} taps"));
        let (channels, projection) = (groups.convolved_width(), documents.tokens() * groups.projection_width());
        let weight = checks.random.values(channels * taps);
        let conv = GpuConv::of(checks.gpu, &ConvWeight::new(&narrow(&weight), channels, taps)?, &groups)?;
        let gpu_documents = GpuDocuments::of(checks.gpu, &documents)?;
        let (qkvz, wide_qkvz) = checks.bf16_within(2.0, projection)?;
        let (dy, wide_dy) = checks.bf16(documents.tokens() * channels)?;

        let mut y = checks.gpu.empty(dy.len())?;
        conv.forward(&qkvz, &gpu_documents, &mut y)?;
        checks.compare("forward", &y, &reference::forward(&wide_qkvz, &weight, taps, &groups, &documents), BF16)?;
        // What is beside q, k and v stays as it was.
        let mut d_qkvz: Buffer<bf16> = checks.gpu.zeros(projection)?;
        conv.backward(&qkvz, &gpu_documents, &dy, &mut d_qkvz)?;
        let expected = reference::backward(&wide_qkvz, &weight, taps, &groups, &documents, &wide_dy);
        checks.compare("gradient", &d_qkvz, &expected, BF16_GRADIENT)?;
    }
    Ok(())
}
