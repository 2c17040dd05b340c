//! Plain and NF4 layers against the reference.

use candle_core::{Device, Tensor, Var};

use super::reference::{Shape, backward, forward};
use super::{FrozenLinear, Lora, frozen_linear, lora_linear};
use crate::FrozenWeight;
use crate::nf4::Nf4Matrix;
use crate::self_test::{self, values::Random};
use crate::test_values::{assert_comparison, assert_derivative, narrow, uniform};

fn var(values: &[f64], rows: usize) -> Var {
    let tensor = Tensor::from_vec(narrow(values), (rows, values.len() / rows), &Device::Cpu).unwrap();
    Var::from_tensor(&tensor).unwrap()
}

fn check(s: Shape, weight: FrozenWeight, probability: f32) {
    let random = &mut Random::new(1);
    self_test::lora_linear::compare("lora linear", &s, weight, probability, random, &mut assert_comparison).unwrap();
}

fn shapes() -> [Shape; 4] {
    [(1, 8, 4, 1), (33, 64, 48, 4), (130, 20, 70, 7), (5, 3, 2, 16)].map(|(rows, inputs, outputs, rank)| Shape {
        rows,
        inputs,
        outputs,
        rank,
        scale: 1.7,
    })
}

#[test]
fn plain_layers_equal_the_reference() {
    for s in shapes() {
        let weight = FrozenWeight::plain(narrow(&uniform(s.outputs * s.inputs, 6)), s.outputs, s.inputs).unwrap();
        check(s, weight.clone(), 0.0);
        check(s, weight, 0.4);
    }
}

#[test]
fn nf4_layers_equal_the_reference_on_the_decoded_weight() {
    // The last shape is larger than one decoded block, so several blocks are put together.
    let large = Shape { rows: 3, inputs: 700, outputs: 800, rank: 2, scale: 0.5 };
    for s in shapes().into_iter().chain([large]) {
        let values = narrow(&uniform(s.outputs * s.inputs, 6));
        let matrix = Nf4Matrix::quantize(&values, s.outputs, s.inputs, true).unwrap();
        check(s, FrozenWeight::Nf4(matrix.into()), 0.2);
    }
}

#[test]
fn a_frozen_layer_passes_the_gradient_on() {
    let weight = FrozenWeight::plain(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3).unwrap();
    let x = var(&[1.0, 0.0, -1.0], 1);
    let y = frozen_linear(&x, &FrozenLinear { weight, bias: None }).unwrap();
    assert_eq!(y.to_vec2::<f32>().unwrap(), [[-2.0, -2.0]]);
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(grads.get(&x).unwrap().to_vec2::<f32>().unwrap(), [[5.0, 7.0, 9.0]]);
}

#[test]
fn the_reference_gradient_is_the_derivative() {
    let s = Shape { rows: 3, inputs: 4, outputs: 2, rank: 2, scale: 1.5 };
    let (x, w, bias, a, b) = (uniform(12, 1), uniform(8, 2), uniform(2, 3), uniform(8, 4), uniform(4, 5));
    let (mask, dy) = (uniform(12, 6), uniform(6, 7));
    let loss = |x: &[f64], a: &[f64], b: &[f64]| -> f64 {
        forward(&s, x, &w, &bias, a, b, &mask).iter().zip(&dy).map(|(y, d)| y * d).sum()
    };
    let grad = backward(&s, &x, &w, &a, &b, &mask, &dy);
    assert_derivative("x", &x, &grad.x, |v| loss(v, &a, &b));
    assert_derivative("a", &a, &grad.a, |v| loss(&x, v, &b));
    assert_derivative("b", &b, &grad.b, |v| loss(&x, &a, v));
}

#[test]
fn wrong_shapes_are_named() {
    let linear = FrozenLinear { weight: FrozenWeight::plain(vec![0.0; 6], 2, 3).unwrap(), bias: None };
    let lora = Lora { rank: 2, scale: 1.0, dropout: None };
    let (x, a, b) = (var(&[0.0; 3], 1), var(&[0.0; 6], 2), var(&[0.0; 4], 2));
    assert!(lora_linear(&x, &a, &b, &linear, lora).is_ok());
    assert!(lora_linear(&x, &b, &b, &linear, lora).unwrap_err().to_string().contains("A:"));
    assert!(frozen_linear(&b, &linear).unwrap_err().to_string().contains("x:"));
}
