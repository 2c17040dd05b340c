//! The values of an adapter in memory.

use std::collections::BTreeMap;

/// A row-major matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// `rows * columns` values.
    pub values: Vec<f32>,
}

/// The two matrices of one adapted linear.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// `[rank, in]`
    pub a: Matrix,
    /// `[out, rank]`
    pub b: Matrix,
}

/// The values of an adapter, by module path.
pub type AdapterTensors = BTreeMap<String, Adapter>;
