//! Every op beside its reference, with small odd sizes and with those of real layers, twice: the same bits each time.

use anyhow::Result;
use brightrun_kernels::gpu::Gpu;
use brightrun_kernels::gpu_check::{FAMILIES, Family, Sizes};

use super::Part;
use super::report::Report;

pub(super) fn parts(small: bool) -> Vec<Part> {
    let sizes: &'static [Sizes] = if small { &[Sizes::Small] } else { &[Sizes::Small, Sizes::Real] };
    let part = |family: &'static Family| Part {
        name: format!("parity:{}", family.name),
        about: "results beside those of the reference, twice",
        run: Box::new(move |gpu, seed, report| run(family, sizes, gpu, seed, report)),
    };
    FAMILIES.iter().map(part).collect()
}

fn run(family: &Family, sizes: &[Sizes], gpu: &Gpu, seed: u64, report: &mut Report) -> Result<()> {
    for &sizes in sizes {
        let (first, second) = (family.run(gpu, sizes, seed)?, family.run(gpu, sizes, seed)?);
        for (first, second) in first.iter().zip(&second) {
            report.check(family.name, first, first.digest == second.digest);
        }
    }
    Ok(())
}
