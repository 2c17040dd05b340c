//! The 8-bit *dynamic* data type of bitsandbytes: a small exponent and a fraction that shrinks as the exponent grows,
//! as 256 sorted values in -1..=1 (signed) or 0..=1 (unsigned). The signed one stores the nested scales of NF4, both
//! store the moments of the 8-bit AdamW.
//!
//! For every decade `d = 0..7` the interval 0.1..1 is cut into `2^d` (signed) or `2^(d+1)` (unsigned) equal parts whose
//! middles, times `10^(d-6)`, are codes; 0 and 1 complete the map.

use std::sync::LazyLock;

/// Decades of the data type, one for each exponent bit.
const DECADES: u32 = 7;
/// Buckets of the nearest-code table: sign, then exponent and the upper 7 mantissa bits of the value.
const MANTISSA_BITS: u32 = 7;
/// No two neighbouring codes of either map have their middle below this power of two.
const SMALLEST_EXPONENT: u32 = 127 - 23;
/// Buckets of one sign: exponents -23..=-1, and one for 1.0 itself.
const BUCKETS: usize = ((127 - SMALLEST_EXPONENT) as usize) * (1 << MANTISSA_BITS) + 1;

/// A map of 256 sorted codes with an exact and fast search for the nearest one.
#[derive(Debug)]
pub(crate) struct DynamicMap {
    codes: [f32; 256],
    /// `limits[i]`: the largest value that is not nearer to code `i + 1` than to code `i`.
    limits: [f32; 256],
    /// The code of the smallest value of every bucket; a bucket holds at most one limit.
    buckets: Box<[u8; 2 * BUCKETS]>,
}

static SIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(true));
static UNSIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(false));

impl DynamicMap {
    /// The map with both signs.
    pub(crate) fn signed() -> &'static Self {
        &SIGNED
    }

    /// The map of the values from 0 on.
    pub(crate) fn unsigned() -> &'static Self {
        &UNSIGNED
    }

    /// The codes, ascending.
    pub(crate) fn codes(&self) -> &[f32; 256] {
        &self.codes
    }

    /// What [`DynamicMap::nearest`] looks up: the largest value that is not nearer to the next code, for every code, and
    /// the code of every bucket, those of values below 0 in the second half.
    pub(crate) fn search(&self) -> (&[f32; 256], &[u8]) {
        (&self.limits, &self.buckets[..])
    }

    /// Index of the code nearest to `value` (a tie goes to the lower one); values outside of the map go to its ends.
    #[inline(always)]
    pub(crate) fn nearest(&self, value: f32) -> u8 {
        let code = self.buckets[bucket(value)];
        code + u8::from(value > self.limits[usize::from(code)])
    }

    fn new(signed: bool) -> Self {
        let codes = codes(signed);
        let mut limits = [f32::INFINITY; 256];
        for (limit, pair) in limits.iter_mut().zip(codes.windows(2)) {
            let middle = (f64::from(pair[0]) + f64::from(pair[1])) / 2.0;
            let rounded = middle as f32;
            *limit = if f64::from(rounded) > middle { rounded.next_down() } else { rounded };
        }
        let mut buckets = Box::new([0u8; 2 * BUCKETS]);
        for (index, code) in buckets.iter_mut().enumerate() {
            let smallest = bucket_minimum(index);
            *code = limits.iter().take_while(|&&limit| smallest > limit).count() as u8;
        }
        Self { codes, limits, buckets }
    }
}

/// Bucket of a value: its sign, exponent and upper mantissa bits, clamped to the buckets that exist.
#[inline(always)]
fn bucket(value: f32) -> usize {
    let bits = value.to_bits();
    let magnitude = (bits & 0x7fff_ffff) >> (23 - MANTISSA_BITS);
    let place = magnitude.saturating_sub(SMALLEST_EXPONENT << MANTISSA_BITS).min(BUCKETS as u32 - 1);
    place as usize + (bits >> 31) as usize * BUCKETS
}

/// The smallest value of a bucket: for the negative ones that is the largest magnitude.
fn bucket_minimum(index: usize) -> f32 {
    let magnitude =
        |place: usize| f32::from_bits((place as u32 + (SMALLEST_EXPONENT << MANTISSA_BITS)) << (23 - MANTISSA_BITS));
    if index >= BUCKETS {
        -magnitude(index - BUCKETS + 1).next_down()
    } else if index == 0 {
        0.0
    } else {
        magnitude(index)
    }
}

fn codes(signed: bool) -> [f32; 256] {
    let mut list = vec![0.0, 1.0];
    for decade in 0..DECADES {
        let parts = 1usize << if signed { decade } else { decade + 1 };
        let scale = 10f64.powi(decade as i32 - (DECADES as i32 - 1)) as f32;
        for part in 0..parts {
            let middle = (boundary(part, parts) + boundary(part + 1, parts)) / 2.0;
            list.push(scale * middle);
            if signed {
                list.push(-(scale * middle));
            }
        }
    }
    list.sort_by(f32::total_cmp);
    let mut codes = [0.0; 256];
    codes.copy_from_slice(&list);
    codes
}

/// `torch.linspace(0.1, 1, parts + 1)[index]`, which counts from both ends and rounds once.
fn boundary(index: usize, parts: usize) -> f32 {
    let step = (1.0f32 - 0.1) / parts as f32;
    if index < parts.div_ceil(2) {
        step.mul_add(index as f32, 0.1)
    } else {
        (-step).mul_add((parts - index) as f32, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fowler-Noll-Vo hash (1a, 64 bits) of the codes' little-endian bytes.
    fn hash(codes: &[f32; 256]) -> u64 {
        codes
            .iter()
            .flat_map(|code| code.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    #[test]
    fn the_unsigned_map_is_the_one_of_bitsandbytes() {
        let codes = DynamicMap::unsigned().codes();
        assert_eq!([codes[0], codes[1], codes[2]].map(f32::to_bits), [0, 0x34ae_7baa, 0x3550_0998]);
        assert_eq!(codes[100].to_bits(), 0x3d80_7ae2);
        assert_eq!(hash(codes), 0x4381_1b16_730a_873e);
    }

    #[test]
    fn every_bucket_holds_at_most_one_limit() {
        for map in [DynamicMap::signed(), DynamicMap::unsigned()] {
            for index in (0..2 * BUCKETS).filter(|index| index % BUCKETS != BUCKETS - 1) {
                let inside = map.limits.iter().filter(|limit| limit.is_finite() && bucket(**limit) == index);
                assert!(inside.count() <= 1, "bucket {index}");
            }
        }
    }

    #[test]
    fn the_search_agrees_with_trying_every_code() {
        for map in [DynamicMap::signed(), DynamicMap::unsigned()] {
            let check = |value: f32| {
                let distance = |code: f32| (f64::from(value) - f64::from(code)).abs();
                let best = (0..256).reduce(|a, b| if distance(map.codes[b]) < distance(map.codes[a]) { b } else { a });
                assert_eq!(usize::from(map.nearest(value)), best.unwrap(), "value {value:e}");
            };
            for &limit in &map.limits[..255] {
                for value in [limit, limit.next_up(), limit.next_down()] {
                    check(value);
                }
            }
            let mut bits = 0u32;
            while bits <= 0x3f90_0000 {
                check(f32::from_bits(bits));
                check(-f32::from_bits(bits));
                bits += 29_989;
            }
        }
    }
}
