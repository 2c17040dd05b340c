use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;

use super::*;
use crate::test_values::{assert_close, assert_derivative, narrow, uniform};

fn spread(count: usize, seed: u64) -> Vec<f64> {
    uniform(count, seed).iter().map(|v| f64::from((12.0 * v) as f32)).collect()
}

proptest! {
    #[test]
    fn swiglu_equals_its_reference(count in 0usize..40_000, seed: u64) {
        let (gate, up, dy) = (spread(count, seed), uniform(count, seed + 1), uniform(count, seed + 2));
        let y = cpu::forward(&narrow(&gate), &narrow(&up));
        assert_close("y", &y, &reference::forward(&gate, &up), 1e-6);
        let (d_gate, d_up) = cpu::backward(&narrow(&gate), &narrow(&up), &narrow(&dy));
        let expected = reference::backward(&gate, &up, &dy);
        assert_close("d_gate", &d_gate, &expected.0, 1e-6);
        assert_close("d_up", &d_up, &expected.1, 1e-6);
    }

    #[test]
    fn scale_equals_its_reference(rows in 0usize..60, width in 1usize..700, seed: u64) {
        let (y, g, upstream) = (uniform(rows * width, seed), spread(rows, seed + 1), uniform(rows * width, seed + 2));
        let out = cpu::scale_forward(&narrow(&y), &narrow(&g), width);
        assert_close("out", &out, &reference::scale_forward(&y, &g), 1e-6);
        let (d_y, d_g) = cpu::scale_backward(&narrow(&y), &narrow(&g), &narrow(&upstream), width);
        let expected = reference::scale_backward(&y, &g, &upstream);
        assert_close("d_y", &d_y, &expected.0, 1e-6);
        assert_close("d_g", &d_g, &expected.1, 1e-5);
    }
}

#[test]
fn the_reference_gradients_are_derivatives() {
    let dot = |a: Vec<f64>, b: &[f64]| -> f64 { a.iter().zip(b).map(|(x, y)| x * y).sum() };
    let (gate, up, dy) = (spread(20, 1), uniform(20, 2), uniform(20, 3));
    let (d_gate, d_up) = reference::backward(&gate, &up, &dy);
    assert_derivative("gate", &gate, &d_gate, |gate| dot(reference::forward(gate, &up), &dy));
    assert_derivative("up", &up, &d_up, |up| dot(reference::forward(&gate, up), &dy));
    let g = spread(4, 4);
    let (d_y, d_g) = reference::scale_backward(&up, &g, &dy);
    assert_derivative("y", &up, &d_y, |y| dot(reference::scale_forward(y, &g), &dy));
    assert_derivative("g", &g, &d_g, |g| dot(reference::scale_forward(&up, g), &dy));
}

#[test]
fn gradients_arrive_at_variables() {
    let (a, b) = (spread(12, 1), uniform(12, 2));
    let first = Var::from_vec(narrow(&a), (3, 4), &Device::Cpu).unwrap();
    let second = Var::from_vec(narrow(&b), (3, 4), &Device::Cpu).unwrap();
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let ones = vec![1.0; 12];

    let gradients = swiglu(&first, &second).unwrap().sum_all().unwrap().backward().unwrap();
    let expected = reference::backward(&a, &b, &ones);
    assert_close("d_gate", &values(gradients.get(&first).unwrap()), &expected.0, 1e-6);
    assert_close("d_up", &values(gradients.get(&second).unwrap()), &expected.1, 1e-6);

    let scale = Var::from_vec(narrow(&a[..3]), (3, 1), &Device::Cpu).unwrap();
    let gradients = scale_rows(&second, &scale).unwrap().sum_all().unwrap().backward().unwrap();
    let expected = reference::scale_backward(&b, &a[..3], &ones);
    assert_close("d_y", &values(gradients.get(&second).unwrap()), &expected.0, 1e-6);
    assert_close("d_g", &values(gradients.get(&scale).unwrap()), &expected.1, 1e-5);
    assert_eq!(gradients.get(&scale).unwrap().dims(), [3, 1]);

    let frozen = second.as_detached_tensor();
    let gradients = swiglu(&first, &frozen).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&first).is_some() && gradients.get(&frozen).is_none());
}

#[test]
fn wrong_shapes_are_refused() {
    let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    assert!(swiglu(&zeros((2, 3)), &zeros((3, 2))).is_err());
    assert!(scale_rows(&zeros((2, 3)), &zeros((3, 1))).is_err());
    assert!(scale_rows(&zeros((2, 3)), &zeros((1, 2))).is_err());
    assert!(scale_rows(&zeros((2, 0)), &zeros((2, 1))).is_err());
    assert!(swiglu(&zeros((2, 3)).to_dtype(DType::BF16).unwrap(), &zeros((2, 3))).is_err());
}
