//! The choice of experts, the weights of the chosen, and the load-balancing loss.

use std::sync::Arc;

use super::values::{Random, gradients, narrow, values, variable, wide};
use super::{Comparison, Sink};
use crate::Result;
use crate::moe::{Routing, aux_loss, reference, routing_weights};

const TOLERANCE: f64 = 3e-6;
const TOKENS: usize = 131;
const EXPERTS: usize = 11;
const PER_TOKEN: usize = 3;

pub(super) fn compare_all(random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let logits = random.within(3.0, TOKENS * EXPERTS);
    let routing = Arc::new(Routing::from_logits(&narrow(&logits), EXPERTS, PER_TOKEN)?);
    compare_routing(&logits, &routing, sink);
    for (op, normalise) in [("moe router", false), ("moe router, normalised", true)] {
        compare_weights(op, normalise, &logits, &routing, random, sink)?;
    }
    compare_aux_loss(&logits, random, sink)
}

fn compare_routing(logits: &[f64], routing: &Routing, sink: &mut Sink<'_>) {
    let op = "moe routing";
    let chosen = reference::choices(logits, EXPERTS, PER_TOKEN);
    let found = wide(routing.chosen());
    sink(&Comparison { op, what: "choices", found: &found, expected: &wide(&chosen), tolerance: 0.0 });
    let mut order: Vec<u32> = (0..chosen.len() as u32).collect();
    order.sort_by_key(|&slot| chosen[slot as usize]);
    let found: Vec<f64> = (0..EXPERTS).flat_map(|expert| wide(routing.slots(expert))).collect();
    sink(&Comparison { op, what: "rows by expert", found: &found, expected: &wide(&order), tolerance: 0.0 });
}

fn compare_weights(
    op: &'static str,
    normalise: bool,
    logits: &[f64],
    routing: &Arc<Routing>,
    random: &mut Random,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let upstream = random.values(TOKENS * PER_TOKEN);
    let expected = reference::routing_weights(logits, EXPERTS, routing.chosen(), normalise);
    let gradient = reference::routing_weights_backward(logits, EXPERTS, routing.chosen(), normalise, &upstream);
    let logits = variable(logits, (TOKENS, EXPERTS))?;
    let out = routing_weights(&logits, routing, normalise)?;
    let [found] = gradients(&out, &upstream, [&logits])?;
    sink(&Comparison { op, what: "forward", found: &values(&out)?, expected: &expected, tolerance: TOLERANCE });
    sink(&Comparison { op, what: "gradient of the logits", found: &found, expected: &gradient, tolerance: TOLERANCE });
    Ok(())
}

fn compare_aux_loss(logits: &[f64], random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let op = "moe load balancing";
    let shares = narrow(&random.values(EXPERTS).iter().map(|share| 1.0 + share).collect::<Vec<_>>());
    let valid: Vec<f32> = (0..TOKENS).map(|token| if token % 5 == 3 { 0.0 } else { 1.0 }).collect();
    let expected = reference::aux_loss(logits, &wide(&shares), &wide(&valid));
    let gradient = reference::aux_loss_backward(logits, &wide(&shares), &wide(&valid));
    let logits = variable(logits, (TOKENS, EXPERTS))?;
    let out = aux_loss(&logits, &shares.into(), &valid.into())?;
    let [found] = gradients(&out, &[1.0], [&logits])?;
    sink(&Comparison { op, what: "forward", found: &values(&out)?, expected: &[expected], tolerance: TOLERANCE });
    sink(&Comparison { op, what: "gradient of the logits", found: &found, expected: &gradient, tolerance: TOLERANCE });
    Ok(())
}
