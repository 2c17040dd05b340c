//! What this card can do at best: copying, to begin with. Everything else is told as a share of that.

use anyhow::Result;
use brightrun_kernels::gpu::Gpu;
use serde_json::json;

use super::Part;
use super::report::Report;

/// Bytes that are copied: far more than any cache holds.
const COPIED: usize = 2 << 30;
const REPEATS: usize = 20;

pub(super) fn part() -> Part {
    Part { name: "ceilings".into(), about: "copy bandwidth", run: Box::new(run) }
}

/// The middle one of several times, in seconds, after one that does not count.
pub(super) fn median(gpu: &Gpu, mut work: impl FnMut() -> brightrun_kernels::Result<()>) -> Result<f64> {
    work()?;
    let mut times = (0..REPEATS).map(|_| gpu.timed(&mut work)).collect::<brightrun_kernels::Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[REPEATS / 2])
}

fn run(gpu: &Gpu, _seed: u64, report: &mut Report) -> Result<()> {
    let (from, mut to) = (gpu.zeros::<u8>(COPIED)?, gpu.zeros::<u8>(COPIED)?);
    let seconds = median(gpu, || to.copy_from(&from))?;
    let bandwidth = 2.0 * COPIED as f64 / seconds;
    println!("copy: {:.2} TB/s, read and written", bandwidth / 1e12);
    report.note("copy_bytes_per_second", json!(bandwidth));
    Ok(())
}
