use candle_core::{Device, Tensor, Var};
use proptest::prelude::*;

use super::*;
use crate::test_values::{assert_close, narrow, uniform};

const EPSILON: f64 = 1e-6;

fn weight(values: &[f64]) -> Arc<[f32]> {
    narrow(values).into()
}

proptest! {
    // Widths from 4: rows that are tiny all over, where a gradient is a difference of large numbers, are then too rare.
    #[test]
    fn rms_equals_its_reference(rows in 0usize..40, width in 4usize..300, zero_centred: bool, seed: u64) {
        let kind = if zero_centred { Kind::ZeroCentred } else { Kind::Plain };
        let (x, w, dy) = (uniform(rows * width, seed), uniform(width, seed + 1), uniform(rows * width, seed + 2));
        let y = cpu::forward(&narrow(&x), &narrow(&w), kind, EPSILON as f32);
        assert_close("y", &y, &reference::forward(&x, &w, kind, EPSILON), 1e-5);
        let dx = cpu::backward(&narrow(&x), &narrow(&w), kind, EPSILON as f32, &narrow(&dy));
        assert_close("dx", &dx, &reference::backward(&x, &w, kind, EPSILON, &dy), 1e-5);
    }

    #[test]
    fn gated_equals_its_reference(
        rows in 0usize..20, key_heads in 1usize..4, ratio in 1usize..4, key_dim in 1usize..20,
        value_dim in 4usize..70, seed: u64,
    ) {
        let groups = HeadGroups { key_heads, value_heads: key_heads * ratio, key_dim, value_dim };
        let o = uniform(rows * groups.value_width(), seed);
        let qkvz = uniform(rows * groups.projection_width(), seed + 1);
        let (w, dy) = (uniform(value_dim, seed + 2), uniform(o.len(), seed + 3));
        let y = cpu::gated_forward(&narrow(&o), &narrow(&qkvz), &narrow(&w), &groups, EPSILON as f32);
        assert_close("y", &y, &reference::gated_forward(&o, &qkvz, &w, &groups, EPSILON), 1e-5);
        let (d_o, d_qkvz) =
            cpu::gated_backward(&narrow(&o), &narrow(&qkvz), &narrow(&w), &groups, EPSILON as f32, &narrow(&dy));
        let (expected_o, expected_qkvz) = reference::gated_backward(&o, &qkvz, &w, &groups, EPSILON, &dy);
        assert_close("d_o", &d_o, &expected_o, 1e-5);
        assert_close("d_qkvz", &d_qkvz, &expected_qkvz, 1e-5);
    }
}

/// The reference's gradients against differences of its own forward pass.
#[test]
fn the_reference_gradients_are_derivatives() {
    let groups = HeadGroups { key_heads: 2, value_heads: 4, key_dim: 2, value_dim: 3 };
    let (o, qkvz) = (uniform(2 * groups.value_width(), 1), uniform(2 * groups.projection_width(), 2));
    let (w, dy) = (uniform(3, 3), uniform(o.len(), 4));
    let loss = |o: &[f64], qkvz: &[f64]| -> f64 {
        let y = reference::gated_forward(o, qkvz, &w, &groups, EPSILON);
        y.iter().zip(&dy).map(|(a, b)| a * b).sum()
    };
    let (d_o, d_qkvz) = reference::gated_backward(&o, &qkvz, &w, &groups, EPSILON, &dy);
    crate::test_values::assert_derivative("o", &o, &d_o, |o| loss(o, &qkvz));
    crate::test_values::assert_derivative("qkvz", &qkvz, &d_qkvz, |qkvz| loss(&o, qkvz));
    let dx = reference::backward(&o, &w, Kind::ZeroCentred, EPSILON, &dy);
    crate::test_values::assert_derivative("x", &o, &dx, |x| {
        let y = reference::forward(x, &w, Kind::ZeroCentred, EPSILON);
        y.iter().zip(&dy).map(|(a, b)| a * b).sum()
    });
}

#[test]
fn gradients_arrive_at_variables_through_any_leading_shape() {
    let (x, w) = (uniform(2 * 3 * 8, 5), uniform(8, 6));
    let variable = Var::from_tensor(&Tensor::from_vec(narrow(&x), (2, 3, 8), &Device::Cpu).unwrap()).unwrap();
    let y = rms(variable.as_tensor(), &weight(&w), Kind::ZeroCentred, EPSILON as f32).unwrap();
    assert_eq!(y.dims(), [2, 3, 8]);
    let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let found = gradients.get(&variable).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let dy: Vec<f64> = reference::forward(&x, &w, Kind::ZeroCentred, EPSILON).iter().map(|v| 2.0 * v).collect();
    assert_close("dx", &found, &reference::backward(&x, &w, Kind::ZeroCentred, EPSILON, &dy), 1e-5);
}

#[test]
fn both_gradients_of_the_gated_norm_arrive() {
    let groups = HeadGroups { key_heads: 1, value_heads: 2, key_dim: 2, value_dim: 4 };
    let (o, qkvz, w) = (uniform(3 * 8, 1), uniform(3 * groups.projection_width(), 2), uniform(4, 3));
    let o_variable = Var::from_vec(narrow(&o), (3, 8), &Device::Cpu).unwrap();
    let qkvz_variable = Var::from_vec(narrow(&qkvz), (3, groups.projection_width()), &Device::Cpu).unwrap();
    let y = gated(&o_variable, &qkvz_variable, &weight(&w), &groups, EPSILON as f32).unwrap();
    let gradients = y.sum_all().unwrap().backward().unwrap();
    let (d_o, d_qkvz) = reference::gated_backward(&o, &qkvz, &w, &groups, EPSILON, &vec![1.0; o.len()]);
    let values = |v: &Var| gradients.get(v).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_close("d_o", &values(&o_variable), &d_o, 1e-5);
    assert_close("d_qkvz", &values(&qkvz_variable), &d_qkvz, 1e-5);
    // A frozen argument gets none.
    let y = gated(o_variable.as_detached_tensor().as_ref(), &qkvz_variable, &weight(&w), &groups, 1e-6).unwrap();
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&o_variable).is_none() && gradients.get(&qkvz_variable).is_some());
}

#[test]
fn wrong_shapes_are_refused() {
    let x = Tensor::zeros((2, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(rms(&x, &weight(&[1.0; 7]), Kind::Plain, 1e-6).is_err());
    assert!(rms(&x.to_dtype(candle_core::DType::F64).unwrap(), &weight(&[1.0; 8]), Kind::Plain, 1e-6).is_err());
    let groups = HeadGroups { key_heads: 1, value_heads: 2, key_dim: 2, value_dim: 4 };
    let message = gated(&x, &x, &weight(&[1.0; 4]), &groups, 1e-6).unwrap_err().to_string();
    assert_eq!(message, "gated norm: qkvz: expected [2, 20], found [2, 8]");
    // A transposed view is not contiguous: an error, not wrong numbers.
    assert!(rms(&x.t().unwrap(), &weight(&[1.0; 2]), Kind::Plain, 1e-6).is_err());
}
