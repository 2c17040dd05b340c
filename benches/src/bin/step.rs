//! Tokens per second of one LoRA training step (forward, backward, clip, AdamW) on this CPU: one JSON line. Shapes and
//! options are those of common PEFT micro-benchmarks, so that both can be run side by side.
#![forbid(unsafe_code)]

use std::time::Instant;

use anyhow::Result;
use brightrun_benches::random_base::Shape;
use brightrun_benches::resident;
use brightrun_kernels::dropout::splitmix;
use brightrun_kernels::gemm::{Accumulate, MatMut, MatRef, Threads, gemm};
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::batch::{MicroBatch, Sequence};
use brightrun_trainer::lora::{LoraOptions, TargetSet, plan};
use brightrun_trainer::model::Model;
use brightrun_trainer::optim::{Optimizer, OptimizerOptions};
use brightrun_trainer::step::{Gradients, Position, Recompute, StepOptions, accumulate};
use brightrun_trainer::weights::{BasePrecision, Checkpoint};
use clap::Parser;
use serde_json::json;

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value = "qwen3_moe")]
    arch: String,
    #[arg(long, default_value_t = 512)]
    hidden: usize,
    #[arg(long, default_value_t = 8)]
    layers: usize,
    #[arg(long, default_value_t = 32)]
    experts: usize,
    #[arg(long, default_value_t = 4)]
    topk: usize,
    #[arg(long, default_value_t = 256)]
    moe_inter: usize,
    #[arg(long, default_value_t = 8192)]
    vocab: usize,
    #[arg(long, default_value_t = 8)]
    heads: usize,
    #[arg(long, default_value_t = 2)]
    kv: usize,
    #[arg(long, default_value_t = 64)]
    head_dim: usize,
    #[arg(long, default_value_t = 4)]
    batch: usize,
    #[arg(long, default_value_t = 256)]
    seq: usize,
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// 1: layer-wise recompute.
    #[arg(long, default_value_t = 0)]
    ckpt: u8,
    /// 1: the base in NF4 with double quantisation.
    #[arg(long, default_value_t = 0)]
    nf4: u8,
    #[arg(long, default_value_t = 5)]
    steps: usize,
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// Best of some products of 1024 x 1024 matrices, in GFLOP/s: how much of the machine this run really had.
fn calibrate() -> f64 {
    const SIZE: usize = 1024;
    let a = vec![1.0f32; SIZE * SIZE];
    let mut c = vec![0.0f32; SIZE * SIZE];
    let best = (0..20)
        .map(|_| {
            let begin = Instant::now();
            let (lhs, rhs) = (MatRef::new(&a, SIZE, SIZE), MatRef::new(&a, SIZE, SIZE));
            gemm(MatMut::new(&mut c, SIZE, SIZE), Accumulate::Overwrite, 1.0, lhs, rhs, Threads::All);
            begin.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    2.0 * (SIZE as f64).powi(3) / best / 1e9
}

fn random_batch(arguments: &Arguments) -> Result<MicroBatch> {
    let sequences: Vec<Sequence> = (0..arguments.batch as u64)
        .map(|row| {
            let token = |t: u64| 3 + splitmix(row << 32 | t) % (arguments.vocab as u64 - 3);
            let tokens: Vec<u32> = (0..arguments.seq as u64).map(|t| token(t) as u32).collect();
            Sequence { labels: tokens.iter().map(|t| i64::from(*t)).collect(), valid: tokens.len(), tokens }
        })
        .collect();
    Ok(MicroBatch::from_sequences(&sequences)?)
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    rayon::ThreadPoolBuilder::new().num_threads(arguments.threads).build_global()?;
    let shape = Shape {
        arch: arguments.arch.clone(),
        hidden: arguments.hidden,
        layers: arguments.layers,
        experts: arguments.experts,
        top_k: arguments.topk,
        moe_intermediate: arguments.moe_inter,
        vocab: arguments.vocab,
        heads: arguments.heads,
        kv_heads: arguments.kv,
        head_dim: arguments.head_dim,
    };
    let dir = tempfile::tempdir()?;
    let config = shape.write(dir.path())?;
    let checkpoint = Checkpoint::open(dir.path(), &config)?;
    let options = LoraOptions {
        rank: arguments.rank,
        alpha: 2.0 * arguments.rank as f64,
        dropout: 0.0,
        use_rslora: false,
        targets: TargetSet::Classic,
        expert_rank: Some(arguments.rank),
    };
    let adapters = Adapters::new(&config, &plan(&config, &options)?, 1)?;
    let precision = if arguments.nf4 == 1 { BasePrecision::nf4() } else { BasePrecision::Full };
    let model = Model::load(&config, &checkpoint, &precision, &adapters)?;
    let mut optimizer = Optimizer::new(&adapters, OptimizerOptions::default());
    let recompute = if arguments.ckpt == 1 { Recompute::Layers } else { Recompute::None };
    let step_options = StepOptions { recompute, dropout: 0.0, seed: 1, neftune_alpha: 0.0, aux_coefficient: None };
    let batch = random_batch(&arguments)?;
    let before = resident::current_mib();
    let calibration = calibrate();
    let (mut times, mut backward, mut losses) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..arguments.warmup + arguments.steps {
        let begin = Instant::now();
        let mut gradients = Gradients::new(&adapters);
        let position = Position { step: step as u64, micro_batch: 0, micro_batches: 1 };
        let report = accumulate(&model, &batch, &step_options, position, batch.target_count(), &mut gradients)?;
        let middle = begin.elapsed().as_secs_f64();
        optimizer.step(&gradients, 1e-4)?;
        losses.push(report.loss_sum / report.targets as f64);
        if step >= arguments.warmup {
            times.push(begin.elapsed().as_secs_f64());
            backward.push(middle);
        }
    }
    times.sort_by(f64::total_cmp);
    backward.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let tokens = (arguments.batch * arguments.seq) as f64;
    let result = json!({
        "arch": arguments.arch, "nf4": arguments.nf4, "ckpt": arguments.ckpt, "threads": arguments.threads,
        "lora_params_M": adapters.parameter_count() as f64 / 1e6,
        "tok_per_s": tokens / median, "best_tok_per_s": tokens / times[0], "step_s": median,
        "forward_backward_s": backward[backward.len() / 2], "step_s_min_max": [times[0], times[times.len() - 1]],
        "calib_gflops": [calibration, calibrate()], "rss_before_MiB": before, "peak_rss_MiB": resident::peak_mib(),
        "losses": losses,
    });
    println!("{result}");
    Ok(())
}
