//! Every op beside its reference, twice: the same bits each time. With small odd sizes at first; with those of real layers at the
//! end, since the reference takes its time there, and time on a card is short.

use anyhow::Result;
use brightrun_kernels::gpu::Gpu;
use brightrun_kernels::gpu_check::{FAMILIES, Family, Sizes};

use super::Part;
use super::report::Report;

/// Small odd sizes.
pub(super) fn small() -> Vec<Part> {
    parts("parity", Sizes::Small, "results beside those of the reference, twice")
}

/// Those of real layers.
pub(super) fn real() -> Vec<Part> {
    parts("real", Sizes::Real, "the same at the sizes of real layers")
}

fn parts(prefix: &str, sizes: Sizes, about: &'static str) -> Vec<Part> {
    let part = |family: &'static Family| Part {
        name: format!("{prefix}:{}", family.name),
        about,
        run: Box::new(move |gpu, seed, report| run(family, sizes, gpu, seed, report)),
    };
    FAMILIES.iter().map(part).collect()
}

fn run(family: &Family, sizes: Sizes, gpu: &Gpu, seed: u64, report: &mut Report) -> Result<()> {
    let (first, second) = (family.run(gpu, sizes, seed)?, family.run(gpu, sizes, seed)?);
    for (first, second) in first.iter().zip(&second) {
        report.check(family.name, first, first.digest == second.digest);
    }
    Ok(())
}
