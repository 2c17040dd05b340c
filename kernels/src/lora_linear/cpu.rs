//! Frozen linear + LoRA by matrix products over all rows at once. An NF4 weight is decoded block by block into a
//! buffer that stays in cache, once per product and shared by all rows.

use std::borrow::Cow;

use rayon::prelude::*;

use super::Lora;
use crate::FrozenWeight;
use crate::gemm::{
    Accumulate::{self, Add, Overwrite},
    MatMut, MatRef, Threads, gemm,
};
use crate::nf4::Nf4Matrix;

/// Decoded values per block: 1 MiB of `f32`, half of a common L2 cache.
const DECODE_BLOCK: usize = 1 << 18;

/// `y (+)= x Wᵀ`, `x [rows, in]`, `y [rows, out]`.
pub(crate) fn times_weight_transposed(mut y: MatMut, accumulate: Accumulate, x: MatRef, weight: &FrozenWeight) {
    match weight {
        FrozenWeight::Plain { rows, columns, values } => {
            gemm(y, accumulate, 1.0, x, MatRef::new(values, *rows, *columns).t(), Threads::All);
        }
        FrozenWeight::Nf4(matrix) => decoded_blocks(matrix, |range, block| {
            gemm(y.reborrow().columns_range(range), accumulate, 1.0, x, block.t(), Threads::All);
        }),
    }
}

/// `dx (+)= dy W`, `dy [rows, out]`, `dx [rows, in]`.
pub(crate) fn times_weight(mut dx: MatMut, accumulate: Accumulate, dy: MatRef, weight: &FrozenWeight) {
    match weight {
        FrozenWeight::Plain { rows, columns, values } => {
            gemm(dx, accumulate, 1.0, dy, MatRef::new(values, *rows, *columns), Threads::All);
        }
        FrozenWeight::Nf4(matrix) => {
            let mut accumulate = accumulate;
            decoded_blocks(matrix, |range, block| {
                gemm(dx.reborrow(), accumulate, 1.0, dy.columns_range(range), block, Threads::All);
                accumulate = Add;
            });
        }
    }
}

fn decoded_blocks(matrix: &Nf4Matrix, mut consume: impl FnMut(std::ops::Range<usize>, MatRef)) {
    let columns = matrix.columns();
    let step = (DECODE_BLOCK / columns.max(1)).max(1);
    let mut buffer = vec![0.0; step.min(matrix.rows()) * columns];
    for from in (0..matrix.rows()).step_by(step) {
        let range = from..matrix.rows().min(from + step);
        let block = &mut buffer[..range.len() * columns];
        decode_rows(matrix, range.clone(), block);
        consume(range.clone(), MatRef::new(block, range.len(), columns));
    }
}

fn decode_rows(matrix: &Nf4Matrix, range: std::ops::Range<usize>, out: &mut [f32]) {
    let columns = matrix.columns();
    let share = range.len().div_ceil(rayon::current_num_threads()).max(1);
    out.par_chunks_mut(share * columns).enumerate().for_each(|(index, part)| {
        let from = range.start + index * share;
        matrix.dequantize_rows_into(from..from + part.len() / columns, part);
    });
}

/// `x` with the dropout of the LoRA path applied.
pub(crate) fn dropped<'a>(x: &'a [f32], lora: &Lora) -> Cow<'a, [f32]> {
    let Some(dropout) = lora.dropout else { return Cow::Borrowed(x) };
    let mut values = x.to_vec();
    dropout.apply_parallel(&mut values);
    Cow::Owned(values)
}

/// `y = x Wᵀ + bias [+ scale · drop(x) Aᵀ Bᵀ]`; also returns `drop(x) Aᵀ`.
pub(crate) fn forward(
    x: &[f32],
    rows: usize,
    weight: &FrozenWeight,
    bias: Option<&[f32]>,
    lora: Option<(&Lora, &[f32], &[f32])>,
) -> (Vec<f32>, Vec<f32>) {
    let (inputs, outputs) = (weight.columns(), weight.rows());
    let mut y = vec![0.0; rows * outputs];
    if let Some(bias) = bias {
        y.par_chunks_mut(outputs).for_each(|row| row.copy_from_slice(bias));
    }
    let accumulate = if bias.is_some() { Add } else { Overwrite };
    times_weight_transposed(MatMut::new(&mut y, rows, outputs), accumulate, MatRef::new(x, rows, inputs), weight);
    let Some((lora, a, b)) = lora else { return (y, Vec::new()) };
    let mut down = vec![0.0; rows * lora.rank];
    let x = dropped(x, lora);
    gemm(
        MatMut::new(&mut down, rows, lora.rank),
        Overwrite,
        1.0,
        MatRef::new(&x, rows, inputs),
        MatRef::new(a, lora.rank, inputs).t(),
        Threads::All,
    );
    gemm(
        MatMut::new(&mut y, rows, outputs),
        Add,
        lora.scale,
        MatRef::new(&down, rows, lora.rank),
        MatRef::new(b, outputs, lora.rank).t(),
        Threads::All,
    );
    (y, down)
}

/// `dx = dy W`.
pub(crate) fn backward_input(dy: &[f32], rows: usize, weight: &FrozenWeight) -> Vec<f32> {
    let mut dx = vec![0.0; rows * weight.columns()];
    let dy = MatRef::new(dy, rows, weight.rows());
    times_weight(MatMut::new(&mut dx, rows, weight.columns()), Overwrite, dy, weight);
    dx
}

/// Gradients of the LoRA path: adds the input's to `dx` (when wanted) and returns those of `A` and `B`.
pub(crate) fn backward_lora(
    lora: &Lora,
    x: &[f32],
    a: &[f32],
    b: &[f32],
    down: &[f32],
    dy: &[f32],
    rows: usize,
    dx: Option<&mut [f32]>,
) -> (Vec<f32>, Vec<f32>) {
    let rank = lora.rank;
    let (inputs, outputs) = (a.len() / rank, b.len() / rank);
    let all = Threads::All;
    let dy = MatRef::new(dy, rows, outputs);
    let mut db = vec![0.0; b.len()];
    gemm(MatMut::new(&mut db, outputs, rank), Overwrite, lora.scale, dy.t(), MatRef::new(down, rows, rank), all);
    let mut ddown = vec![0.0; rows * rank];
    gemm(MatMut::new(&mut ddown, rows, rank), Overwrite, lora.scale, dy, MatRef::new(b, outputs, rank), all);
    let ddown = MatRef::new(&ddown, rows, rank);
    let mut da = vec![0.0; a.len()];
    let x = dropped(x, lora);
    gemm(MatMut::new(&mut da, rank, inputs), Overwrite, 1.0, ddown.t(), MatRef::new(&x, rows, inputs), all);
    if let Some(dx) = dx {
        let a = MatRef::new(a, rank, inputs);
        match lora.dropout {
            None => gemm(MatMut::new(dx, rows, inputs), Add, 1.0, ddown, a, all),
            Some(dropout) => {
                let mut through = vec![0.0; rows * inputs];
                gemm(MatMut::new(&mut through, rows, inputs), Overwrite, 1.0, ddown, a, all);
                dropout.apply_parallel(&mut through);
                dx.iter_mut().zip(&through).for_each(|(d, t)| *d += t);
            }
        }
    }
    (da, db)
}
