//! Cosines and sines of the rotary angles.

use std::sync::Arc;

use crate::{Error, Result};

/// `cos` and `sin` of `position · θ^(-2i / rotary_dim)` for all positions below a limit. Cheap to clone.
///
/// Frequencies and angles are rounded to `f32` where PyTorch rounds them, so that far positions get the very angle the
/// model was trained with; memory is `4 · rotary_dim` bytes per position, so make it for the longest row, not for the
/// model's limit.
#[derive(Debug, Clone)]
pub struct RopeTable {
    rotary_dim: usize,
    cosines: Arc<[f32]>,
    sines: Arc<[f32]>,
}

impl RopeTable {
    /// The table for positions `0..positions`. `rotary_dim` is even; `theta` is the model's `rope_theta`.
    pub fn new(rotary_dim: usize, theta: f64, positions: usize) -> Result<Self> {
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            return Err(Error::invalid("rope", format!("the rotary size must be even and not 0, found {rotary_dim}")));
        }
        if !(theta.is_finite() && theta > 0.0) {
            return Err(Error::invalid("rope", format!("theta must be a positive number, found {theta}")));
        }
        // Positions enter the angle as f32, which holds integers up to 2^24.
        if positions > 1 << 24 {
            return Err(Error::invalid("rope", format!("{positions} positions; at most {} are possible", 1 << 24)));
        }
        let frequencies: Vec<f32> = (0..rotary_dim / 2)
            .map(|i| {
                let exponent = (2 * i) as f32 / rotary_dim as f32;
                1.0 / (f64::from(theta as f32).powf(f64::from(exponent)) as f32)
            })
            .collect();
        let angles = || (0..positions).flat_map(|p| frequencies.iter().map(move |f| f64::from(p as f32 * f)));
        let cosines = angles().map(|a| a.cos() as f32).collect();
        let sines = angles().map(|a| a.sin() as f32).collect();
        Ok(Self { rotary_dim, cosines, sines })
    }

    /// Number of leading values of a head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        self.rotary_dim
    }

    /// Number of positions in the table.
    pub fn positions(&self) -> usize {
        self.cosines.len() / (self.rotary_dim / 2)
    }

    /// Cosines and sines of one position, `rotary_dim / 2` each.
    #[inline(always)]
    pub(crate) fn at(&self, position: u32) -> (&[f32], &[f32]) {
        let half = self.rotary_dim / 2;
        let start = position as usize * half;
        (&self.cosines[start..start + half], &self.sines[start..start + half])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_follow_the_formula() {
        let table = RopeTable::new(64, 1e7, 5000).unwrap();
        assert_eq!((table.rotary_dim(), table.positions()), (64, 5000));
        let (cosines, sines) = table.at(0);
        assert!(cosines.iter().all(|&c| c == 1.0) && sines.iter().all(|&s| s == 0.0));
        for position in [1u32, 17, 4999] {
            let (cosines, sines) = table.at(position);
            for i in 0..32 {
                let angle = f64::from(position) * 1e7f64.powf(-(2.0 * i as f64) / 64.0);
                // An f32 angle of some thousand radians is exact to about 3e-4.
                let tolerance = 1e-7 * f64::from(position) + 1e-7;
                assert!((f64::from(cosines[i]) - angle.cos()).abs() < tolerance);
                assert!((f64::from(sines[i]) - angle.sin()).abs() < tolerance);
            }
        }
    }

    #[test]
    fn a_full_turn_of_the_first_pair_is_rounded_as_in_f32() {
        // The first frequency is 1, so the angle is the position itself.
        let table = RopeTable::new(8, 1e6, 100_000).unwrap();
        assert_eq!(table.at(99_999).0[0], 99_999f64.cos() as f32);
    }

    #[test]
    fn impossible_tables_are_refused() {
        assert!(RopeTable::new(3, 1e4, 8).is_err());
        assert!(RopeTable::new(0, 1e4, 8).is_err());
        assert!(RopeTable::new(4, f64::NAN, 8).is_err());
        assert!(RopeTable::new(4, 1e4, usize::MAX).is_err());
    }
}
