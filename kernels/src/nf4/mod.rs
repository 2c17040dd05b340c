//! NF4 (placeholder).
/// A matrix in NF4.
#[derive(Debug)]
pub struct Nf4Matrix {
    rows: usize,
    columns: usize,
}
impl Nf4Matrix {
    /// rows
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// columns
    pub fn columns(&self) -> usize {
        self.columns
    }
    /// bytes
    pub fn bytes(&self) -> usize {
        0
    }
    /// decode
    pub fn dequantize_into(&self, _out: &mut [f32]) {}
}
