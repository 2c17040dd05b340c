//! Products against their definition in `f64`.

use super::*;

/// `lhs[m, k] · rhs[k, n]`, row-major.
fn matmul(lhs: &[f64], rhs: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            out[i * n + j] = (0..k).map(|p| lhs[i * k + p] * rhs[p * n + j]).sum();
        }
    }
    out
}

/// The transpose of a row-major `[rows, columns]` matrix.
fn transpose(values: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    let mut out = vec![0.0; values.len()];
    for i in 0..rows {
        for j in 0..columns {
            out[j * rows + i] = values[i * columns + j];
        }
    }
    out
}

fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5) - 1.0).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn assert_close(found: &[f32], expected: &[f64], k: usize) {
    for (index, (&f, &e)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(f) - e).abs() < 1e-6 * (k as f64 + 1.0), "at {index}: {f} against {e}");
    }
}

const SHAPES: [(usize, usize, usize); 13] = [
    (1, 1, 1),
    (1, 5, 9),
    (7, 4, 1),
    (3, 2, 8),
    (5, 1, 6),
    (16, 16, 16),
    (2, 300, 2),
    (17, 33, 65),
    (64, 64, 64),
    (70, 129, 31),
    (1, 257, 130),
    (130, 257, 1),
    (200, 150, 210),
];

#[test]
fn every_orientation_equals_the_definition() {
    for (m, k, n) in SHAPES {
        let (lhs, rhs) = (values(m * k, 1), values(k * n, 2));
        let expected = matmul(&wide(&lhs), &wide(&rhs), m, k, n);
        let narrow = |v: Vec<f64>| v.into_iter().map(|x| x as f32).collect::<Vec<_>>();
        let lhs_t = narrow(transpose(&wide(&lhs), m, k));
        let rhs_t = narrow(transpose(&wide(&rhs), k, n));
        let lefts = [MatRef::new(&lhs, m, k), MatRef::new(&lhs_t, k, m).t()];
        let rights = [MatRef::new(&rhs, k, n), MatRef::new(&rhs_t, n, k).t()];
        for left in lefts {
            for right in rights {
                let mut out = vec![f32::NAN; m * n];
                gemm(MatMut::new(&mut out, m, n), Accumulate::Overwrite, 1.0, left, right, Threads::All);
                assert_close(&out, &expected, k);
                let mut flipped = vec![f32::NAN; m * n];
                let dst = MatMut::new(&mut flipped, n, m).t();
                gemm(dst, Accumulate::Overwrite, 1.0, left, right, Threads::One);
                assert_close(&flipped, &transpose(&expected, m, n), k);
            }
        }
    }
}

#[test]
fn add_keeps_the_old_values_and_alpha_scales_only_the_product() {
    for (m, k, n) in SHAPES {
        let (lhs, rhs, old) = (values(m * k, 3), values(k * n, 4), values(m * n, 5));
        let product = matmul(&wide(&lhs), &wide(&rhs), m, k, n);
        let expected: Vec<f64> = wide(&old).iter().zip(&product).map(|(o, p)| o - 0.5 * p).collect();
        let mut out = old.clone();
        let dst = MatMut::new(&mut out, m, n);
        gemm(dst, Accumulate::Add, -0.5, MatRef::new(&lhs, m, k), MatRef::new(&rhs, k, n), Threads::All);
        assert_close(&out, &expected, k);
    }
}

#[test]
fn an_empty_sum_is_zero_and_empty_matrices_are_left_alone() {
    let mut out = vec![f32::NAN; 6];
    let empty = || (MatRef::new(&[], 2, 0), MatRef::new(&[], 0, 3));
    let (lhs, rhs) = empty();
    gemm(MatMut::new(&mut out, 2, 3), Accumulate::Overwrite, 1.0, lhs, rhs, Threads::All);
    assert_eq!(out, [0.0; 6]);
    out.fill(2.0);
    let (lhs, rhs) = empty();
    gemm(MatMut::new(&mut out, 2, 3), Accumulate::Add, 1.0, lhs, rhs, Threads::All);
    assert_eq!(out, [2.0; 6]);
    let right = values(6, 1);
    let nothing = MatMut::new(&mut [], 0, 3);
    gemm(nothing, Accumulate::Overwrite, 1.0, MatRef::new(&[], 0, 2), MatRef::new(&right, 2, 3), Threads::All);
}

#[test]
fn views_select_rows_and_columns() {
    // A [4, 6] buffer: the product of rows 1..3, columns 2..5 with the identity lands in columns 3..6 of another.
    let source = values(24, 1);
    let identity = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
    let mut out = vec![9.0; 24];
    let lhs = MatRef::new(&source, 4, 6).rows_range(1..3).columns_range(2..5);
    let mut whole = MatMut::new(&mut out, 4, 6);
    let dst = whole.reborrow().rows_range(2..4).columns_range(3..6);
    gemm(dst, Accumulate::Overwrite, 1.0, lhs, MatRef::new(&identity, 3, 3), Threads::One);
    for row in 0..4 {
        for column in 0..6 {
            let inside = row >= 2 && column >= 3;
            let expected = if inside { source[(row - 1) * 6 + column - 1] } else { 9.0 };
            assert_eq!(out[row * 6 + column], expected);
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let (m, k, n) = (190, 1100, 170);
    let (lhs, rhs) = (values(m * k, 6), values(n * k, 7));
    let run = |workers: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(workers).build().unwrap();
        let mut out = vec![0.0; m * n];
        let dst = MatMut::new(&mut out, m, n);
        let (left, right) = (MatRef::new(&lhs, m, k), MatRef::new(&rhs, n, k).t());
        pool.install(|| gemm(dst, Accumulate::Overwrite, 1.0, left, right, Threads::All));
        out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}

#[test]
#[should_panic(expected = "2 x 3 = 2 x 2 · 3 x 3")]
fn shapes_that_do_not_fit_are_refused() {
    let mut out = vec![0.0; 6];
    let (lhs, rhs) = (values(4, 1), values(9, 1));
    let dst = MatMut::new(&mut out, 2, 3);
    gemm(dst, Accumulate::Overwrite, 1.0, MatRef::new(&lhs, 2, 2), MatRef::new(&rhs, 3, 3), Threads::One);
}

#[test]
#[should_panic(expected = "exceeds")]
fn a_view_cannot_leave_its_values() {
    let data = values(10, 1);
    let _ = MatRef::with_stride(&data, 3, 4, 4);
}
