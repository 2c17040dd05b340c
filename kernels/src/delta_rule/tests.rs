//! Chunked `f32` against token by token `f64`, at lengths around the chunk size, alone and packed.

use std::sync::Arc;

use candle_core::Tensor;

use super::reference::{self, Head, backward, forward};
use super::{Parameters, State, delta_rule, delta_rule_continued};
use crate::Documents;
use crate::conv::HeadGroups;
use crate::self_test::{self, values::Random};
use crate::test_values::{assert_close, assert_derivative, narrow, uniform};

fn parameters(key_heads: usize, value_heads: usize, key_dim: usize, value_dim: usize) -> Parameters {
    self_test::delta_rule::parameters(HeadGroups { key_heads, value_heads, key_dim, value_dim }, &mut Random::new(11))
}

fn check(p: &Parameters, lengths: &[usize]) {
    let documents = Documents::from_lengths(lengths).unwrap();
    let tolerance = |what: &str| if what == "forward" { 2e-6 } else { 5e-6 };
    self_test::delta_rule::compare(p, &documents, &mut Random::new(1), &mut |c| {
        assert_close(&format!("{lengths:?} {}", c.what), c.found, c.expected, tolerance(c.what));
    })
    .unwrap();
}

#[test]
fn equals_the_recurrence_around_the_chunk_size() {
    for length in [1, 2, 63, 64, 65, 127, 128, 129, 200] {
        check(&parameters(2, 4, 8, 12), &[length]);
    }
}

#[test]
fn equals_the_recurrence_for_packed_documents() {
    check(&parameters(2, 2, 16, 8), &[64, 1, 65, 30, 130, 63]);
    check(&parameters(1, 3, 5, 7), &[3, 129, 70]);
}

/// A document in pieces against the recurrence over all of it: single tokens, pieces round the chunk size, and both.
#[test]
fn pieces_with_a_kept_state_equal_the_whole() {
    let p = parameters(2, 4, 8, 12);
    let (width, heads, value) = (p.qkv_width(), 4, 12);
    for pieces in [&[1; 70][..], &[64, 1, 1, 1], &[3, 63, 65, 1, 128], &[130, 1, 1]] {
        let n: usize = pieces.iter().sum();
        let (qkv, ba) = (uniform(n * width, 1), uniform(n * 2 * heads, 2));
        let documents = Documents::from_lengths(&[n]).unwrap();
        let out = reference::packed(&p, &qkv, &ba, &documents, &vec![0.0; n * heads * value]).out;
        let mut state = State::new(&p.groups);
        let (mut found, mut at) = (Vec::new(), 0);
        for &piece in pieces {
            let cut = |values: &[f64], width: usize| {
                let values = narrow(&values[at * width..(at + piece) * width]);
                Tensor::from_vec(values, (piece, width), &candle_core::Device::Cpu).unwrap()
            };
            let next = delta_rule_continued(&cut(&qkv, width), &cut(&ba, 2 * heads), &p, &mut state).unwrap();
            found.extend(next.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            at += piece;
        }
        assert_close(&format!("{pieces:?}"), &found, &out, 2e-6);
    }
}

#[test]
fn a_state_of_another_layer_is_refused() {
    let p = parameters(2, 4, 8, 8);
    let zeros = |width: usize| Tensor::zeros((3, width), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let mut other = State::new(&HeadGroups { value_dim: 4, ..p.groups });
    let error = delta_rule_continued(&zeros(p.qkv_width()), &zeros(8), &p, &mut other).unwrap_err().to_string();
    assert!(error.contains("state"), "{error}");
}

#[test]
fn a_document_does_not_see_the_one_before() {
    let p = parameters(2, 4, 8, 8);
    let (width, heads) = (p.qkv_width(), 4);
    let run = |lengths: &[usize], from: usize| {
        let n: usize = lengths.iter().sum();
        let qkv = narrow(&uniform(200 * width, 1))[from * width..(from + n) * width].to_vec();
        let ba = narrow(&uniform(200 * 2 * heads, 2))[from * 2 * heads..(from + n) * 2 * heads].to_vec();
        let qkv = Tensor::from_vec(qkv, (n, width), &candle_core::Device::Cpu).unwrap();
        let ba = Tensor::from_vec(ba, (n, 2 * heads), &candle_core::Device::Cpu).unwrap();
        let out = delta_rule(&qkv, &ba, &p, &Documents::from_lengths(lengths).unwrap()).unwrap();
        out.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (packed, alone, leaking) = (run(&[90, 110], 0), run(&[110], 90), run(&[200], 0));
    let tail = 90 * heads * 8;
    assert_eq!(packed[tail..], alone[..]);
    assert_ne!(leaking[tail..], alone[..], "without the boundary the state leaks: the test can see it");
}

#[test]
fn the_reference_gradient_is_the_derivative() {
    let (n, dk, dv) = (5, 3, 2);
    let (q, k, v) = (uniform(n * dk, 1), uniform(n * dk, 2), uniform(n * dv, 3));
    let g: Vec<f64> = uniform(n, 4).iter().map(|x| -x.abs()).collect();
    let beta: Vec<f64> = uniform(n, 5).iter().map(|x| 0.5 + 0.4 * x).collect();
    let dout = uniform(n * dv, 6);
    let loss = |q: &[f64], k: &[f64], v: &[f64], g: &[f64], beta: &[f64]| -> f64 {
        let head = Head { tokens: n, key_dim: dk, value_dim: dv, q, k, v, g, beta };
        forward(&head).iter().zip(&dout).map(|(o, d)| o * d).sum()
    };
    let grad =
        backward(&Head { tokens: n, key_dim: dk, value_dim: dv, q: &q, k: &k, v: &v, g: &g, beta: &beta }, &dout);
    assert_derivative("q", &q, &grad.q, |x| loss(x, &k, &v, &g, &beta));
    assert_derivative("k", &k, &grad.k, |x| loss(&q, x, &v, &g, &beta));
    assert_derivative("v", &v, &grad.v, |x| loss(&q, &k, x, &g, &beta));
    assert_derivative("g", &g, &grad.g, |x| loss(&q, &k, &v, x, &beta));
    assert_derivative("beta", &beta, &grad.beta, |x| loss(&q, &k, &v, &g, x));
}

#[test]
fn wrong_shapes_are_named() {
    let p = parameters(2, 4, 8, 8);
    let documents = Documents::from_lengths(&[3]).unwrap();
    let qkv = Tensor::zeros((3, p.qkv_width() + 1), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let ba = Tensor::zeros((3, 8), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let error = delta_rule(&qkv, &ba, &p, &documents).unwrap_err().to_string();
    assert!(error.contains("qkv"), "{error}");
    let short = Parameters { a_log: Arc::from([0.0f32; 3]), ..p };
    let qkv = Tensor::zeros((3, short.qkv_width()), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    assert!(delta_rule(&qkv, &ba, &short, &documents).unwrap_err().to_string().contains("A_log"));
}
