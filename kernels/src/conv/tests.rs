use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;

use super::*;
use crate::test_values::{assert_close, assert_derivative, narrow, uniform};

fn weight(values: &[f64], taps: usize) -> ConvWeight {
    ConvWeight::new(&narrow(values), values.len() / taps, taps).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn convolution_equals_its_reference(
        lengths in prop::collection::vec(1usize..50, 1..5), key_heads in 1usize..3, ratio in 1usize..3,
        key_dim in 1usize..20, value_dim in 1usize..20, taps in 1usize..7, seed: u64,
    ) {
        let groups = HeadGroups { key_heads, value_heads: key_heads * ratio, key_dim, value_dim };
        let documents = Documents::from_lengths(&lengths).unwrap();
        let x = uniform(documents.tokens() * groups.projection_width(), seed);
        let w = uniform(groups.convolved_width() * taps, seed + 1);
        let dy = uniform(documents.tokens() * groups.convolved_width(), seed + 2);
        let y = cpu::forward(&narrow(&x), &weight(&w, taps), &groups, &documents);
        assert_close("y", &y, &reference::forward(&x, &w, taps, &groups, &documents), 1e-6);
        let dx = cpu::backward(&narrow(&x), &weight(&w, taps), &groups, &documents, &narrow(&dy));
        assert_close("dx", &dx, &reference::backward(&x, &w, taps, &groups, &documents, &dy), 1e-6);
    }
}

const GROUPS: HeadGroups = HeadGroups { key_heads: 2, value_heads: 4, key_dim: 2, value_dim: 3 };

#[test]
fn the_reference_gradient_is_a_derivative() {
    let documents = Documents::from_lengths(&[5, 2]).unwrap();
    let x = uniform(7 * GROUPS.projection_width(), 1);
    let w = uniform(4 * GROUPS.convolved_width(), 2);
    let dy = uniform(7 * GROUPS.convolved_width(), 3);
    let dx = reference::backward(&x, &w, 4, &GROUPS, &documents, &dy);
    assert_derivative("x", &x, &dx, |x| {
        reference::forward(x, &w, 4, &GROUPS, &documents).iter().zip(&dy).map(|(a, b)| a * b).sum()
    });
}

/// Packed documents give the bits of the documents alone, forward and backward, also across the borders of tasks.
#[test]
fn documents_do_not_see_each_other() {
    let lengths = [1, 63, 2, 40, 33, 64];
    let total: usize = lengths.iter().sum();
    let (wide, narrow_width) = (GROUPS.projection_width(), GROUPS.convolved_width());
    let (x, dy) = (narrow(&uniform(total * wide, 1)), narrow(&uniform(total * narrow_width, 2)));
    let weight = weight(&uniform(4 * narrow_width, 3), 4);
    let run = |lengths: &[usize], x: &[f32], dy: &[f32]| {
        let documents = Documents::from_lengths(lengths).unwrap();
        (cpu::forward(x, &weight, &GROUPS, &documents), cpu::backward(x, &weight, &GROUPS, &documents, dy))
    };
    let packed = run(&lengths, &x, &dy);
    let (mut apart, mut start) = ((Vec::new(), Vec::new()), 0);
    for length in lengths {
        let end = start + length;
        let one = run(&[length], &x[start * wide..end * wide], &dy[start * narrow_width..end * narrow_width]);
        apart.0.extend(one.0);
        apart.1.extend(one.1);
        start = end;
    }
    assert!(packed == apart);
    // Without the borders the numbers are others: the test above can fail.
    let joined = run(&[total], &x, &dy);
    assert!(joined.0 != apart.0 && joined.1 != apart.1);
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let documents = Documents::from_lengths(&[100, 57]).unwrap();
    let x = narrow(&uniform(157 * GROUPS.projection_width(), 1));
    let dy = narrow(&uniform(157 * GROUPS.convolved_width(), 2));
    let weight = weight(&uniform(4 * GROUPS.convolved_width(), 3), 4);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| cpu::backward(&x, &weight, &GROUPS, &documents, &dy))
    };
    assert!(run(1) == run(3));
}

#[test]
fn the_gradient_arrives_at_a_variable_and_is_zero_for_z() {
    let documents = Documents::from_lengths(&[3, 4]).unwrap();
    let x = uniform(7 * GROUPS.projection_width(), 1);
    let w = uniform(4 * GROUPS.convolved_width(), 2);
    let variable = Var::from_vec(narrow(&x), (7, GROUPS.projection_width()), &Device::Cpu).unwrap();
    let y = causal_conv_silu(&variable, &weight(&w, 4), &GROUPS, &documents).unwrap();
    assert_eq!(y.dims(), [7, GROUPS.convolved_width()]);
    let gradients = y.sum_all().unwrap().backward().unwrap();
    let found = gradients.get(&variable).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let ones = vec![1.0; 7 * GROUPS.convolved_width()];
    assert_close("dx", &found, &reference::backward(&x, &w, 4, &GROUPS, &documents, &ones), 1e-6);
    for row in found.chunks(GROUPS.projection_width()) {
        for head in 0..GROUPS.value_heads {
            assert!(row[GROUPS.gate_range(head)].iter().all(|&v| v == 0.0));
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let documents = Documents::from_lengths(&[3]).unwrap();
    let zeros = |rows: usize, columns: usize| Tensor::zeros((rows, columns), DType::F32, &Device::Cpu).unwrap();
    let good = weight(&uniform(4 * GROUPS.convolved_width(), 2), 4);
    let width = GROUPS.projection_width();
    assert!(causal_conv_silu(&zeros(3, width), &good, &GROUPS, &documents).is_ok());
    assert!(causal_conv_silu(&zeros(4, width), &good, &GROUPS, &documents).is_err());
    assert!(causal_conv_silu(&zeros(3, width + 1), &good, &GROUPS, &documents).is_err());
    assert!(causal_conv_silu(&zeros(3, width), &weight(&[0.0; 8], 4), &GROUPS, &documents).is_err());
    let uneven = HeadGroups { value_heads: 3, ..GROUPS };
    assert!(causal_conv_silu(&zeros(3, width), &good, &uneven, &documents).is_err());
    assert!(ConvWeight::new(&[0.0; 7], 2, 4).is_err());
    assert!(ConvWeight::new(&[], 0, 0).is_err());
}
