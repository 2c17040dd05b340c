//! Experts and router against the reference.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

use super::reference::{self, Projection};
use super::{Call, Expert, ExpertLoraLayout, Routing, aux_loss, experts, routing_weights};
use crate::FrozenWeight;
use crate::dropout::Dropout;
use crate::lora_linear::reference::Shape;
use crate::nf4::Nf4Matrix;
use crate::test_values::{assert_close, assert_derivative, narrow, uniform};

struct Case {
    hidden: usize,
    inner: usize,
    experts: usize,
    k: usize,
    tokens: usize,
    ranks: Vec<[usize; 3]>,
    nf4: bool,
    dropout: Option<[Dropout; 3]>,
}

fn var(values: &[f64], dims: &[usize]) -> Var {
    Var::from_tensor(&Tensor::from_vec(narrow(values), dims, &Device::Cpu).unwrap()).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

const SCALE: f32 = 1.5;

impl Case {
    fn frozen(&self, seed: u64, rows: usize, columns: usize) -> FrozenWeight {
        let values = narrow(&uniform(rows * columns, seed));
        if self.nf4 {
            FrozenWeight::Nf4(Nf4Matrix::quantize(&values, rows, columns, true).unwrap().into())
        } else {
            FrozenWeight::plain(values, rows, columns).unwrap()
        }
    }

    fn check(&self) {
        let (h, i, n) = (self.hidden, self.inner, self.tokens);
        let (x, dy) = (uniform(n * h, 1), uniform(n * h, 2));
        let weights: Vec<f64> = uniform(n * self.k, 3).iter().map(|w| 0.5 + 0.3 * w).collect();
        let logits = narrow(&uniform(n * self.experts, 4));
        let routing = Arc::new(Routing::from_logits(&logits, self.experts, self.k).unwrap());
        let ranks: Vec<_> = self.ranks.iter().map(|r| r.map(|r| (r > 0).then_some((r, SCALE)))).collect();
        let layout = ExpertLoraLayout::new(h, i, &ranks);
        let lora = uniform(layout.len(), 5);

        let mut plain = Vec::new();
        let mut frozen = Vec::new();
        for e in 0..self.experts {
            let w =
                [self.frozen(10 + e as u64, i, h), self.frozen(20 + e as u64, i, h), self.frozen(30 + e as u64, h, i)];
            let own = layout.expert(e);
            let places = [&own.gate, &own.up, &own.down];
            let mut index = 0;
            plain.push(w.clone().map(|w| {
                let place = places[index].clone();
                index += 1;
                let (a, b) = place
                    .as_ref()
                    .map_or((vec![], vec![]), |p| (lora[p.a.clone()].to_vec(), lora[p.b.clone()].to_vec()));
                Projection {
                    shape: Shape {
                        rows: 1,
                        inputs: w.columns(),
                        outputs: w.rows(),
                        rank: place.map_or(0, |p| p.rank),
                        scale: f64::from(SCALE),
                    },
                    weight: w.to_f32().iter().map(|v| f64::from(*v)).collect(),
                    a,
                    b,
                }
            }));
            let [gate, up, down] = w;
            frozen.push(Expert::new(gate, up, down).unwrap());
        }
        let mask = |slot: usize, which: usize, index: usize| {
            let width = if which == 2 { i } else { h };
            self.dropout.map_or(1.0, |d| f64::from(d[which].factor((slot * width + index) as u64)))
        };
        let y = reference::forward(&plain, &x, &weights, routing.chosen(), &mask);
        let grad = reference::backward(&plain, &x, &weights, routing.chosen(), &mask, &dy);
        let mut dlora = vec![0.0; layout.len()];
        for e in 0..self.experts {
            let own = layout.expert(e);
            for (place, (a, b)) in [&own.gate, &own.up, &own.down].into_iter().zip(&grad.lora[e]) {
                if let Some(p) = place {
                    dlora[p.a.clone()].copy_from_slice(a);
                    dlora[p.b.clone()].copy_from_slice(b);
                }
            }
        }

        let (x, weights, lora) = (var(&x, &[n, h]), var(&weights, &[n, self.k]), var(&lora, &[layout.len()]));
        let call = Call { experts: frozen.into(), routing, lora: Arc::new(layout), dropout: self.dropout };
        let found = experts(&x, &weights, &lora, &call).unwrap();
        assert_close("y", &flat(&found), &y, 1e-5);
        let seed = Tensor::from_vec(narrow(&dy), found.dims(), &Device::Cpu).unwrap();
        let grads = (found * seed).unwrap().sum_all().unwrap().backward().unwrap();
        assert_close("dx", &flat(grads.get(&x).unwrap()), &grad.x, 1e-5);
        assert_close("dw", &flat(grads.get(&weights).unwrap()), &grad.weights, 1e-5);
        assert_close("dlora", &flat(grads.get(&lora).unwrap()), &dlora, 1e-5);
    }
}

fn case() -> Case {
    Case { hidden: 16, inner: 12, experts: 6, k: 2, tokens: 23, ranks: vec![[2, 2, 2]; 6], nf4: false, dropout: None }
}

#[test]
fn plain_experts_equal_the_reference() {
    case().check();
    Case { tokens: 1, k: 1, ..case() }.check();
    Case { tokens: 70, k: 6, hidden: 33, inner: 7, ..case() }.check();
}

#[test]
fn nf4_experts_equal_the_reference_on_decoded_weights() {
    Case { nf4: true, ..case() }.check();
}

#[test]
fn dropout_masks_belong_to_slots() {
    let dropout = [1, 2, 3].map(|part| Dropout::keyed(0.3, &[part]));
    Case { dropout: Some(dropout), ..case() }.check();
}

#[test]
fn experts_may_be_adapted_in_part_or_not_at_all() {
    let ranks = vec![[0, 3, 1], [0; 3], [2, 0, 0], [1, 2, 3], [0, 0, 4], [0; 3]];
    Case { ranks, ..case() }.check();
}

#[test]
fn routing_weights_and_their_gradient() {
    let (n, e, k) = (4, 5, 2);
    for normalise in [false, true] {
        let logits: Vec<f64> = uniform(n * e, 1).iter().map(|x| 3.0 * x).collect();
        let routing = Arc::new(Routing::from_logits(&narrow(&logits), e, k).unwrap());
        let weights = |logits: &[f64]| -> Vec<f64> {
            let mut out = Vec::new();
            for (token, row) in logits.chunks(e).enumerate() {
                let sum: f64 = row.iter().map(|x| x.exp()).sum();
                let chosen: Vec<f64> =
                    routing.chosen()[token * k..][..k].iter().map(|&c| row[c as usize].exp() / sum).collect();
                let total = if normalise { chosen.iter().sum() } else { 1.0 };
                out.extend(chosen.iter().map(|p| p / total));
            }
            out
        };
        let dw = uniform(n * k, 2);
        let variable = var(&logits, &[n, e]);
        let found = routing_weights(&variable, &routing, normalise).unwrap();
        assert_close("weights", &flat(&found), &weights(&logits), 1e-6);
        let seed = Tensor::from_vec(narrow(&dw), (n, k), &Device::Cpu).unwrap();
        let grads = (found * seed).unwrap().sum_all().unwrap().backward().unwrap();
        let found: Vec<f64> = flat(grads.get(&variable).unwrap()).iter().map(|v| f64::from(*v)).collect();
        // The op's gradient is f32: compare slopes with the tolerance of that type.
        let scalar = |x: &[f64]| -> f64 { weights(x).iter().zip(&dw).map(|(w, d)| w * d).sum() };
        for index in 0..logits.len() {
            let mut moved = logits.clone();
            moved[index] += 1e-5;
            let above = scalar(&moved);
            moved[index] -= 2e-5;
            let slope = (above - scalar(&moved)) / 2e-5;
            assert!((slope - found[index]).abs() < 1e-6, "{index}: {slope} against {}", found[index]);
        }
    }
}

#[test]
fn the_aux_loss_and_its_gradient() {
    let (n, e) = (3, 4);
    let logits = uniform(n * e, 1);
    let (shares, valid) = ([0.5f32, 1.5, 0.25, 2.0], [1.0f32, 0.0, 1.0]);
    let loss = |logits: &[f64]| -> f64 {
        logits
            .chunks(e)
            .zip(valid)
            .map(|(row, valid)| {
                let sum: f64 = row.iter().map(|x| x.exp()).sum();
                f64::from(valid) * row.iter().zip(shares).map(|(x, s)| f64::from(s) * x.exp() / sum).sum::<f64>()
            })
            .sum()
    };
    let variable = var(&logits, &[n, e]);
    let found = aux_loss(&variable, &Arc::from(shares), &Arc::from(valid)).unwrap();
    assert!((f64::from(found.to_scalar::<f32>().unwrap()) - loss(&logits)).abs() < 1e-6);
    let grads = (found * 2.0).unwrap().backward().unwrap();
    let gradient = flat(grads.get(&variable).unwrap());
    for index in 0..logits.len() {
        let mut moved = logits.clone();
        moved[index] += 1e-5;
        let above = loss(&moved);
        moved[index] -= 2e-5;
        let slope = 2.0 * (above - loss(&moved)) / 2e-5;
        assert!((slope - f64::from(gradient[index])).abs() < 1e-6);
    }
}

#[test]
fn the_reference_gradient_is_the_derivative() {
    let projection = |inputs, outputs, seed| Projection {
        shape: Shape { rows: 1, inputs, outputs, rank: 1, scale: 0.7 },
        weight: uniform(inputs * outputs, seed),
        a: uniform(inputs, seed + 1),
        b: uniform(outputs, seed + 2),
    };
    let list: Vec<_> = (0..2u64)
        .map(|e| [projection(3, 2, 10 * e), projection(3, 2, 10 * e + 3), projection(2, 3, 10 * e + 6)])
        .collect();
    let (x, weights, dy, chosen) = (uniform(6, 40), uniform(2, 41), uniform(6, 42), [1u32, 0]);
    let mask =
        |slot: usize, which: usize, index: usize| if (slot + which + index).is_multiple_of(3) { 0.0 } else { 1.5 };
    let loss = |x: &[f64], weights: &[f64]| -> f64 {
        reference::forward(&list, x, weights, &chosen, &mask).iter().zip(&dy).map(|(y, d)| y * d).sum()
    };
    let grad = reference::backward(&list, &x, &weights, &chosen, &mask, &dy);
    assert_derivative("x", &x, &grad.x, |v| loss(v, &weights));
    assert_derivative("weights", &weights, &grad.weights, |v| loss(&x, v));
}

#[test]
fn wrong_shapes_are_named() {
    let expert = || {
        let w = |r, c| FrozenWeight::plain(vec![0.0; r * c], r, c).unwrap();
        Expert::new(w(2, 3), w(2, 3), w(3, 2)).unwrap()
    };
    let call = Call {
        experts: vec![expert(), expert()].into(),
        routing: Arc::new(Routing::from_choices(vec![0, 1], 2, 1).unwrap()),
        lora: Arc::new(ExpertLoraLayout::new(3, 2, &[[None; 3]; 2])),
        dropout: None,
    };
    let (x, w) = (var(&[0.0; 6], &[2, 3]), var(&[0.0; 2], &[2, 1]));
    let none = var(&[], &[0]);
    assert!(experts(&x, &w, &none, &call).is_ok());
    assert!(experts(&x, &x, &none, &call).unwrap_err().to_string().contains("routing weights"));
    let call = Call { experts: vec![expert()].into(), ..call };
    assert!(experts(&x, &w, &none, &call).is_err());
}
