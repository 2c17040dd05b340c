//! What bitsandbytes 0.50 does differently on a CPU: only for comparing with numbers made on the CPU by it. The
//! product quantises and decodes by the exact rules, as that library does on a GPU.

use super::{BLOCK, CODEBOOK, DynamicMap, Nf4Matrix, double};
use crate::Result;

/// Half the bins of its search: bin `i` of 65,536 stands for the value `i / HALF_BINS - 1`.
const HALF_BINS: f32 = 32_767.5;

impl Nf4Matrix {
    /// [`Nf4Matrix::quantize`] with double quantisation, where the 8-bit codes of the scales are searched as
    /// bitsandbytes' CPU kernel (as of 0.50) does: the value is first rounded to one of 65,536 over -1..=1, which
    /// moves about one code in 600. Only for comparing with numbers made by that kernel.
    pub fn quantize_as_bitsandbytes_cpu(values: &[f32], rows: usize, columns: usize) -> Result<Self> {
        Self::quantize_with(values, rows, columns, |absmax| double(&absmax, code))
    }

    /// What bitsandbytes' CPU kernel (AVX-512, as of 0.50) makes of this matrix. It takes `row · (columns / 64) +
    /// column / 64` for the block of a value, which is another block than the one it was quantised with when rows are
    /// not whole blocks; it does so for columns that 16 divides. Everywhere else, and for all published model shapes,
    /// this equals [`Nf4Matrix::dequantize`]. Only for comparing with numbers made by that kernel.
    pub fn dequantize_as_bitsandbytes_cpu(&self) -> Vec<f32> {
        let mut values = self.dequantize();
        if self.columns.is_multiple_of(16) && !self.columns.is_multiple_of(BLOCK) {
            let absmax = self.absmax();
            for (index, value) in values.iter_mut().enumerate() {
                let (row, column) = (index / self.columns, index % self.columns);
                let nibble = self.packed[index / 2] >> if index % 2 == 0 { 4 } else { 0 } & 15;
                let block = row * (self.columns / BLOCK) + column / BLOCK;
                *value = CODEBOOK[usize::from(nibble)] * absmax[block];
            }
        }
        values
    }
}

/// The code of the middle of the bin that `value / scale` falls in. A reciprocal that is infinite makes 0 a NaN, which
/// falls in bin 0.
fn code(value: f32, scale: f32) -> u8 {
    let scaled = (value * (1.0 / scale)).clamp(-1.0, 1.0);
    let bin = ((scaled + 1.0) * HALF_BINS + 0.5) as u16;
    DynamicMap::signed().nearest(f32::from(bin) / HALF_BINS - 1.0)
}

#[cfg(test)]
mod tests {
    use super::super::Scales;
    use super::*;

    /// Where the kernel passes from one code to the next: the bits of the first value that has the second code.
    /// Found by bisecting its answers.
    const EDGES: [(u32, u8, u8); 19] = [
        (0xbf7c_66fc, 0, 1),     // -9.859464e-1
        (0xbf78_ccf8, 1, 2),     // -9.718776e-1
        (0xbe11_9892, 60, 61),   // -1.421836e-1
        (0xb960_0800, 118, 119), // -2.136528e-4
        (0xb900_0800, 119, 120), // -1.221001e-4
        (0xb8c0_1000, 120, 121), // -9.158254e-5
        (0xb880_1000, 121, 122), // -6.106496e-5
        (0xb800_2000, 122, 123), // -3.054738e-5
        (0xb300_0000, 123, 131), // -2.980232e-8; the codes between are never chosen
        (0x37ff_8000, 131, 132), // 3.045797e-5
        (0x387f_c000, 132, 133), // 6.097555e-5
        (0x38bf_e000, 133, 134), // 9.149313e-5
        (0x38ff_e000, 134, 135), // 1.220107e-4
        (0x395f_f000, 135, 136), // 2.135634e-4
        (0x39df_f800, 137, 138), // 4.271865e-4
        (0x3d10_a091, 167, 168), // 3.530938e-2
        (0x3ead_98ab, 207, 208), // 3.390554e-1
        (0x3f7c_66fb, 253, 254), // 9.859464e-1
        (0x3f7f_18ff, 254, 255), // 9.964752e-1
    ];

    /// Its answers for values and the greatest magnitude of their block.
    const PROBES: [(f32, f32, u8); 16] = [
        (0.0, 1.0, 131),
        (-0.0, 1.0, 131),
        (1e-7, 1.0, 131),
        (-1e-7, 1.0, 123),
        (-2e-6, 1.0, 123),
        (5e-5, 1.0, 132),
        (1.0, 1.0, 255),
        (-1.0, 1.0, 0),
        (-1e38, 3e38, 47),
        (1.0, 3e38, 131),
        (-5e-39, 1e-38, 35),
        (2e-39, 1e-38, 198),
        (2.9e-39, 3e-39, 252),
        // No finite reciprocal.
        (1e-40, 1e-40, 255),
        (-5e-41, 1e-40, 0),
        (0.0, 1e-40, 0),
    ];

    #[test]
    fn the_search_gives_the_codes_of_the_kernel() {
        for (bits, below, code_there) in EDGES {
            let value = f32::from_bits(bits);
            assert_eq!((code(value.next_down(), 1.0), code(value, 1.0)), (below, code_there), "{value:e}");
        }
        for (value, scale, expected) in PROBES {
            assert_eq!(code(value, scale), expected, "{value:e} of {scale:e}");
        }
    }

    #[test]
    fn the_search_is_off_the_exact_rule_by_one_bin_or_one_step() {
        let map = DynamicMap::signed();
        let mut different = 0;
        for step in -1_000_000..=1_000_000i32 {
            let value = step as f32 / 1e6;
            let (found, exact) = (code(value, 1.0), map.nearest(value));
            different += usize::from(found != exact);
            let moved = map.codes()[usize::from(found)] - map.codes()[usize::from(exact)];
            assert!(found.abs_diff(exact) <= 1 || moved.abs() <= 1.0 / HALF_BINS, "{value}: {found}, exact {exact}");
        }
        assert!((1..4_000).contains(&different), "{different}");
    }

    #[test]
    fn only_the_codes_of_the_scales_differ() {
        let values: Vec<f32> = (0..64 * 3_000u32).map(|i| (i.wrapping_mul(2_654_435_761) as f32).sin()).collect();
        let ours = Nf4Matrix::quantize(&values, 3_000, 64, true).unwrap();
        let theirs = Nf4Matrix::quantize_as_bitsandbytes_cpu(&values, 3_000, 64).unwrap();
        assert_eq!(ours.packed(), theirs.packed());
        let (
            Scales::Double { codes, nested, offset },
            Scales::Double { codes: their_codes, nested: their_nested, offset: their_offset },
        ) = (ours.scales(), theirs.scales())
        else {
            panic!("plain scales")
        };
        assert_eq!((nested, offset), (their_nested, their_offset));
        assert_ne!(codes, their_codes);
        assert!(Nf4Matrix::quantize_as_bitsandbytes_cpu(&[f32::NAN; 4], 2, 2).is_err());
    }
}
