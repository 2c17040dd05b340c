//! How fast every op is, at the shapes of real layers, as a share of what bounds it.
//!
//! Of each op is known what any way of computing it must do at least: operations of its products, and bytes that it reads and
//! writes. The longer of both at the card's ceilings is the time below which it cannot be; the share is that time over the
//! measured one. Arguments are random numbers, never zeros, which are faster; where they would stay in the card's cache, calls
//! take turns on several sets of them.

mod experts;
mod mixing;
mod models;
mod products;
mod rows;
mod training;

use std::cell::Cell;

use brightrun_kernels::elements::to_floats;
use brightrun_kernels::gpu::{Buffer, Gpu};
use brightrun_kernels::noise::{uniform, uniform_bf16};
use brightrun_kernels::{Documents, GpuDocuments, Result};
use half::bf16;
use serde_json::json;

use super::Part;
use super::ceilings::Ceilings;
use super::report::Report;
use super::timing::{Times, Work};
use models::{Shapes, shapes};

/// Bytes of all sets of arguments together: several times what the caches of cards hold (50 MB on an H200).
const BEYOND_CACHE: u64 = 192 << 20;
/// Sets at most.
const SETS: u64 = 64;

/// What an op must do at least.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// Additions and multiplications of its products; 0 where it has none.
    operations: f64,
    /// Bytes that it reads and writes.
    bytes: f64,
}

/// An op at some size.
struct Op {
    name: String,
    about: &'static str,
    cost: Cost,
    /// Whether a GPU can do it in this way.
    possible: fn(&Gpu) -> bool,
    /// Makes arguments, and what calls the op on them.
    set_up: Box<SetUp>,
}

type SetUp = dyn Fn(&Draw<'_>) -> Result<Work>;

/// Where arguments come from: random numbers of a GPU, others each time.
struct Draw<'a> {
    gpu: &'a Gpu,
    key: Cell<u64>,
}

/// Every op, as parts that can be chosen.
pub(super) fn parts(small: bool) -> Vec<Part> {
    let shapes = shapes(small);
    let all = [
        products::ops(&shapes),
        experts::ops(&shapes),
        mixing::ops(&shapes),
        training::ops(&shapes),
        rows::ops(&shapes),
    ];
    all.into_iter().flatten().map(|op| op.part(small)).collect()
}

// === impl Cost ===

impl Cost {
    fn new(operations: usize, bytes: usize) -> Self {
        Self { operations: operations as f64, bytes: bytes as f64 }
    }

    /// Of an op whose few operations are hidden behind its bytes.
    fn bytes(bytes: usize) -> Self {
        Self::new(0, bytes)
    }
}

// === impl Op ===

impl Op {
    fn new(
        name: impl Into<String>,
        about: &'static str,
        cost: Cost,
        set_up: impl Fn(&Draw<'_>) -> Result<Work> + 'static,
    ) -> Self {
        Self { name: name.into(), about, cost, possible: |_| true, set_up: Box::new(set_up) }
    }

    /// Only where a GPU can do it in this way.
    fn only_where(self, possible: fn(&Gpu) -> bool) -> Self {
        Self { possible, ..self }
    }

    fn part(self, small: bool) -> Part {
        let (name, about) = (format!("op:{}", self.name), self.about);
        Part { name, about, run: Box::new(move |gpu, seed, report| self.run(gpu, seed, small, report)) }
    }

    fn run(&self, gpu: &Gpu, seed: u64, small: bool, report: &mut Report) -> anyhow::Result<()> {
        if !(self.possible)(gpu) {
            println!("{:<56} not on this card", self.name);
            return Ok(());
        }
        let ceilings = Ceilings::of(gpu, seed, small, report)?;
        let draw = Draw { gpu, key: Cell::new(seed) };
        let before = gpu.usage().now;
        let mut sets = vec![(self.set_up)(&draw)?];
        let one = (gpu.usage().now - before).max(1);
        let wanted = if small { 1 } else { BEYOND_CACHE.div_ceil(one).clamp(1, SETS) };
        for _ in 1..wanted {
            sets.push((self.set_up)(&draw)?);
        }
        gpu.forget_peak();
        let all = gpu.usage().now;
        let times = Times::of(gpu, &mut sets, small)?;
        self.tell(times, ceilings, one + gpu.usage().peak - all, report);
        Ok(())
    }

    fn tell(&self, times: Times, ceilings: Ceilings, memory: u64, report: &mut Report) {
        let Cost { operations, bytes } = self.cost;
        let (of_products, of_memory) = (operations / ceilings.products, bytes / ceilings.bandwidth);
        let by_products = of_products > of_memory;
        let share = of_products.max(of_memory) / times.median;
        let first = report.op(json!({
            "name": self.name,
            "milliseconds": {"median": 1e3 * times.median, "least": 1e3 * times.least, "most": 1e3 * times.most},
            "measurements": times.count,
            "operations": operations, "bytes": bytes, "memory": memory,
            "flops_per_second": operations / times.median, "bytes_per_second": bytes / times.median,
            "bound": if by_products { "products" } else { "bandwidth" }, "share": share,
        }));
        if first {
            println!("{:<56} {:>9} {:>21} {:>14} {:>6}", "op", "ms", "least..most", "rate", "share");
        }
        let (rate, unit) = if by_products { (operations, "TFLOP/s") } else { (bytes, "TB/s") };
        println!(
            "{:<56} {:>9.4} {:>21} {:>6.4} {unit:<7} {:>4.0} %",
            self.name,
            1e3 * times.median,
            format!("{:.4}..{:.4}", 1e3 * times.least, 1e3 * times.most),
            format!("{:.2}", rate / times.median / 1e12),
            100.0 * share
        );
    }
}

// === impl Draw ===

impl Draw<'_> {
    fn key(&self) -> u64 {
        self.key.replace(self.key.get().wrapping_add(0x9e37_79b9_7f4a_7c15))
    }

    /// Numbers in `-limit..limit`.
    fn bf16_within(&self, limit: f32, count: usize) -> Result<Buffer<bf16>> {
        uniform_bf16(self.gpu, count, limit, self.key())
    }

    /// Numbers in -1..1.
    fn bf16(&self, count: usize) -> Result<Buffer<bf16>> {
        self.bf16_within(1.0, count)
    }

    /// Numbers in `-limit..limit`.
    fn floats(&self, limit: f32, count: usize) -> Result<Buffer<f32>> {
        let mut floats = self.gpu.empty(count)?;
        to_floats(&self.bf16_within(limit, count)?, &mut floats)?;
        Ok(floats)
    }

    /// Numbers in -1..1, on the host.
    fn vector(&self, count: usize) -> Vec<f32> {
        let key = self.key();
        (0..count as u64).map(|place| uniform(key, place)).collect()
    }

    /// Room for results.
    fn room(&self, count: usize) -> Result<Buffer<bf16>> {
        self.gpu.empty(count)
    }

    fn documents(&self, lengths: &[usize]) -> Result<GpuDocuments> {
        GpuDocuments::of(self.gpu, &Documents::from_lengths(lengths)?)
    }
}

/// Bytes of so many values of bf16.
fn half(values: usize) -> usize {
    values * size_of::<bf16>()
}

/// The tokens of a row in documents of at most so many.
fn split(tokens: usize, most: usize) -> Vec<usize> {
    (0..tokens).step_by(most).map(|from| most.min(tokens - from)).collect()
}

/// Calls `op` with every model and number of tokens.
fn each<'a>(shapes: &'a Shapes, mut op: impl FnMut(&'a models::Model, usize)) {
    for model in &shapes.models {
        for &tokens in &shapes.tokens {
            op(model, tokens);
        }
    }
}
