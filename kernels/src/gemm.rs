//! `dst = [dst +] alpha · lhs · rhs` on strided `f32` matrices: a safe door to the `gemm` crate. Shapes and bounds are
//! checked once per call; the result does not depend on the number of threads, since the threads share out rows and
//! columns of `dst` and never the sum.

use std::ops::Range;

/// A read-only matrix: `element(i, j) = data[i * row_stride + j * column_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct MatRef<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

/// A matrix to write to. Its views never alias: each element has one place.
#[derive(Debug)]
pub struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

/// What happens to the old values of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accumulate {
    /// They are not read (not even when they are NaN).
    Overwrite,
    /// The product is added to them.
    Add,
}

/// How many threads one multiplication may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// Only the caller's: for work that is already spread over threads.
    One,
    /// All threads of the current rayon pool, if the product is large enough to gain from it.
    All,
}

/// Products with fewer multiply-adds than this stay on one thread: about 30 µs of work, where waking a pool would cost
/// as much as it saves.
const PARALLEL_WORK: usize = 1 << 21;

fn fits(length: usize, rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> bool {
    if rows == 0 || columns == 0 {
        return true;
    }
    let last_row = (rows - 1).checked_mul(row_stride);
    let last_column = (columns - 1).checked_mul(column_stride);
    // Every Rust slice of f32 is shorter than isize::MAX / 4, so whatever fits in one also fits in an isize.
    matches!((last_row, last_column), (Some(r), Some(c)) if r.checked_add(c).is_some_and(|last| last < length))
}

fn check_range(range: &Range<usize>, size: usize, what: &str) {
    assert!(range.start <= range.end && range.end <= size, "{what} {range:?} of a matrix with {size}");
}

// === impl MatRef ===

impl<'a> MatRef<'a> {
    /// A row-major matrix that fills `data`.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(Some(data.len()), rows.checked_mul(columns), "values of a {rows} x {columns} matrix");
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Rows of `columns` values, each `row_stride` values after the one before.
    pub fn with_stride(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(
            fits(data.len(), rows, columns, row_stride, 1),
            "{rows} x {columns} with row stride {row_stride} exceeds {} values",
            data.len()
        );
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Only these rows.
    pub fn rows_range(self, range: Range<usize>) -> Self {
        check_range(&range, self.rows, "rows");
        let start = (range.start * self.row_stride).min(self.data.len());
        Self { data: &self.data[start..], rows: range.len(), ..self }
    }

    /// Only these columns.
    pub fn columns_range(self, range: Range<usize>) -> Self {
        self.t().rows_range(range).t()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }
}

// === impl MatMut ===

impl<'a> MatMut<'a> {
    /// A row-major matrix that fills `data`.
    pub fn new(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(Some(data.len()), rows.checked_mul(columns), "values of a {rows} x {columns} matrix");
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Rows of `columns` values, each `row_stride >= columns` values after the one before.
    pub fn with_stride(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(row_stride >= columns, "rows of {columns} values overlap with row stride {row_stride}");
        assert!(
            fits(data.len(), rows, columns, row_stride, 1),
            "{rows} x {columns} with row stride {row_stride} exceeds {} values",
            data.len()
        );
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            data: self.data,
        }
    }

    /// Only these rows.
    pub fn rows_range(self, range: Range<usize>) -> Self {
        check_range(&range, self.rows, "rows");
        let start = (range.start * self.row_stride).min(self.data.len());
        Self { data: &mut self.data[start..], rows: range.len(), ..self }
    }

    /// Only these columns.
    pub fn columns_range(self, range: Range<usize>) -> Self {
        self.t().rows_range(range).t()
    }

    /// The same matrix for a shorter time.
    pub fn reborrow(&mut self) -> MatMut<'_> {
        MatMut { data: self.data, ..*self }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }
}

/// `dst = alpha · lhs · rhs`, or `dst += alpha · lhs · rhs`.
///
/// # Panics
/// If the shapes of the three matrices do not fit each other: ops check their arguments before they come here.
pub fn gemm(dst: MatMut<'_>, accumulate: Accumulate, alpha: f32, lhs: MatRef<'_>, rhs: MatRef<'_>, threads: Threads) {
    let (m, n, k) = (dst.rows, dst.columns, lhs.columns);
    assert!(
        lhs.rows == m && rhs.columns == n && rhs.rows == k,
        "{} x {} = {} x {} · {} x {}",
        m,
        n,
        lhs.rows,
        lhs.columns,
        rhs.rows,
        rhs.columns
    );
    if m == 0 || n == 0 {
        return;
    }
    // `unsafe` below relies on this; the constructors promise it, so it never fires.
    assert!(
        fits(dst.data.len(), m, n, dst.row_stride, dst.column_stride)
            && fits(lhs.data.len(), m, k, lhs.row_stride, lhs.column_stride)
            && fits(rhs.data.len(), k, n, rhs.row_stride, rhs.column_stride),
        "a matrix exceeds its values"
    );
    let parallel = threads == Threads::All && m.saturating_mul(n).saturating_mul(k) >= PARALLEL_WORK;
    let workers = if parallel { rayon::current_num_threads() } else { 1 };
    let parallelism = if workers > 1 { gemm::Parallelism::Rayon(workers) } else { gemm::Parallelism::None };
    let add = accumulate == Accumulate::Add;
    // SAFETY: `fits` proved that every index `i * row_stride + j * column_stride` with `i`, `j` inside the shapes lies in
    // the slice behind its pointer. `dst` is borrowed mutably, so it overlaps neither input, and its elements are
    // distinct places (`row_stride >= columns` with `column_stride == 1`, or the transpose of that), so threads that own
    // different elements do not race. Inside the crate, `alpha` scales the old destination and `beta` the product.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.data.as_mut_ptr(),
            dst.column_stride as isize,
            dst.row_stride as isize,
            add,
            lhs.data.as_ptr(),
            lhs.column_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.column_stride as isize,
            rhs.row_stride as isize,
            if add { 1.0 } else { 0.0 },
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
pub(crate) mod reference {
    //! The definition, in `f64`.

    /// `lhs[m, k] · rhs[k, n]`, row-major.
    pub(crate) fn matmul(lhs: &[f64], rhs: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
        let mut out = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                out[i * n + j] = (0..k).map(|p| lhs[i * k + p] * rhs[p * n + j]).sum();
            }
        }
        out
    }

    /// The transpose of a row-major `[rows, columns]` matrix.
    pub(crate) fn transpose(values: &[f64], rows: usize, columns: usize) -> Vec<f64> {
        let mut out = vec![0.0; values.len()];
        for i in 0..rows {
            for j in 0..columns {
                out[j * rows + i] = values[i * columns + j];
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::reference::{matmul, transpose};
    use super::*;

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
}
