//! Blocked `f32` against the definition in `f64`.

use candle_core::{Device, Tensor, Var};

use super::{Heads, attend, attention, reference};
use crate::Documents;
use crate::self_test::{self, values::Random};
use crate::test_values::{assert_close, assert_derivative, narrow, uniform};

fn var(values: &[f64], rows: usize) -> Var {
    let tensor = Tensor::from_vec(narrow(values), (rows, values.len() / rows), &Device::Cpu).unwrap();
    Var::from_tensor(&tensor).unwrap()
}

fn check(heads: Heads, documents: &Documents) {
    let tolerance = |what: &str| if what == "forward" { 2e-6 } else { 3e-6 };
    self_test::attention::compare(heads, documents, &mut Random::new(1), &mut |c| {
        assert_close(c.what, c.found, c.expected, tolerance(c.what));
    })
    .unwrap();
}

#[test]
fn equals_the_definition_at_many_lengths_and_heads() {
    for length in [1, 2, 63, 64, 65, 127, 128, 129, 200] {
        check(Heads { query: 4, key_value: 2, width: 8 }, &Documents::from_lengths(&[length]).unwrap());
    }
    check(Heads { query: 3, key_value: 3, width: 5 }, &Documents::from_lengths(&[70, 1, 64, 13]).unwrap());
    check(Heads { query: 8, key_value: 1, width: 16 }, &Documents::from_lengths(&[64, 65]).unwrap());
}

#[test]
fn padding_is_not_seen_and_gets_no_gradient_as_a_key() {
    check(Heads { query: 4, key_value: 2, width: 8 }, &Documents::from_padded_lengths(&[(70, 41), (80, 80)]).unwrap());
}

#[test]
fn the_boundary_matters() {
    let heads = Heads { query: 2, key_value: 1, width: 4 };
    let (q, k, v) = (var(&uniform(80 * 8, 1), 80), var(&uniform(80 * 4, 2), 80), var(&uniform(80 * 4, 3), 80));
    let run = |lengths: &[usize]| {
        let out = attention(&q, &k, &v, heads, &Documents::from_lengths(lengths).unwrap()).unwrap();
        out.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (apart, joined) = (run(&[30, 50]), run(&[80]));
    assert_eq!(apart[..240], joined[..240]);
    assert_ne!(apart[240..], joined[240..]);
}

#[test]
fn the_reference_gradient_is_the_derivative() {
    let heads = Heads { query: 2, key_value: 1, width: 3 };
    let documents = Documents::from_padded_lengths(&[(3, 3), (4, 3)]).unwrap();
    let (q, k, v, dout) = (uniform(42, 1), uniform(21, 2), uniform(21, 3), uniform(42, 4));
    let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
        reference::forward(&heads, q, k, v, &documents).iter().zip(&dout).map(|(o, d)| o * d).sum()
    };
    let (dq, dk, dv) = reference::backward(&heads, &q, &k, &v, &documents, &dout);
    assert_derivative("q", &q, &dq, |x| loss(x, &k, &v));
    assert_derivative("k", &k, &dk, |x| loss(&q, x, &v));
    assert_derivative("v", &v, &dv, |x| loss(&q, &k, x));
}

#[test]
fn wrong_shapes_are_named() {
    let documents = Documents::from_lengths(&[3]).unwrap();
    let (q, k) = (var(&uniform(24, 1), 3), var(&uniform(12, 2), 3));
    let heads = Heads { query: 2, key_value: 1, width: 4 };
    assert!(attention(&q, &k, &q, heads, &documents).unwrap_err().to_string().contains("attention: v"));
    assert!(attention(&q, &k, &k, Heads { query: 2, key_value: 0, width: 4 }, &documents).is_err());
}

/// The last rows of the definition, for new tokens in any number after any past.
#[test]
fn rows_against_a_cache_are_the_last_rows_of_the_definition() {
    let heads = Heads { query: 4, key_value: 2, width: 8 };
    for (past, new) in [(0, 1), (1, 1), (63, 1), (64, 1), (200, 1), (5, 3), (60, 70), (0, 130), (129, 65)] {
        let n = past + new;
        let (q, k, v) = (uniform(n * 32, 1), uniform(n * 16, 2), uniform(n * 16, 3));
        let whole = reference::forward(&heads, &q, &k, &v, &Documents::from_lengths(&[n]).unwrap());
        let found = attend(heads, &narrow(&q[past * 32..]), &narrow(&k), &narrow(&v)).unwrap();
        assert_close(&format!("{past} + {new}"), &found, &whole[past * 32..], 2e-6);
        if past == 0 {
            let [q, k, v] = [&q, &k, &v].map(|values| var(values, n));
            let out = attention(&q, &k, &v, heads, &Documents::from_lengths(&[n]).unwrap()).unwrap();
            assert_eq!(found, out.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        }
    }
}

#[test]
fn a_cache_of_a_wrong_shape_is_refused() {
    let heads = Heads { query: 2, key_value: 1, width: 4 };
    let refused = |q: usize, k: usize, v: usize, what: &str| {
        let error = attend(heads, &vec![0.0; q], &vec![0.0; k], &vec![0.0; v]).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    refused(7, 8, 8, "q");
    refused(0, 8, 8, "q");
    refused(8, 6, 6, "keys");
    refused(8, 8, 4, "values");
    refused(24, 8, 8, "rows of q");
    assert!(attend(Heads { key_value: 0, ..heads }, &[0.0; 8], &[0.0; 4], &[0.0; 4]).is_err());
}
