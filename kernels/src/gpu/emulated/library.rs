//! In place of the vendor's library: each value as one sum.

use half::bf16;

use super::Emulator;
use crate::Result;
use crate::gpu::{Backend, LibraryProduct};

// === impl Emulator ===

impl Emulator {
    pub(super) fn multiply(&self, product: &LibraryProduct) -> Result<()> {
        let LibraryProduct { columns: [a_columns, b_columns], sizes: [m, n, k], strides, wide, .. } = *product;
        let side = |columns: bool, side: usize| if columns { (k, side) } else { (side, k) };
        let ((a_rows, a_width), (b_rows, b_width)) = (side(a_columns, m), side(b_columns, n));
        let a = self.rows(product.a, a_rows, a_width, strides[0])?;
        let b = self.rows(product.b, b_rows, b_width, strides[1])?;
        for row in 0..m {
            for column in 0..n {
                let of_a = |k: usize| if a_columns { a[k][row] } else { a[row][k] };
                let of_b = |k: usize| if b_columns { b[k][column] } else { b[column][k] };
                let sum = product.scale * (0..k).map(|k| of_a(k) * of_b(k)).sum::<f32>();
                let place = (row * n + column) as u64;
                if wide {
                    let mut old = [0; 4];
                    if product.add {
                        self.download(product.out + 4 * place, &mut old)?;
                    }
                    self.upload(product.out + 4 * place, &(f32::from_le_bytes(old) + sum).to_le_bytes())?;
                } else {
                    let mut old = [0; 2];
                    if product.add {
                        self.download(product.out + 2 * place, &mut old)?;
                    }
                    let sum = bf16::from_f32(bf16::from_le_bytes(old).to_f32() + sum);
                    self.upload(product.out + 2 * place, &sum.to_le_bytes())?;
                }
            }
        }
        Ok(())
    }

    /// A matrix of bf16, row by row: what is between rows is not read.
    fn rows(&self, address: u64, rows: usize, columns: usize, stride: usize) -> Result<Vec<Vec<f32>>> {
        (0..rows)
            .map(|row| {
                let mut bytes = vec![0; 2 * columns];
                self.download(address + (2 * row * stride) as u64, &mut bytes)?;
                Ok(bytes.chunks_exact(2).map(|two| bf16::from_le_bytes([two[0], two[1]]).to_f32()).collect())
            })
            .collect()
    }
}
