//! Experts and router against the reference.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

use super::reference::{self, Projection};
use super::{Call, Expert, ExpertLoraLayout, Routing, aux_loss, experts, routing_weights};
use crate::FrozenWeight;
use crate::lora_linear::reference::Shape;
use crate::self_test::{moe::Case, values::Random};
use crate::test_values::{assert_close, assert_comparison, assert_derivative, narrow, uniform};

fn var(values: &[f64], dims: &[usize]) -> Var {
    Var::from_tensor(&Tensor::from_vec(narrow(values), dims, &Device::Cpu).unwrap()).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn check(case: Case) {
    case.compare(&mut Random::new(1), &mut assert_comparison).unwrap();
}

fn case() -> Case {
    Case {
        op: "moe experts",
        hidden: 16,
        inner: 12,
        per_token: 2,
        tokens: 23,
        ranks: vec![[2, 2, 2]; 6],
        nf4: false,
        dropout: 0.0,
        idle: None,
    }
}

#[test]
fn plain_experts_equal_the_reference() {
    check(case());
    check(Case { tokens: 1, per_token: 1, ..case() });
    check(Case { tokens: 70, per_token: 6, hidden: 33, inner: 7, ..case() });
}

#[test]
fn nf4_experts_equal_the_reference_on_decoded_weights() {
    check(Case { nf4: true, ..case() });
}

#[test]
fn dropout_masks_belong_to_slots() {
    check(Case { dropout: 0.3, ..case() });
}

#[test]
fn experts_may_be_adapted_in_part_or_not_at_all() {
    let ranks = vec![[0, 3, 1], [0; 3], [2, 0, 0], [1, 2, 3], [0, 0, 4], [0; 3]];
    check(Case { ranks, ..case() });
}

#[test]
fn an_expert_may_be_without_a_token() {
    check(Case { idle: Some(0), ..case() });
    check(Case { idle: Some(5), ..case() });
}

#[test]
fn routing_weights_and_their_gradient() {
    let (n, e, k) = (4, 5, 2);
    for normalise in [false, true] {
        let logits: Vec<f64> = uniform(n * e, 1).iter().map(|x| 3.0 * x).collect();
        let routing = Arc::new(Routing::from_logits(&narrow(&logits), e, k).unwrap());
        let dw = uniform(n * k, 2);
        let weights = |logits: &[f64]| reference::routing_weights(logits, e, routing.chosen(), normalise);
        let gradient = reference::routing_weights_backward(&logits, e, routing.chosen(), normalise, &dw);
        assert_derivative("logits", &logits, &gradient, |x| weights(x).iter().zip(&dw).map(|(w, d)| w * d).sum());

        let variable = var(&logits, &[n, e]);
        let found = routing_weights(&variable, &routing, normalise).unwrap();
        assert_close("weights", &flat(&found), &weights(&logits), 1e-6);
        let seed = Tensor::from_vec(narrow(&dw), (n, k), &Device::Cpu).unwrap();
        let grads = (found * seed).unwrap().sum_all().unwrap().backward().unwrap();
        assert_close("gradient", &flat(grads.get(&variable).unwrap()), &gradient, 1e-6);
    }
}

#[test]
fn the_aux_loss_and_its_gradient() {
    let (n, e) = (3, 4);
    let logits = uniform(n * e, 1);
    let (shares, valid) = ([0.5f32, 1.5, 0.25, 2.0], [1.0f32, 0.0, 1.0]);
    let (wide_shares, wide_valid) = (shares.map(f64::from), valid.map(f64::from));
    let loss = |logits: &[f64]| reference::aux_loss(logits, &wide_shares, &wide_valid);
    let gradient = reference::aux_loss_backward(&logits, &wide_shares, &wide_valid);
    assert_derivative("logits", &logits, &gradient, loss);

    let variable = var(&logits, &[n, e]);
    let found = aux_loss(&variable, &Arc::from(shares), &Arc::from(valid)).unwrap();
    assert!((f64::from(found.to_scalar::<f32>().unwrap()) - loss(&logits)).abs() < 1e-6);
    let grads = (found * 2.0).unwrap().backward().unwrap();
    let twice: Vec<f64> = gradient.iter().map(|g| 2.0 * g).collect();
    assert_close("gradient", &flat(grads.get(&variable).unwrap()), &twice, 1e-6);
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
