//! `memory`: peak resident memory of one training step against the number of layers, with recompute and without.
//!
//! Every row is a process of its own, which takes one whole step first (so that weights, adapters, moments and the
//! buffers of the threads are there), notes its resident memory, and then takes the step that is measured. Linux only:
//! it reads and resets the high-water mark in `/proc`.
#![forbid(unsafe_code)]

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use brightrun_tests::toy::{Mixers, Shape, Toy};
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::batch::MicroBatch;
use brightrun_trainer::config::Family;
use brightrun_trainer::lora::TargetSet;
use brightrun_trainer::model::Model;
use brightrun_trainer::optim::{Optimizer, OptimizerOptions};
use brightrun_trainer::step::{Gradients, Position, Recompute, StepOptions, accumulate};
use clap::{Parser, ValueEnum};
use serde_json::json;

const MIB: f64 = (1u64 << 20) as f64;
/// Tensors above this size go straight back to the system when they are freed, so that what is resident is what lives.
const MMAP_THRESHOLD: &str = "65536";

/// Measures the memory of a training step.
#[derive(Parser)]
struct Arguments {
    /// Numbers of layers, one row each.
    #[arg(long, value_delimiter = ',', default_value = "4,8,16,32")]
    layers: Vec<usize>,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 256)]
    hidden: usize,
    /// Tokens of the batch, in documents of 512.
    #[arg(long, default_value_t = 2048)]
    tokens: usize,
    /// Architecture.
    #[arg(long, value_enum, default_value_t = Architecture::Qwen3Next)]
    family: Architecture,
    /// Measures in this process and prints one JSON line.
    #[arg(long, hide = true)]
    measure: Option<Keep>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Architecture {
    Qwen3Next,
    Qwen3Moe,
    Qwen2Moe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Keep {
    Inputs,
    Graphs,
}

// === impl Architecture ===

impl Architecture {
    fn family(self) -> Family {
        match self {
            Self::Qwen3Next => Family::Qwen3Next,
            Self::Qwen3Moe => Family::Qwen3Moe,
            Self::Qwen2Moe => Family::Qwen2Moe,
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !cfg!(target_os = "linux") {
        bail!("peak memory is read from /proc, which only Linux has");
    }
    match arguments.measure {
        Some(keep) => measure(&arguments, keep),
        None => table(&arguments),
    }
}

/// A value of `/proc/self/status`, in bytes.
fn status(field: &str) -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")).with_context(|| format!("no {field}"))?;
    Ok(kib.trim().parse::<f64>()? * 1024.0)
}

fn step(model: &Model, adapters: &Adapters, batch: &MicroBatch, keep: Keep, step: u64) -> Result<Gradients> {
    let recompute = if keep == Keep::Inputs { Recompute::Layers } else { Recompute::None };
    let options = StepOptions { recompute, dropout: 0.0, seed: 0, neftune_alpha: 0.0, aux_coefficient: None };
    let mut gradients = Gradients::new(adapters);
    let position = Position { step, micro_batch: 0, micro_batches: 1 };
    accumulate(model, batch, &options, position, batch.target_count(), &mut gradients)?;
    Ok(gradients)
}

/// One row: what a step needs on top of what is there before it.
fn measure(arguments: &Arguments, keep: Keep) -> Result<()> {
    let [layers] = arguments.layers[..] else { bail!("one number of layers is measured at a time") };
    let shape = Shape {
        family: arguments.family.family(),
        mixers: Mixers::Both,
        layers,
        hidden: arguments.hidden,
        vocabulary: 1024,
        experts: 8,
        expert_width: arguments.hidden / 4,
    };
    let dir = tempfile::tempdir()?;
    let toy = Toy::write(dir.path(), &shape, 1)?;
    let adapters = toy.adapters(&toy.plan(TargetSet::Default)?, 2)?;
    let model = toy.model(&adapters)?;
    let lengths: Vec<usize> =
        (0..arguments.tokens).step_by(512).map(|start| (arguments.tokens - start).min(512)).collect();
    let batch = MicroBatch::from_sequences(&toy.sequences(&lengths, 1.0, 3))?;
    drop((toy, dir));
    let mut optimizer = Optimizer::new(&adapters, OptimizerOptions::default());
    let first = step(&model, &adapters, &batch, keep, 0)?;
    optimizer.step(&first, 1e-3)?;
    drop(first);

    let before = status("VmRSS")?;
    // 5 sets the high-water mark back to what is resident now (man 5 proc).
    std::fs::write("/proc/self/clear_refs", "5").context("cannot reset the high-water mark")?;
    let gradients = step(&model, &adapters, &batch, keep, 1)?;
    let peak = status("VmHWM")? - before;
    drop(gradients);
    println!("{}", json!({ "before": before, "peak": peak }));
    Ok(())
}

fn row(arguments: &Arguments, layers: usize, keep: &str) -> Result<(f64, f64)> {
    let family = arguments.family.to_possible_value().context("a family has a name")?;
    let output = Command::new(std::env::current_exe()?)
        .args(["--layers", &layers.to_string(), "--hidden", &arguments.hidden.to_string()])
        .args(["--tokens", &arguments.tokens.to_string(), "--family", family.get_name(), "--measure", keep])
        .env("MALLOC_MMAP_THRESHOLD_", MMAP_THRESHOLD)
        .output()?;
    ensure!(output.status.success(), "{layers} layers: {}", String::from_utf8_lossy(&output.stderr));
    let line: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let number = |name: &str| line[name].as_f64().with_context(|| format!("no {name} in {line}"));
    Ok((number("before")? / MIB, number("peak")? / MIB))
}

fn table(arguments: &Arguments) -> Result<()> {
    let input = (arguments.tokens * arguments.hidden * 4) as f64 / MIB;
    println!(
        "One layer input is {input:.2} MiB ({} tokens x {} x 4 bytes). All in MiB.\n",
        arguments.tokens, arguments.hidden
    );
    println!(
        "| layers | resident before the step | step, recompute | per added layer | step, no recompute | per added layer |"
    );
    println!("|---:|---:|---:|---:|---:|---:|");
    let mut last: Option<(usize, f64, f64)> = None;
    for &layers in &arguments.layers {
        let (before, inputs) = row(arguments, layers, "inputs")?;
        let (_, graphs) = row(arguments, layers, "graphs")?;
        let growth = |now: f64, then: fn(&(usize, f64, f64)) -> f64| match &last {
            Some(last) => format!("{:.2}", (now - then(last)) / (layers as f64 - last.0 as f64)),
            None => String::new(),
        };
        let (with, without) = (growth(inputs, |l| l.1), growth(graphs, |l| l.2));
        println!("| {layers} | {before:.1} | {inputs:.1} | {with} | {graphs:.1} | {without} |");
        last = Some((layers, inputs, graphs));
    }
    Ok(())
}
