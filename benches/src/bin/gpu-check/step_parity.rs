//! Whole steps of tiny models beside the processor's.

use anyhow::Result;
use brightrun_kernels::gpu::Gpu;
use brightrun_kernels::gpu_check::Check;
use brightrun_tests::gpu_step::{Case, cases};

use super::Part;
use super::report::Report;

pub(super) fn parts() -> Vec<Part> {
    // On another GPU than the emulated one another choice of a router may be near.
    let certain = cases().into_iter().filter(|(_, case)| case.shape.experts == 2);
    let part = |(name, case): (&'static str, Case)| Part {
        name: format!("parity:step:{}", name.replace(", ", " with ")),
        about: "a whole step of a tiny model beside the processor's, twice",
        run: Box::new(move |gpu, _, report| run(name, &case, gpu, report)),
    };
    certain.map(part).collect()
}

fn run(name: &str, case: &Case, gpu: &Gpu, report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let differences = case.compare(gpu, folder.path())?;
    let repeats = case.repeats([gpu, gpu], folder.path())?;
    for difference in differences {
        let (error, tolerance) = (difference.error, difference.allowed());
        let case = format!("step, {name}: {}", difference.what);
        let check = Check { case, what: "beside the processor's", error, tolerance, digest: 0 };
        report.check("step", &check, repeats);
    }
    Ok(())
}
