//! NF4: bytes and scales, the QLoRA runs, and the checkpoints bitsandbytes writes.
//!
//! The CPU kernels that made the goldens search the 8-bit codes of the scales approximately, and read the wrong scale
//! for matrices whose width is a multiple of 16 but not of 64 (see [`Nf4Arithmetic`]). To meet the numbers, the runs
//! here do the same; `nf4.exact_rule.*` and `nf4.*.exact.base_loss` say how far off are the codes and the loss of the
//! arithmetic that the product trains with.

use std::cmp::Ordering;

use anyhow::{Context, Result};
use brightrun_kernels::nf4::{Nf4Matrix, Scales, dynamic_map};
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::config::ModelConfig;
use brightrun_trainer::lora;
use brightrun_trainer::model::Nf4Arithmetic;
use brightrun_trainer::optim::UnhitExperts;
use brightrun_trainer::weights::{BasePrecision, Checkpoint};

use super::fixture::{Fixture, Tensors};
use super::measure::{Report, absolute, largest, relative, share_of_maximum};
use super::model::{Source, adapter_difference, compare_logits, compare_series, mean_losses, train};

const FILE: &str = "golden_nf4.safetensors";
const LOSS: f64 = 5e-4;
const GRADIENT: f64 = 1e-3;
const LOGITS: f64 = 5e-4;
const ADAPTER: f64 = 2e-3;
/// Width of a bin of the reference's approximate search for 8-bit codes.
const SEARCH_BIN: f32 = 2.0 / 65_535.0;

fn has_goldens(fixture: &Fixture) -> bool {
    !fixture.golden.nf4.is_empty() && fixture.dir.join(FILE).is_file()
}

/// Bytes, scales and decoded values of the tensors the fixture has.
pub(super) fn quantisation(fixture: &Fixture, report: &mut Report) -> Result<()> {
    if !has_goldens(fixture) {
        return Ok(());
    }
    let golden = fixture.tensors(FILE)?;
    let config = ModelConfig::read(&fixture.base())?;
    let checkpoint = Checkpoint::open(&fixture.base(), &config)?;
    let modules: Vec<String> =
        golden.with_prefix("q.").filter_map(|(name, _)| Some(name.strip_suffix(".absmax_u8")?.to_owned())).collect();
    let mut totals = Totals::default();
    for module in &modules {
        totals.add(module, &golden, &checkpoint)?;
    }
    report.check("nf4.wrong_bytes", totals.bytes, 0.0);
    report.check("nf4.nested_absmax", totals.nested, 0.0);
    report.check("nf4.offset", totals.offset, 0.0);
    report.check("nf4.codes_wrong", totals.codes_wrong, 0.0);
    report.note("nf4.exact_rule.codes_off_share", totals.exact_off / totals.codes.max(1.0));
    report.check("nf4.exact_rule.absmax_step", totals.exact_step, 1.0);
    report.check("nf4.decoded", totals.decoded, 0.0);
    Ok(())
}

/// Bytes that differ; NaN when the lengths do.
fn differing(found: &[u8], expected: &[u8]) -> f64 {
    if found.len() != expected.len() {
        return f64::NAN;
    }
    found.iter().zip(expected).filter(|(f, e)| f != e).count() as f64
}

/// Distance of two 8-bit codes' values, in steps. A step is the way from `exact` to its neighbour on the side of
/// `expected`; near zero, where codes are denser than the bins of the approximate search, it is a bin.
fn map_step(exact: u8, expected: u8) -> f64 {
    let value = |code: u8| dynamic_map()[usize::from(code)];
    let neighbour = match exact.cmp(&expected) {
        Ordering::Equal => return 0.0,
        Ordering::Less => exact + 1,
        Ordering::Greater => exact - 1,
    };
    let step = (value(exact) - value(neighbour)).abs().max(SEARCH_BIN);
    f64::from((value(exact) - value(expected)).abs()) / f64::from(step)
}

#[derive(Default)]
struct Totals {
    bytes: f64,
    nested: f64,
    offset: f64,
    codes: f64,
    codes_wrong: f64,
    exact_off: f64,
    exact_step: f64,
    decoded: f64,
}

impl Totals {
    fn add(&mut self, module: &str, golden: &Tensors, checkpoint: &Checkpoint) -> Result<()> {
        let weight = checkpoint.linear(module, &BasePrecision::Full)?;
        let (rows, columns, values) = (weight.rows(), weight.columns(), weight.to_f32());
        let matrix = Nf4Matrix::quantize_as_bitsandbytes_cpu(&values, rows, columns)?;
        let exact = Nf4Matrix::quantize(&values, rows, columns, true)?;
        let named = |what: &str| format!("q.{module}.{what}");
        let packed = golden.bytes(&named("weight"))?;
        self.bytes += differing(matrix.packed(), &packed) + differing(exact.packed(), &packed);
        let (Scales::Double { codes, nested, offset }, Scales::Double { codes: exact_codes, .. }) =
            (matrix.scales(), exact.scales())
        else {
            anyhow::bail!("{module} was not quantised twice")
        };
        let expected_codes = golden.bytes(&named("absmax_u8"))?;
        let expected_nested = golden.floats(&named("nested_absmax"))?;
        let expected_offset = golden.floats(&named("nested_offset"))?;
        self.nested = largest([self.nested, absolute(nested, &expected_nested)].into_iter());
        self.offset = largest([self.offset, absolute(&[*offset], &expected_offset)].into_iter());
        self.codes += codes.len() as f64;
        self.codes_wrong += differing(codes, &expected_codes);
        self.exact_off += differing(exact_codes, &expected_codes);
        let steps = exact_codes.iter().zip(&expected_codes).map(|(exact, expected)| map_step(*exact, *expected));
        self.exact_step = largest([self.exact_step].into_iter().chain(steps));
        let scales = Scales::Double { codes: expected_codes, nested: expected_nested, offset: expected_offset[0] };
        let given = Nf4Matrix::from_parts(rows, columns, packed, scales)?;
        let decoded = given.dequantize_as_bitsandbytes_cpu();
        self.decoded = largest([self.decoded, absolute(&decoded, &golden.floats(&named("dequant_f32"))?)].into_iter());
        Ok(())
    }
}

/// Losses, gradients and final adapter of the QLoRA runs.
pub(super) fn runs(fixture: &Fixture, report: &mut Report) -> Result<()> {
    if !has_goldens(fixture) {
        return Ok(());
    }
    let golden = fixture.tensors(FILE)?;
    for (name, expected) in &fixture.golden.nf4 {
        let precision = BasePrecision::Nf4 { double_quant: true, skip: expected.llm_int8_skip_modules.clone() };
        let source = Source::open(&fixture.base(), precision.clone(), Nf4Arithmetic::BitsandbytesCpu)?;
        let model = source.model(&Adapters::none())?;
        let batch = fixture.batches.first().context("the fixture has no batch")?;
        report.check(
            &format!("nf4.{name}.base_loss"),
            relative(&mean_losses(&model, &fixture.batches)?, &expected.base_loss),
            LOSS,
        );
        let exact = Source::open(&fixture.base(), precision, Nf4Arithmetic::Exact)?.model(&Adapters::none())?;
        let loss = mean_losses(&exact, &fixture.batches)?;
        report.note(&format!("nf4.{name}.exact.base_loss"), relative(&loss, &expected.base_loss));
        let key = format!("{name}.logits_base");
        if golden.has(&key) {
            compare_logits(&format!("nf4.{key}"), &model, batch, &golden.floats(&key)?, LOGITS, report)?;
        }

        let run = train(&source, fixture, UnhitExperts::Skip)?;
        let prefix = format!("nf4.{name}.train");
        let followed = compare_series(&prefix, &run, &expected.train, fixture, LOSS, true, report)?;
        let mut worst = 0.0;
        for (key, _) in golden.with_prefix(&format!("{name}.grad.base_model.model.")) {
            let Some((path, matrix)) = key.rsplit_once(".lora_") else { continue };
            let adapter = run.first.get(path).with_context(|| format!("{path} is not adapted"))?;
            let found = if matrix.starts_with('A') { &adapter.a } else { &adapter.b };
            let expected = golden.floats(&format!("{name}.grad.base_model.model.{key}"))?;
            worst = largest([worst, share_of_maximum(&found.values, &expected)].into_iter());
        }
        report.check(&format!("nf4.{name}.first_gradients"), worst, GRADIENT);
        let dir = fixture.dir.join("nf4_lora_final");
        if name == "skip_router" && dir.is_dir() {
            let (_, expected) = lora::read(&dir, &source.config)?;
            let difference = adapter_difference(&run.adapters.tensors()?, &expected);
            report.check("nf4.final_adapter", difference, if followed { ADAPTER } else { f64::INFINITY });
        }
        if let Some(expected) = &expected.train_zero_filled {
            let run = train(&source, fixture, UnhitExperts::Zero)?;
            compare_series(&format!("{prefix}_zero_filled"), &run, expected, fixture, LOSS, true, report)?;
        }
    }
    Ok(())
}

/// The checkpoint bitsandbytes wrote gives the loss of the run without router quantisation.
pub(super) fn checkpoint(fixture: &Fixture, report: &mut Report) -> Result<()> {
    let (Some(dir), Some(expected)) = (fixture.bnb4bit(), fixture.golden.nf4.get("skip_router")) else { return Ok(()) };
    let source = Source::open(&dir, BasePrecision::Full, Nf4Arithmetic::BitsandbytesCpu)?;
    let model = source.model(&Adapters::none())?;
    report.check("bnb4bit.base_loss", relative(&mean_losses(&model, &fixture.batches)?, &expected.base_loss), LOSS);
    Ok(())
}
