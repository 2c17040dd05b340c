//! One binary for a machine with a GPU and nothing else: is every number right there, and how fast is it?
//!
//! ```text
//! CUDA_HOME=... cargo build --release -p brightrun-benches --features cuda --bin gpu-check
//! gpu-check --json gpu-check.json
//! ```
//!
//! Parity comes first, on arguments drawn anew each time: what is fast and wrong need not be timed.

mod ceilings;
mod golden;
mod ops;
mod parity;
mod report;
mod resources;
mod step_parity;
mod steps;
mod timing;

use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use brightrun_kernels::gpu::Gpu;
use clap::Parser;
use report::Report;
use serde_json::json;

/// Exit code where there is no GPU: not the same as one that computes wrongly.
const NO_GPU: u8 = 3;

/// Checks and measures the kernels on this machine's GPU.
#[derive(Parser)]
#[command(name = "gpu-check")]
struct Options {
    /// Says what there is to check and measure, and ends.
    #[arg(long)]
    list: bool,
    /// Only these parts, with commas between them: "op" is all whose names begin with "op:".
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Says what the kernels take of each card by the compiler's report, and ends; fails where one needs more registers than
    /// there are. Needs no GPU.
    #[arg(long)]
    resources: bool,
    /// Arguments are drawn from this number; a new one each time without it.
    #[arg(long)]
    seed: Option<u64>,
    /// Only small arguments, and no op for longer than to see that it runs: minutes where the GPU is an emulated one.
    #[arg(long)]
    small: bool,
    /// Folder with fixtures whose runs are repeated, as `tests/fixtures`.
    #[arg(long)]
    fixtures: Option<PathBuf>,
    /// Number of the GPU.
    #[arg(long, default_value_t = 0)]
    card: u32,
    /// Writes everything that was found to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// A part of the whole that can be chosen by name.
struct Part {
    name: String,
    about: &'static str,
    run: Run,
}

type Run = Box<dyn Fn(&Gpu, u64, &mut Report) -> Result<()>>;

// === impl Part ===

impl Part {
    /// Whether it has this name, or one that goes on behind it with a colon.
    fn is(&self, name: &str) -> bool {
        self.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gpu-check: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<ExitCode> {
    let parts = chosen(options)?;
    if options.list {
        parts.iter().for_each(|part| println!("{:<56} {}", part.name, part.about));
        return Ok(ExitCode::SUCCESS);
    }
    if options.resources {
        return resources::show();
    }
    if let Err(error) = Gpu::cards() {
        println!("no GPU here: {error}");
        return Ok(ExitCode::from(NO_GPU));
    }
    let seed = match options.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64,
    };
    let gpu = Gpu::open(options.card, None)?;
    let facts = gpu.facts().clone();
    println!(
        "{}, compute capability {}.{}, {} multiprocessors, {} GiB; seed {seed}",
        facts.name,
        facts.capability.0,
        facts.capability.1,
        facts.multiprocessors,
        facts.memory >> 30
    );
    let mut report = Report::default();
    report
        .note("gpu", json!({"name": facts.name, "capability": facts.capability, "memory": facts.memory, "seed": seed}));
    for part in &parts {
        // What fails is told, and the others still have their turn: time on a card is rare.
        if let Err(error) = (part.run)(&gpu, seed, &mut report) {
            report.failed(&part.name, &format!("{error:#}"));
        }
        if let Some(path) = &options.json {
            let text = serde_json::to_string_pretty(&report.json())?;
            fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    report.conclude(seed);
    Ok(if report.all_is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All parts, or those that were named.
fn chosen(options: &Options) -> Result<Vec<Part>> {
    let only = &options.only;
    let mut all = parity::small();
    all.extend(step_parity::parts());
    if let Some(fixtures) = &options.fixtures {
        all.extend(golden::parts(fixtures)?);
    }
    all.push(ceilings::part(options.small));
    all.extend(steps::parts(options.small));
    all.extend(ops::parts(options.small));
    if !options.small {
        all.extend(parity::real());
    }
    for name in only {
        ensure!(all.iter().any(|part| part.is(name)), "there is no part {name}: see --list");
    }
    Ok(all.into_iter().filter(|part| only.is_empty() || only.iter().any(|name| part.is(name))).collect())
}
