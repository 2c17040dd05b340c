//! The runs of the reference implementation, repeated here: `--fixtures tests/fixtures` where the repository is at hand, or a
//! copy of some of its folders.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use brightrun_tests::golden::measure_on;

use super::Part;

/// One for each folder with numbers to compare with.
pub(super) fn parts(fixtures: &Path) -> Result<Vec<Part>> {
    let listed = fs::read_dir(fixtures).with_context(|| format!("reading {}", fixtures.display()))?;
    let mut folders = listed.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    folders.retain(|folder| folder.join("golden.json").is_file() && folder.join("lora_init").is_dir());
    ensure!(!folders.is_empty(), "{} has no folder with a golden.json", fixtures.display());
    folders.sort();
    let part = |folder: std::path::PathBuf| Part {
        name: format!("golden:{}", folder.file_name().unwrap_or_default().to_string_lossy()),
        about: "losses of a base and a LoRA run, beside those of transformers and PEFT",
        run: Box::new(move |gpu, _, report| {
            let found = measure_on(gpu, &folder)?;
            let json = found.json(&folder.display().to_string());
            ensure!(found.passed(), "{}", json["failed"]);
            report.note(&format!("golden {}", folder.display()), json);
            Ok(())
        }),
    };
    Ok(folders.into_iter().map(part).collect())
}
