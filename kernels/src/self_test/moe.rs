//! The routed experts: some adapted in full, some in part, one without a token.

use std::sync::Arc;

use super::values::{Random, gradients, narrow, values, variable, wide};
use super::{Comparison, Sink};
use crate::dropout::Dropout;
use crate::lora_linear::reference::Shape;
use crate::moe::reference::{self, Projection};
use crate::moe::{Call, Expert, ExpertLoraLayout, Routing, experts};
use crate::nf4::Nf4Matrix;
use crate::{FrozenWeight, Result};

const TOLERANCE: f64 = 5e-6;
const SCALE: f32 = 1.5;
/// Far below all other logits.
const NEVER: f64 = -9.0;

/// Sizes of one comparison.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) op: &'static str,
    pub(crate) hidden: usize,
    pub(crate) inner: usize,
    pub(crate) per_token: usize,
    pub(crate) tokens: usize,
    /// Of gate, up and down of every expert; 0 where it is not adapted.
    pub(crate) ranks: Vec<[usize; 3]>,
    pub(crate) nf4: bool,
    /// Probability, 0 for none.
    pub(crate) dropout: f32,
    /// The expert that gets no token.
    pub(crate) idle: Option<usize>,
}

pub(super) fn compare_all(random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
    let plain = Case {
        op: "moe experts, plain",
        hidden: 33,
        inner: 19,
        per_token: 3,
        tokens: 71,
        ranks: vec![[2, 2, 2], [1, 3, 2], [2, 2, 2], [0, 2, 0], [0, 0, 0]],
        nf4: false,
        dropout: 0.3,
        idle: Some(2),
    };
    plain.compare(random, sink)?;
    Case { op: "moe experts, NF4", nf4: true, dropout: 0.0, tokens: 37, ..plain }.compare(random, sink)
}

/// Both forms of one expert's projections, frozen and for the reference.
type Built = (Vec<Expert>, Vec<reference::Expert>);

// === impl Case ===

impl Case {
    pub(crate) fn compare(&self, random: &mut Random, sink: &mut Sink<'_>) -> Result<()> {
        let (hidden, tokens) = (self.hidden, self.tokens);
        let (x, upstream) = (random.values(tokens * hidden), random.values(tokens * hidden));
        let weights: Vec<f64> = random.within(0.3, tokens * self.per_token).iter().map(|w| 0.5 + w).collect();
        let weights = wide(&narrow(&weights));
        let routing = Arc::new(self.routing(random)?);
        let ranks: Vec<_> = self.ranks.iter().map(|all| all.map(|r| (r > 0).then_some((r, SCALE)))).collect();
        let layout = ExpertLoraLayout::new(hidden, self.inner, &ranks);
        let lora = random.values(layout.len());
        let (frozen, plain) = self.build(&layout, &lora, random)?;
        let dropout = (self.dropout > 0.0).then(|| [1, 2, 3].map(|_| Dropout::keyed(self.dropout, &[random.key()])));
        let mask = |slot: usize, which: usize, index: usize| {
            let width = if which == 2 { self.inner } else { hidden };
            dropout.map_or(1.0, |d| f64::from(d[which].factor((slot * width + index) as u64)))
        };
        let expected = reference::forward(&plain, &x, &weights, routing.chosen(), &mask);
        let gradient = reference::backward(&plain, &x, &weights, routing.chosen(), &mask, &upstream);
        let dlora = flat(&layout, &gradient.lora);

        let (x, lora) = (variable(&x, (tokens, hidden))?, variable(&lora, layout.len())?);
        let weights = variable(&weights, (tokens, self.per_token))?;
        let call = Call { experts: frozen.into(), routing, lora: layout.into(), dropout };
        let out = experts(&x, &weights, &lora, &call)?;
        let [dx, dw, dl] = gradients(&out, &upstream, [&x, &weights, &lora])?;
        for (what, found, expected) in [
            ("forward", values(&out)?, &expected),
            ("gradient of x", dx, &gradient.x),
            ("gradient of the routing weights", dw, &gradient.weights),
            ("gradient of the experts' LoRA", dl, &dlora),
        ] {
            sink(&Comparison { op: self.op, what, found: &found, expected, tolerance: TOLERANCE });
        }
        Ok(())
    }

    fn routing(&self, random: &mut Random) -> Result<Routing> {
        let experts = self.ranks.len();
        let mut logits = random.values(self.tokens * experts);
        if let Some(idle) = self.idle {
            logits.iter_mut().skip(idle).step_by(experts).for_each(|logit| *logit = NEVER);
        }
        Routing::from_logits(&narrow(&logits), experts, self.per_token)
    }

    fn build(&self, layout: &ExpertLoraLayout, lora: &[f64], random: &mut Random) -> Result<Built> {
        let (mut frozen, mut plain) = (Vec::new(), Vec::new());
        for index in 0..self.ranks.len() {
            let own = layout.expert(index);
            let mut projection = |place: &Option<crate::moe::ExpertProjection>, outputs: usize, inputs: usize| {
                let weight = self.frozen(outputs, inputs, random)?;
                let (a, b) = place
                    .as_ref()
                    .map_or_else(Default::default, |p| (lora[p.a.clone()].to_vec(), lora[p.b.clone()].to_vec()));
                let rank = place.as_ref().map_or(0, |p| p.rank);
                let shape = Shape { rows: 1, inputs, outputs, rank, scale: f64::from(SCALE) };
                Ok::<_, crate::Error>((weight.clone(), Projection { shape, weight: wide(&weight.to_f32()), a, b }))
            };
            let (gate, plain_gate) = projection(&own.gate, self.inner, self.hidden)?;
            let (up, plain_up) = projection(&own.up, self.inner, self.hidden)?;
            let (down, plain_down) = projection(&own.down, self.hidden, self.inner)?;
            frozen.push(Expert::new(gate, up, down)?);
            plain.push([plain_gate, plain_up, plain_down]);
        }
        Ok((frozen, plain))
    }

    fn frozen(&self, rows: usize, columns: usize, random: &mut Random) -> Result<FrozenWeight> {
        let values = narrow(&random.values(rows * columns));
        match self.nf4 {
            true => Ok(FrozenWeight::Nf4(Nf4Matrix::quantize(&values, rows, columns, true)?.into())),
            false => FrozenWeight::plain(values, rows, columns),
        }
    }
}

/// The reference's gradients in the order of the flat parameter.
fn flat(layout: &ExpertLoraLayout, gradients: &[[(Vec<f64>, Vec<f64>); 3]]) -> Vec<f64> {
    let mut flat = vec![0.0; layout.len()];
    for (index, gradients) in gradients.iter().enumerate() {
        let own = layout.expert(index);
        for (place, (a, b)) in [&own.gate, &own.up, &own.down].into_iter().zip(gradients) {
            if let Some(place) = place {
                flat[place.a.clone()].copy_from_slice(a);
                flat[place.b.clone()].copy_from_slice(b);
            }
        }
    }
    flat
}
