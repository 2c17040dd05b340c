//! The choice of experts, their weights and the way back, the order of rows, and the load-balancing loss.

use super::{BF16_GRADIENT, Checks, EXACT, F32, Sizes};
use crate::gpu::Buffer;
use crate::moe::{Balance, ExpertUse, GpuRouting, LayerUse, LoadSums, Routing, reference};
use crate::self_test::values::{narrow, wide};
use crate::{Error, Result};

/// Tokens, experts, choices.
const SMALL: [(usize, usize, usize); 7] =
    [(1, 1, 1), (3, 7, 7), (67, 11, 3), (130, 60, 4), (70, 129, 8), (65, 512, 10), (3, 1000, 32)];
const REAL: [(usize, usize, usize); 2] = [(4096, 512, 10), (2048, 128, 8)];

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    let shapes: &[_] = if checks.sizes == Sizes::Small { &SMALL } else { &REAL };
    for &(tokens, experts, per_token) in shapes {
        // Few different values: many ties. All tokens on the same experts: long rows, and idle experts.
        for (kind, spread) in [("random", 3.0), ("ties", 0.0), ("one way", 0.01)] {
            let mut logits = narrow(&checks.random.values(tokens * experts));
            for (index, logit) in logits.iter_mut().enumerate() {
                let bias = if kind == "one way" { 0.1 * (index % experts) as f32 } else { 0.0 };
                *logit = if kind == "ties" { (*logit * 1.4).round() } else { *logit * spread } + bias;
            }
            for normalise in [false, true] {
                checks.case(format!("router {tokens} x {experts}, top {per_token}, {kind}, normalised {normalise}"));
                compare(checks, &logits, experts, per_token, normalise)?;
            }
        }
    }
    not_numbers(checks)
}

fn compare(checks: &mut Checks<'_>, logits: &[f32], experts: usize, per_token: usize, normalise: bool) -> Result<()> {
    let expected = Routing::from_logits(logits, experts, per_token)?;
    let on_gpu = checks.gpu.of(logits)?;
    let routing = GpuRouting::from_logits(&on_gpu, experts, per_token, normalise)?;
    compare_order(checks, &expected, &routing)?;
    let (chosen, logits) = (expected.chosen(), wide(logits));
    let weights = reference::routing_weights(&logits, experts, chosen, normalise);
    checks.compare("weights", routing.weights(), &weights, F32)?;

    let (d_weights, wide_weights) = checks.f32(chosen.len())?;
    let expected = reference::routing_weights_backward(&logits, experts, chosen, normalise, &wide_weights);
    let mut d_logits = checks.gpu.empty::<f32>(logits.len())?;
    // Where there is nothing to choose from, rounding is all there is.
    if per_token < experts || !normalise {
        let mut rounded = checks.gpu.empty(logits.len())?;
        routing.backward(&on_gpu, &d_weights, None, Some(&mut d_logits), Some(&mut rounded))?;
        if experts > 1 {
            checks.compare("gradient of the logits", &d_logits, &expected, F32)?;
            checks.compare("rounded gradient of the logits", &rounded, &expected, BF16_GRADIENT)?;
        }
    }

    let valid: Vec<f32> = (0..routing.tokens()).map(|token| if token % 5 == 3 { 0.0 } else { 1.0 }).collect();
    let real = wide(&valid);
    let valid = checks.gpu.of(&valid)?;
    let rows = 2.0 * real.iter().sum::<f64>();
    let mut counts = vec![0.0; experts];
    chosen.iter().enumerate().for_each(|(slot, &expert)| counts[expert as usize] += 2.0 * real[slot / per_token]);
    let shares: Vec<f64> = counts.iter().map(|count| experts as f64 * count / rows / rows).collect();
    // The same layer twice.
    let mut sums = LoadSums::new(checks.gpu, experts)?;
    sums.add(&routing, &on_gpu, Some(&valid))?;
    sums.add(&routing, &on_gpu, Some(&valid))?;
    let (found, loss) = sums.shares(rows as f32)?;
    checks.compare("choices of experts", &sums.counts, &counts, EXACT)?;
    checks.compare("shares of experts", &found, &shares, F32)?;
    checks.compare("load-balancing loss", &loss, &[2.0 * reference::aux_loss(&logits, &shares, &real)], F32)?;
    compare_use(checks, &routing, &on_gpu, &logits, &counts, &real)?;
    if experts > 1 {
        let factor = 0.7f32;
        let balance = Balance { shares: &found, valid: Some(&valid), factor };
        routing.backward(&on_gpu, &d_weights, Some(&balance), Some(&mut d_logits), None)?;
        let of_balance = reference::aux_loss_backward(&logits, &shares, &real);
        let both: Vec<f64> =
            expected.iter().zip(&of_balance).map(|(own, balance)| own + f64::from(factor) * balance).collect();
        if both.iter().any(|value| value.abs() > 1e-6) {
            checks.compare("gradient of both losses", &d_logits, &both, F32)?;
        }
    }
    Ok(())
}

/// The second of three layers, counted twice; the others stay empty.
fn compare_use(
    checks: &mut Checks<'_>,
    routing: &GpuRouting,
    on_gpu: &Buffer<f32>,
    logits: &[f64],
    counts: &[f64],
    real: &[f64],
) -> Result<()> {
    let experts = routing.experts();
    let valid = checks.gpu.of(&narrow(real))?;
    let mut uses = ExpertUse::new(checks.gpu, 3, experts)?;
    uses.add(1, routing, on_gpu, Some(&valid))?;
    uses.add(1, routing, on_gpu, Some(&valid))?;
    let found = uses.take()?;
    let entropy = |(row, real): (&[f64], &f64)| real * reference::entropy(row);
    let expected = 2.0 * logits.chunks(experts).zip(real).map(entropy).sum::<f64>();
    checks.compare_values("tokens of experts", &found[1].tokens, counts, EXACT);
    if experts > 1 {
        checks.compare_values("entropy of routers", &[found[1].entropy], &[expected], F32);
    }
    let empty = |layer: &LayerUse| layer.entropy == 0.0 && layer.tokens.iter().all(|tokens| *tokens == 0);
    let others = [0, 2].into_iter().all(|layer| empty(&found[layer]));
    if others && uses.take()?.iter().all(empty) {
        return Ok(());
    }
    Err(Error::invalid("moe", "the use of experts is counted in other layers, or twice"))
}

fn compare_order(checks: &mut Checks<'_>, expected: &Routing, found: &GpuRouting) -> Result<()> {
    let experts = expected.experts();
    checks.compare("choices", found.chosen(), &wide(expected.chosen()), EXACT)?;
    let slots: Vec<f64> = (0..experts).flat_map(|expert| wide(expected.slots(expert))).collect();
    checks.compare("slots by expert", found.slots(), &slots, EXACT)?;
    let rows: Vec<f64> = (0..slots.len()).map(|slot| expected.position(slot) as f64).collect();
    checks.compare("rows of slots", found.rows(), &rows, EXACT)?;
    let mut offsets = vec![0.0];
    expected.counts().for_each(|count| offsets.push(offsets[offsets.len() - 1] + count as f64));
    let mut counts = checks.gpu.of(&vec![7u32; expected.experts()])?;
    found.add_counts(&mut counts)?;
    let added: Vec<f64> = expected.counts().map(|count| 7.0 + count as f64).collect();
    checks.compare("counts", &counts, &added, EXACT)?;
    checks.compare("offsets", found.offsets(), &offsets, EXACT)
}

/// What is no number is chosen last, and never twice.
fn not_numbers(checks: &mut Checks<'_>) -> Result<()> {
    checks.case("router, not numbers");
    let nan = f32::NAN;
    let logits = [nan, 1.0, -nan, f32::NEG_INFINITY, nan, nan, nan, nan, -0.0, 0.0, 0.0, -0.0];
    let expected = Routing::from_logits(&logits, 4, 3)?;
    let found = GpuRouting::from_logits(&checks.gpu.of(&logits)?, 4, 3, true)?;
    compare_order(checks, &expected, &found)
}
