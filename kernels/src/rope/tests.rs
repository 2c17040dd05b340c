use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;

use super::*;
use crate::Documents;
use crate::test_values::{assert_close, assert_derivative, narrow, uniform};

/// `norm`: 0 none, 1 plain, 2 zero-centred.
fn rope(rows: usize, shape: HeadShape, rotary_dim: usize, norm: usize, seed: u64) -> HeadNormRope {
    let kind = [None, Some(Kind::Plain), Some(Kind::ZeroCentred)][norm];
    let norm = kind.map(|kind| HeadNorm { weight: narrow(&uniform(shape.head_dim, seed)).into(), kind, epsilon: 1e-6 });
    let positions = (0..rows).map(|row| ((row * 7 + 3) % 90) as u32).collect();
    HeadNormRope { shape, norm, table: RopeTable::new(rotary_dim, 1e4, 90).unwrap(), positions }
}

proptest! {
    #[test]
    fn preparation_equals_its_reference(
        rows in 0usize..50, heads in 1usize..4, half in 1usize..20, pass in 4usize..9, gated: bool, norm in 0usize..3,
        seed: u64,
    ) {
        let head_dim = 2 * half + pass;
        let shape = HeadShape { heads, head_dim, source_stride: if gated { 2 * head_dim } else { head_dim } };
        let rope = rope(rows, shape, 2 * half, norm, seed);
        let x = uniform(rows * heads * shape.source_stride, seed + 1);
        let dy = uniform(rows * heads * head_dim, seed + 2);
        assert_close("y", &cpu::forward(&narrow(&x), &rope), &reference::forward(&x, &rope), 1e-5);
        let dx = cpu::backward(&narrow(&x), &rope, &narrow(&dy));
        assert_close("dx", &dx, &reference::backward(&x, &rope, &dy), 1e-5);
    }

    #[test]
    fn gate_equals_its_reference(rows in 0usize..50, heads in 1usize..4, head_dim in 1usize..70, seed: u64) {
        let attention = uniform(rows * heads * head_dim, seed);
        let raw: Vec<f64> = uniform(2 * attention.len(), seed + 1).iter().map(|v| 8.0 * v).collect();
        let dy = uniform(attention.len(), seed + 2);
        let y = cpu::gate_forward(&narrow(&attention), &narrow(&raw), head_dim);
        assert_close("y", &y, &reference::gate_forward(&attention, &raw, head_dim), 1e-6);
        let (d_attention, d_raw) = cpu::gate_backward(&narrow(&attention), &narrow(&raw), head_dim, &narrow(&dy));
        let expected = reference::gate_backward(&attention, &raw, head_dim, &dy);
        assert_close("d_attention", &d_attention, &expected.0, 1e-6);
        assert_close("d_raw", &d_raw, &expected.1, 1e-6);
    }
}

#[test]
fn the_reference_gradients_are_derivatives() {
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(x, y)| x * y).sum() };
    for norm in 0..3 {
        let shape = HeadShape { heads: 2, head_dim: 6, source_stride: 12 };
        let rope = rope(3, shape, 4, norm, 9);
        let (x, dy) = (uniform(3 * 24, 1), uniform(3 * 12, 2));
        let dx = reference::backward(&x, &rope, &dy);
        assert_derivative("x", &x, &dx, |x| dot(&reference::forward(x, &rope), &dy));
    }
    let (attention, raw, dy) = (uniform(12, 3), uniform(24, 4), uniform(12, 5));
    let (d_attention, d_raw) = reference::gate_backward(&attention, &raw, 3, &dy);
    assert_derivative("attention", &attention, &d_attention, |a| dot(&reference::gate_forward(a, &raw, 3), &dy));
    assert_derivative("raw", &raw, &d_raw, |raw| dot(&reference::gate_forward(&attention, raw, 3), &dy));
}

/// The rotation alone, on dense heads.
fn rotate(x: &Tensor, heads: usize, head_dim: usize, table: &RopeTable, positions: &Arc<[u32]>) -> Result<Tensor> {
    let shape = HeadShape { heads, head_dim, source_stride: head_dim };
    head_norm_rope(x, HeadNormRope { shape, norm: None, table: table.clone(), positions: positions.clone() })
}

/// Scores of rotated queries and keys depend only on the distance, and each document starts anew.
#[test]
fn rotation_is_relative_and_restarts_with_each_document() {
    let table = RopeTable::new(8, 1e4, 16).unwrap();
    let positions: Arc<[u32]> = Documents::from_lengths(&[5, 3]).unwrap().positions().into();
    let one = narrow(&uniform(8, 1));
    let x = Tensor::from_vec(one.repeat(8), (8, 8), &Device::Cpu).unwrap();
    let rows = rotate(&x, 1, 8, &table, &positions).unwrap().to_vec2::<f32>().unwrap();
    let score = |a: usize, b: usize| -> f32 { rows[a].iter().zip(&rows[b]).map(|(x, y)| x * y).sum() };
    assert_eq!(rows[0], one);
    assert_eq!(rows[5], rows[0]);
    assert_eq!(rows[7], rows[2]);
    assert!((score(3, 1) - score(4, 2)).abs() < 1e-5);
    assert!((score(3, 1) - score(3, 2)).abs() > 1e-3);
}

#[test]
fn gradients_arrive_at_variables() {
    let shape = HeadShape { heads: 2, head_dim: 8, source_stride: 16 };
    let rope = rope(3, shape, 4, 2, 1);
    let (x, attention) = (uniform(3 * 32, 1), uniform(3 * 16, 2));
    let raw = Var::from_vec(narrow(&x), (3, 32), &Device::Cpu).unwrap();
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();

    let y = head_norm_rope(&raw, rope.clone()).unwrap();
    assert_eq!(y.dims(), [3, 16]);
    let gradients = y.sum_all().unwrap().backward().unwrap();
    let expected = reference::backward(&x, &rope, &vec![1.0; 3 * 16]);
    assert_close("dx", &values(gradients.get(&raw).unwrap()), &expected, 1e-5);

    let attended = Var::from_vec(narrow(&attention), (3, 16), &Device::Cpu).unwrap();
    let gradients = sigmoid_gate(&attended, &raw, 2, 8).unwrap().sum_all().unwrap().backward().unwrap();
    let expected = reference::gate_backward(&attention, &x, 8, &vec![1.0; 3 * 16]);
    assert_close("d_attention", &values(gradients.get(&attended).unwrap()), &expected.0, 1e-6);
    assert_close("d_raw", &values(gradients.get(&raw).unwrap()), &expected.1, 1e-6);
}

#[test]
fn wrong_shapes_and_positions_are_refused() {
    let table = RopeTable::new(8, 1e4, 16).unwrap();
    let positions: Arc<[u32]> = vec![0, 1].into();
    let x = Tensor::zeros((2, 16), DType::F32, &Device::Cpu).unwrap();
    assert!(rotate(&x, 2, 8, &table, &positions).is_ok());
    assert!(rotate(&x, 3, 8, &table, &positions).is_err());
    assert!(rotate(&x, 4, 4, &table, &positions).is_err());
    assert!(rotate(&x, 2, 8, &table, &vec![0].into()).is_err());
    let message = rotate(&x, 2, 8, &table, &vec![0, 16].into()).unwrap_err().to_string();
    assert_eq!(message, "head norm and rope: position 16 is outside of a table of 16 positions");
    assert!(sigmoid_gate(&x, &x, 2, 8).is_err());
    assert!(sigmoid_gate(&x, &x, 0, 0).is_err());
}
