//! What this card can do at best: copying, and large products of bf16. Everything else is told as a share of that.

use anyhow::Result;
use brightrun_kernels::Error;
use brightrun_kernels::gemm::gpu::{Form, Matrix, Out, Product};
use brightrun_kernels::gpu::Gpu;
use brightrun_kernels::noise::uniform_bf16;
use serde_json::json;

use super::Part;
use super::report::Report;
use super::timing::{Times, Work};

/// Bytes that are copied: far more than any cache holds.
const COPIED: usize = 2 << 30;
/// Sides of the product.
const SIDE: usize = 8192;
/// The same where it is only to be seen that it runs.
const SMALL_COPIED: usize = 1 << 20;
const SMALL_SIDE: usize = 64;

const LIBRARY: &str = "cuBLASLt";

/// The best that this card was seen to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ceilings {
    /// Bytes a second, those that are read and those that are written.
    pub(super) bandwidth: f64,
    /// Operations a second in products of bf16.
    pub(super) products: f64,
}

pub(super) fn part(small: bool) -> Part {
    let run = move |gpu: &Gpu, seed, report: &mut Report| Ceilings::of(gpu, seed, small, report).map(drop);
    Part { name: "ceilings".into(), about: "copy bandwidth, large products of bf16", run: Box::new(run) }
}

// === impl Ceilings ===

impl Ceilings {
    /// Those of the report; measures them for it if it has none yet.
    pub(super) fn of(gpu: &Gpu, seed: u64, small: bool, report: &mut Report) -> Result<Self> {
        if let Some(ceilings) = report.ceilings() {
            return Ok(ceilings);
        }
        let copied = if small { SMALL_COPIED } else { COPIED };
        let (from, mut to) = (uniform_bf16(gpu, copied / 2, 1.0, seed)?, gpu.empty(copied / 2)?);
        let copy: Work = Box::new(move || to.copy_from(&from));
        let bandwidth = 2.0 * copied as f64 / Times::of(gpu, &mut [copy], small)?.median;
        println!("copy: {:.2} TB/s, read and written", bandwidth / 1e12);

        let side = if small { SMALL_SIDE } else { SIDE };
        let operations = 2.0 * (side as f64).powi(3);
        let rate = |run| -> brightrun_kernels::Result<f64> {
            let work = square(gpu, Form::RowsByRows, side, seed, run)?;
            Ok(operations / Times::of(gpu, &mut [work], small)?.median)
        };
        let (kernel, library) = (rate(|product, out| product.by_kernel(out))?, rate(by_library).ok());
        println!("product of {side} x {side}, our kernel: {:.0} TFLOP/s", kernel / 1e12);
        match library {
            Some(library) => println!("product of {side} x {side}, {LIBRARY}: {:.0} TFLOP/s", library / 1e12),
            None => println!("product of {side} x {side}: no {LIBRARY} on this machine"),
        }
        report.note("copy_bytes_per_second", json!(bandwidth));
        report.note("product_flops_per_second", json!({"side": side, "kernel": kernel, "cublaslt": library}));
        let ceilings = Self { bandwidth, products: kernel.max(library.unwrap_or(0.0)) };
        report.set_ceilings(ceilings);
        Ok(ceilings)
    }
}

/// A square product, computed in one of the ways that there are.
pub(super) fn square(
    gpu: &Gpu,
    form: Form,
    side: usize,
    key: u64,
    run: fn(&Product<'_>, Out<'_>) -> brightrun_kernels::Result<()>,
) -> brightrun_kernels::Result<Work> {
    let factor = |key| uniform_bf16(gpu, side * side, 1.0, key);
    let (a, b, mut out) = (factor(key)?, factor(key.wrapping_add(1))?, gpu.empty(side * side)?);
    Ok(Box::new(move || {
        let product = Product::new(form, Matrix::of(&a, side, side)?, Matrix::of(&b, side, side)?);
        run(&product, Out::Bf16(&mut out))
    }))
}

/// For [`square`]: fails where the vendor's library does not compute it.
fn by_library(product: &Product<'_>, mut out: Out<'_>) -> brightrun_kernels::Result<()> {
    if product.by_library(&mut out)? {
        Ok(())
    } else {
        Err(Error::Gpu { what: LIBRARY.into(), reason: "not there".into() })
    }
}
