//! Tests that need a process of their own: an ignored test of the same program, run by its name, that prints what it found.

use std::{env, fs, process::Command};

use anyhow::{Context, Result, ensure};

/// What a test of this program prints after `label` when it runs alone, with the heap that the program has and
/// `threads` threads.
pub fn numbers_of(test: &str, label: &str, threads: usize, variables: &[(&str, &str)]) -> Result<Vec<f64>> {
    let output = Command::new(env::current_exe()?)
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env("RAYON_NUM_THREADS", threads.to_string())
        // What the program asks for by itself (`share_one_heap`); here threads of the test's are there before.
        .env("MALLOC_ARENA_MAX", "1")
        .envs(variables.iter().copied())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let (_, said) = text.split_once(label).context("the child said nothing")?;
    let line = said.lines().next().unwrap_or_default();
    Ok(line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
}

/// The most memory that this process had resident at any moment, in bytes. Linux only.
pub fn high_water_mark() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let kib = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(kib.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}
