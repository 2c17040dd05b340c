//! Views of `f32` slices as matrices, checked against the slice when they are made.

use std::ops::Range;

/// Where the elements of a matrix are: `(i, j)` at `i * row_stride + j * column_stride`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

/// A read-only matrix.
#[derive(Debug, Clone, Copy)]
pub struct MatRef<'a> {
    pub(super) data: &'a [f32],
    pub(super) shape: Shape,
}

/// A matrix to write to. Its views never alias: each element has one place.
#[derive(Debug)]
pub struct MatMut<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) shape: Shape,
}

// === impl Shape ===

impl Shape {
    /// Row-major, filling all of `length` values.
    fn filling(length: usize, rows: usize, columns: usize) -> Self {
        assert_eq!(Some(length), rows.checked_mul(columns), "values of a {rows} x {columns} matrix");
        Self { rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Rows of `columns` values, each `row_stride` values after the one before.
    fn strided(length: usize, rows: usize, columns: usize, row_stride: usize) -> Self {
        let shape = Self { rows, columns, row_stride, column_stride: 1 };
        assert!(shape.fits(length), "{rows} x {columns} with row stride {row_stride} exceeds {length} values");
        shape
    }

    /// Whether every element lies in a slice of `length` values.
    pub(super) fn fits(&self, length: usize) -> bool {
        if self.rows == 0 || self.columns == 0 {
            return true;
        }
        let last_row = (self.rows - 1).checked_mul(self.row_stride);
        let last_column = (self.columns - 1).checked_mul(self.column_stride);
        // Every Rust slice of f32 is shorter than isize::MAX / 4, so whatever fits in one also fits in an isize.
        matches!((last_row, last_column), (Some(r), Some(c)) if r.checked_add(c).is_some_and(|last| last < length))
    }

    fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row_stride: self.column_stride, column_stride: self.row_stride }
    }

    /// Only these rows, and how many of `length` values lie before them.
    fn rows_range(self, range: &Range<usize>, length: usize) -> (Self, usize) {
        let inside = range.start <= range.end && range.end <= self.rows;
        assert!(inside, "rows (or columns) {range:?} of a matrix with {}", self.rows);
        (Self { rows: range.len(), ..self }, (range.start * self.row_stride).min(length))
    }
}

// === impl MatRef ===

impl<'a> MatRef<'a> {
    /// A row-major matrix that fills `data`.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { shape: Shape::filling(data.len(), rows, columns), data }
    }

    /// Rows of `columns` values, each `row_stride` values after the one before.
    pub fn with_stride(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { shape: Shape::strided(data.len(), rows, columns, row_stride), data }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Self { shape: self.shape.transposed(), ..self }
    }

    /// Only these rows.
    pub fn rows_range(self, range: Range<usize>) -> Self {
        let (shape, start) = self.shape.rows_range(&range, self.data.len());
        Self { data: &self.data[start..], shape }
    }

    /// Only these columns.
    pub fn columns_range(self, range: Range<usize>) -> Self {
        self.t().rows_range(range).t()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.shape.columns
    }
}

// === impl MatMut ===

impl<'a> MatMut<'a> {
    /// A row-major matrix that fills `data`.
    pub fn new(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        Self { shape: Shape::filling(data.len(), rows, columns), data }
    }

    /// Rows of `columns` values, each `row_stride >= columns` values after the one before.
    pub fn with_stride(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(row_stride >= columns, "rows of {columns} values overlap with row stride {row_stride}");
        Self { shape: Shape::strided(data.len(), rows, columns, row_stride), data }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Self { shape: self.shape.transposed(), ..self }
    }

    /// Only these rows.
    pub fn rows_range(self, range: Range<usize>) -> Self {
        let (shape, start) = self.shape.rows_range(&range, self.data.len());
        Self { data: &mut self.data[start..], shape }
    }

    /// Only these columns.
    pub fn columns_range(self, range: Range<usize>) -> Self {
        self.t().rows_range(range).t()
    }

    /// The same matrix for a shorter time.
    pub fn reborrow(&mut self) -> MatMut<'_> {
        MatMut { data: self.data, shape: self.shape }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.shape.columns
    }
}
