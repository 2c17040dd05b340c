//! NF4 on the CPU. Decoding is one table look-up in a register for 16 (AVX-512) or 8 (AVX2) values and runs on the
//! calling thread; quantising counts midpoints in vector registers and is spread over all threads. All levels give the
//! same bits.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::{BLOCK, CODEBOOK, SMALLEST_ABSMAX, THRESHOLDS};
use crate::fast_math::Level;

/// Bytes of a block.
const BYTES: usize = BLOCK / 2;

/// Blocks that one task quantises.
const TASK: usize = 256;

// === decoding ===

/// Decodes `out.len()` values from value `start` on; `absmax` gives the scale of a block.
#[inline]
pub(super) fn dequantize(packed: &[u8], absmax: impl Fn(usize) -> f32, start: usize, out: &mut [f32]) {
    dequantize_at(Level::best(), packed, absmax, start, out);
}

/// [`dequantize`] with chosen instructions.
#[inline]
pub(super) fn dequantize_at(level: Level, packed: &[u8], absmax: impl Fn(usize) -> f32, start: usize, out: &mut [f32]) {
    // Values before the first whole block, then whole blocks, then what is left.
    let head = (start.next_multiple_of(BLOCK) - start).min(out.len());
    let (first, rest) = out.split_at_mut(head);
    decode_values(packed, &absmax, start, first);
    let block = (start + head) / BLOCK;
    let (blocks, last) = rest.as_chunks_mut::<BLOCK>();
    let bytes = packed[(block * BYTES).min(packed.len())..].as_chunks::<BYTES>().0;
    let scale = |index: usize| absmax(block + index);
    match level {
        Level::Portable => decode_blocks_portable(bytes, scale, blocks),
        // SAFETY: a `Level` other than `Portable` comes from `Level::best`, which asked the processor for it.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::decode_blocks_avx2(bytes, scale, blocks) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { x86::decode_blocks_avx512(bytes, scale, blocks) },
    }
    let end = (block + blocks.len()) * BLOCK;
    decode_values(packed, &absmax, end, last);
}

/// Part of one block.
fn decode_values(packed: &[u8], absmax: impl Fn(usize) -> f32, start: usize, out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    let scale = absmax(start / BLOCK);
    for (index, value) in (start..).zip(out) {
        let nibble = packed[index / 2] >> if index % 2 == 0 { 4 } else { 0 } & 15;
        *value = CODEBOOK[usize::from(nibble)] * scale;
    }
}

fn decode_blocks_portable(bytes: &[[u8; BYTES]], absmax: impl Fn(usize) -> f32, out: &mut [[f32; BLOCK]]) {
    for (index, (bytes, out)) in bytes.iter().zip(out).enumerate() {
        let scale = absmax(index);
        let table = CODEBOOK.map(|code| code * scale);
        for (byte, pair) in bytes.iter().zip(out.as_chunks_mut::<2>().0) {
            *pair = [table[usize::from(byte >> 4)], table[usize::from(byte & 15)]];
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCK, BYTES, CODEBOOK};

    /// Right shifts that bring value 0..8 of four bytes to the lowest bits: the high half of a byte comes first.
    const SHIFTS: [i32; 8] = [4, 0, 12, 8, 20, 16, 28, 24];

    /// 16 values at a time: two groups of four bytes are broadcast to the halves of a register, every lane shifts its
    /// own four bits down, and the permutation (which reads only those) looks them up in the scaled codebook.
    #[target_feature(enable = "avx512f")]
    pub(super) fn decode_blocks_avx512(bytes: &[[u8; BYTES]], absmax: impl Fn(usize) -> f32, out: &mut [[f32; BLOCK]]) {
        // SAFETY: both loads are unaligned loads within arrays of 16 and 8 values.
        let (codebook, half) =
            unsafe { (_mm512_loadu_ps(CODEBOOK.as_ptr()), _mm256_loadu_si256(SHIFTS.as_ptr().cast())) };
        let shifts = _mm512_broadcast_i64x4(half);
        for (index, (bytes, out)) in bytes.iter().zip(out).enumerate() {
            let table = _mm512_mul_ps(codebook, _mm512_set1_ps(absmax(index)));
            for (bytes, out) in bytes.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<16>().0) {
                let [low, high] = [word(bytes, 0), word(bytes, 4)];
                let words = _mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xff00, high);
                let values = _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), table);
                // SAFETY: an unaligned store of 16 values into an array of 16.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
            }
        }
    }

    /// 8 values at a time: as above, with the codebook in two registers and bit 3 choosing between them.
    #[target_feature(enable = "avx2")]
    pub(super) fn decode_blocks_avx2(bytes: &[[u8; BYTES]], absmax: impl Fn(usize) -> f32, out: &mut [[f32; BLOCK]]) {
        // SAFETY: unaligned loads within arrays of 16 and 8 values.
        let (lower, upper, shifts) = unsafe {
            (
                _mm256_loadu_ps(CODEBOOK.as_ptr()),
                _mm256_loadu_ps(CODEBOOK.as_ptr().add(8)),
                _mm256_loadu_si256(SHIFTS.as_ptr().cast()),
            )
        };
        for (index, (bytes, out)) in bytes.iter().zip(out).enumerate() {
            let scale = _mm256_set1_ps(absmax(index));
            let (lower, upper) = (_mm256_mul_ps(lower, scale), _mm256_mul_ps(upper, scale));
            for (bytes, out) in bytes.as_chunks::<4>().0.iter().zip(out.as_chunks_mut::<8>().0) {
                let codes = _mm256_srlv_epi32(_mm256_set1_epi32(word(bytes, 0)), shifts);
                let choice = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
                let low = _mm256_permutevar8x32_ps(lower, codes);
                let high = _mm256_permutevar8x32_ps(upper, codes);
                // SAFETY: an unaligned store of 8 values into an array of 8.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_blendv_ps(low, high, choice)) };
            }
        }
    }

    #[inline(always)]
    fn word(bytes: &[u8], at: usize) -> i32 {
        i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    }
}

// === quantising ===

/// Packed codes and the absmax of every block, or the index of the first value that is not finite.
pub(super) fn quantize(values: &[f32]) -> Result<(Vec<u8>, Vec<f32>), usize> {
    quantize_at(Level::best(), values)
}

/// [`quantize`] with chosen instructions.
pub(super) fn quantize_at(level: Level, values: &[f32]) -> Result<(Vec<u8>, Vec<f32>), usize> {
    let mut packed = vec![0u8; values.len().div_ceil(2)];
    let mut absmax = vec![0f32; values.len().div_ceil(BLOCK)];
    let bad = AtomicUsize::new(usize::MAX);
    packed
        .par_chunks_mut(TASK * BYTES)
        .zip(absmax.par_chunks_mut(TASK))
        .zip(values.par_chunks(TASK * BLOCK))
        .enumerate()
        .for_each(|(task, ((packed, absmax), values))| {
            level.run(
                #[inline(always)]
                || quantize_blocks(values, packed, absmax),
            );
            let damaged = absmax.iter().any(|value| !value.is_finite());
            if let (true, Some(index)) = (damaged, values.iter().position(|value| !value.is_finite())) {
                bad.fetch_min(task * TASK * BLOCK + index, Ordering::Relaxed);
            }
        });
    match bad.into_inner() {
        usize::MAX => Ok((packed, absmax)),
        index => Err(index),
    }
}

/// Written so that the compiler can use the vector instructions of whichever function it is inlined into.
#[inline(always)]
fn quantize_blocks(values: &[f32], packed: &mut [u8], absmax: &mut [f32]) {
    let (blocks, tail) = values.as_chunks::<BLOCK>();
    let (bytes, tail_bytes) = packed.split_at_mut(blocks.len() * BYTES);
    for ((block, bytes), absmax) in blocks.iter().zip(bytes.as_chunks_mut::<BYTES>().0).zip(absmax.iter_mut()) {
        *absmax = greatest_magnitude(block);
        let reciprocal = 1.0 / absmax.max(SMALLEST_ABSMAX);
        let codes = block.map(|x| code(x * reciprocal));
        for (byte, pair) in bytes.iter_mut().zip(codes.as_chunks::<2>().0) {
            *byte = (pair[0] << 4 | pair[1]) as u8;
        }
    }
    if let (false, Some(absmax)) = (tail.is_empty(), absmax.last_mut()) {
        *absmax = greatest_magnitude(tail);
        let divisor = absmax.max(SMALLEST_ABSMAX);
        for (byte, pair) in tail_bytes.iter_mut().zip(tail.chunks(2)) {
            let second = pair.get(1).copied().unwrap_or(0.0);
            *byte = (code(pair[0] / divisor) << 4 | code(second / divisor)) as u8;
        }
    }
}

/// The bits of magnitudes sort like the magnitudes, with infinity and NaN above all finite ones, so that a value that
/// is not finite cannot hide.
#[inline(always)]
fn greatest_magnitude(values: &[f32]) -> f32 {
    f32::from_bits(values.iter().fold(0, |greatest, value| greatest.max(value.to_bits() & 0x7fff_ffff)))
}

#[inline(always)]
fn code(scaled: f32) -> u32 {
    THRESHOLDS.iter().fold(0, |index, &threshold| index + u32::from(scaled > threshold))
}
