//! AdamW with both kinds of moments, over more than one task, and the norm that clips.

use super::values::{Random, narrow, wide};
use super::{Comparison, Sink};
use crate::adamw::{self, Hyper, MOMENT_BLOCK, Moments};
use crate::nf4::DynamicMap;
use crate::{Error, Result, grad_norm};

const HYPER: Hyper = Hyper { learning_rate: 2e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 };
/// More than one task, and no whole block of moments at the end.
const COUNT: usize = 16_700;
const STEPS: u64 = 3;
const GRADIENT_SCALE: f32 = 0.75;
/// First moments can cancel: their roundings are those of their terms.
const TOLERANCE: f64 = 2e-6;
/// Values for the norm: more than one task.
const NORM_COUNT: usize = 70_003;
const NORM: f64 = 1e-12;

pub(super) fn compare_all(random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    compare_full(random, sink)?;
    compare_blockwise(random, sink)?;
    let values = narrow(&random.values(NORM_COUNT));
    let (found, expected) = (grad_norm::sum_of_squares(&values), grad_norm::reference::sum_of_squares(&values));
    let op = "grad_norm";
    sink(&Comparison { op, what: "sum of squares", found: &[found], expected: &[expected], tolerance: NORM });
    let factors = [0.0, 0.5, 4.0, 1e6].map(|norm: f64| (norm, grad_norm::clip_factor(norm, 1.0)));
    let expected = factors.map(|(norm, _)| (1.0 / (norm + 1e-6)).min(1.0));
    let found = factors.map(|(_, factor)| f64::from(factor));
    sink(&Comparison { op, what: "clipping factor", found: &found, expected: &expected, tolerance: TOLERANCE });
    Ok(())
}

fn compare_full(random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let op = "adamw";
    let start = random.values(COUNT);
    let (mut expected, mut found) = (start.clone(), narrow(&start));
    let (mut m, mut v) = (vec![0.0; COUNT], vec![0.0; COUNT]);
    let mut moments = Moments::full(COUNT);
    for step in 1..=STEPS {
        let gradient = narrow(&random.values(COUNT));
        adamw::step(&mut found, &gradient, &mut moments, step, GRADIENT_SCALE, &HYPER)?;
        let scale = f64::from(GRADIENT_SCALE);
        adamw::reference::step(&mut expected, &gradient, (&mut m, &mut v), step as i32, scale, &HYPER);
    }
    let Moments::Full { m: found_m, v: found_v } = &moments else { return Err(other_moments(op)) };
    // What the steps changed, and not the values they changed, which would hide it.
    let moved =
        |values: &[f64]| -> Vec<f64> { values.iter().zip(&start).map(|(value, start)| value - start).collect() };
    // A parameter of size 1 is rounded by up to 6e-8 twice a step, and moves by about the learning rate.
    let steps = STEPS as f64 * 1.2e-7 / HYPER.learning_rate;
    for (what, found, expected, tolerance) in [
        ("update", &moved(&wide(&found)), &moved(&expected), steps),
        ("first moment", &wide(found_m), &m, TOLERANCE),
        ("second moment", &wide(found_v), &v, TOLERANCE),
    ] {
        sink(&Comparison { op, what, found, expected, tolerance });
    }
    Ok(())
}

/// A step with 8-bit moments is one with the moments decoded, and then the nearest codes: both are compared exactly.
fn compare_blockwise(random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let op = "adamw, 8-bit moments";
    let mut moments = Moments::blockwise(COUNT);
    let mut found = narrow(&random.values(COUNT));
    let (mut full, mut expected) = (Moments::full(COUNT), found.clone());
    for step in 1..=STEPS {
        // Gradients of many sizes.
        let mut gradient = narrow(&random.values(COUNT));
        gradient.iter_mut().enumerate().for_each(|(i, g)| *g *= 10f32.powi(-(i as i32 % 6)));
        (full, expected) = (decoded(&moments).ok_or_else(|| other_moments(op))?, found.clone());
        adamw::step(&mut expected, &gradient, &mut full, step, GRADIENT_SCALE, &HYPER)?;
        adamw::step(&mut found, &gradient, &mut moments, step, GRADIENT_SCALE, &HYPER)?;
    }
    sink(&Comparison { op, what: "update", found: &wide(&found), expected: &wide(&expected), tolerance: 0.0 });
    let (Moments::Full { m: full_m, v: full_v }, Moments::Blockwise { m, m_scale, v, v_scale }) = (&full, &moments)
    else {
        return Err(other_moments(op));
    };
    let first = encoded(full_m, DynamicMap::signed(), false);
    let second = encoded(full_v, DynamicMap::unsigned(), true);
    for (what, found, expected) in [
        ("codes of the first moment", wide(m), wide(&first.0)),
        ("scales of the first moment", wide(m_scale), wide(&first.1)),
        ("codes of the second moment", wide(v), wide(&second.0)),
        ("scales of the second moment", wide(v_scale), wide(&second.1)),
    ] {
        sink(&Comparison { op, what, found: &found, expected: &expected, tolerance: 0.0 });
    }
    Ok(())
}

fn other_moments(op: &'static str) -> Error {
    Error::invalid(op, "a step left another kind of moments than it was given")
}

/// The same moments in `f32`, where they are in 8 bits.
fn decoded(moments: &Moments) -> Option<Moments> {
    let Moments::Blockwise { m, m_scale, v, v_scale } = moments else { return None };
    let decode = |codes: &[u8], scales: &[f32], map: &DynamicMap| -> Vec<f32> {
        let value = |(i, code): (usize, &u8)| map.codes()[usize::from(*code)] * scales[i / MOMENT_BLOCK];
        codes.iter().enumerate().map(value).collect()
    };
    Some(Moments::Full { m: decode(m, m_scale, DynamicMap::signed()), v: decode(v, v_scale, DynamicMap::unsigned()) })
}

/// Codes and scales by trying every code; `keep` if what is above 0 must not become 0.
fn encoded(values: &[f32], map: &DynamicMap, keep: bool) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for block in values.chunks(MOMENT_BLOCK) {
        let (own, scale) = adamw::reference::encode(map.codes(), block);
        codes.extend(own.iter().zip(block).map(|(&code, &value)| code.max(u8::from(keep && value > 0.0))));
        scales.push(scale);
    }
    (codes, scales)
}
