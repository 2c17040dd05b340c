//! How long calls take on the GPU.

use brightrun_kernels::Result;
use brightrun_kernels::gpu::Gpu;

/// Something whose time is taken: one call of it, on arguments of its own.
pub(super) type Work = Box<dyn FnMut() -> Result<()>>;

/// Seconds that one op may be measured for, all in all.
const BUDGET: f64 = 0.25;
/// Seconds of one measurement at least: far more than a launch takes, and what clocks can tell.
const MEASUREMENT: f64 = 1e-3;
/// Measurements, however long or short they are.
const COUNTS: [f64; 2] = [5.0, 50.0];

/// Seconds of one call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// The middle one of several measurements.
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
    /// How many measurements.
    pub(super) count: usize,
}

// === impl Times ===

impl Times {
    /// Of calls that take turns on several arguments. Where it is only to be seen that they run, each is called once.
    pub(super) fn of(gpu: &Gpu, works: &mut [Work], once: bool) -> Result<Self> {
        let (number, mut next) = (works.len(), 0);
        let mut calls = |count: usize| -> Result<f64> {
            let seconds = gpu.timed(|| {
                for _ in 0..count {
                    works[next % number]()?;
                    next += 1;
                }
                Ok(())
            })?;
            Ok(seconds / count as f64)
        };
        let first = calls(number)?;
        if once {
            return Ok(Self { median: first, least: first, most: first, count: 1 });
        }
        // The first calls choose algorithms and take memory: they do not count.
        let one = calls(number)?.max(1e-7);
        let together = (MEASUREMENT / one).ceil() as usize;
        let count = (BUDGET / (one * together as f64)).clamp(COUNTS[0], COUNTS[1]) as usize;
        let mut times = (0..count).map(|_| calls(together)).collect::<Result<Vec<_>>>()?;
        times.sort_by(f64::total_cmp);
        Ok(Self { median: times[count / 2], least: times[0], most: times[count - 1], count })
    }
}
