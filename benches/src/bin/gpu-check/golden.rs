//! The runs of the reference implementation, repeated here: `--fixtures tests/fixtures` where the repository is at hand, or a
//! copy of some of its folders.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use brightrun_kernels::gpu::Gpu;
use brightrun_kernels::gpu_check::Check;
use brightrun_tests::golden::{Held, measure_on};

use super::Part;
use super::report::Report;

/// One for each folder with numbers to compare with.
pub(super) fn parts(fixtures: &Path) -> Result<Vec<Part>> {
    let listed = fs::read_dir(fixtures).with_context(|| format!("reading {}", fixtures.display()))?;
    let mut folders = listed.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    folders.retain(|folder| folder.join("golden.json").is_file() && folder.join("lora_init").is_dir());
    ensure!(!folders.is_empty(), "{} has no folder with a golden.json", fixtures.display());
    folders.sort();
    let part = |folder: PathBuf| {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Part {
            name: format!("golden:{name}"),
            about: "losses of a base and a LoRA run, beside those of transformers and PEFT",
            run: Box::new(move |gpu, _, report| run(&name, &folder, gpu, report)),
        }
    };
    Ok(folders.into_iter().map(part).collect())
}

fn run(name: &str, folder: &Path, gpu: &Gpu, report: &mut Report) -> Result<()> {
    let found = measure_on(gpu, folder)?;
    for Held { name: what, difference, tolerance } in found.held() {
        let case = format!("golden, {name}: {what}");
        let what = "beside that of transformers and PEFT";
        let check = Check { case, what, error: *difference, tolerance: *tolerance, digest: 0 };
        report.check("golden", &check, true);
    }
    report.note(&format!("golden {name}"), found.json(&folder.display().to_string()));
    Ok(())
}
