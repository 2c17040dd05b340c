//! The fused projection and cross entropy on `f32`: for one chunk of rows at a time the logits are made, turned into
//! their own gradient in place, and used up.

use rayon::prelude::*;

use crate::dropout::Dropout;
use crate::fast_math::{exp, largest, sum, vectorised};
use crate::gemm::{Accumulate, MatMut, MatRef, Threads, gemm};

/// A LoRA pair on the output projection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lora<'a> {
    /// `[rank, width]`.
    pub(crate) a: &'a [f32],
    /// `[vocabulary, rank]`.
    pub(crate) b: &'a [f32],
    /// Size of the pair.
    pub(crate) rank: usize,
    /// Factor of the pair's contribution.
    pub(crate) scale: f32,
    /// Mask of what goes into `A`: of element `row · width + column`, with the row's number among all rows.
    pub(crate) dropout: Option<Dropout>,
}

/// Checked arguments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arguments<'a> {
    /// `[rows, width]`.
    pub(crate) hidden: &'a [f32],
    /// Size of a row.
    pub(crate) width: usize,
    /// `[vocabulary, width]`.
    pub(crate) weight: &'a [f32],
    /// Number of classes.
    pub(crate) vocabulary: usize,
    /// The adapter of the projection, if it has one.
    pub(crate) lora: Option<Lora<'a>>,
    /// Rows that count, with their targets below `vocabulary`, in order.
    pub(crate) kept: &'a [(usize, u32)],
    /// Rows whose logits exist at the same time.
    pub(crate) chunk_rows: usize,
}

/// Which gradients to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// That of the rows.
    pub(crate) hidden: bool,
    /// Those of the LoRA pair.
    pub(crate) lora: bool,
}

/// The summed loss, and the gradients that were wanted (empty otherwise).
#[derive(Debug, Clone, Default)]
pub(crate) struct Loss {
    /// Sum over the kept rows.
    pub(crate) loss: f64,
    /// `[rows, width]`, zero for rows that do not count.
    pub(crate) d_hidden: Vec<f32>,
    /// `[rank, width]`.
    pub(crate) d_a: Vec<f32>,
    /// `[vocabulary, rank]`.
    pub(crate) d_b: Vec<f32>,
}

/// Buffers of one chunk, reused by the next.
struct Scratch {
    /// Gathered rows `[chunk, width]`.
    rows: Vec<f32>,
    /// The rows as they go into `A`, only where there is dropout.
    dropped: Vec<f32>,
    /// Logits, then their gradient `[chunk, vocabulary]`.
    logits: Vec<f32>,
    /// `rows · Aᵀ`, `[chunk, rank]`.
    inner: Vec<f32>,
    /// `scale · d_logits · B`, `[chunk, rank]`.
    d_inner: Vec<f32>,
    /// Gradient of the gathered rows.
    d_rows: Vec<f32>,
    /// Gradient of the rows as they go into `A`, only where there is dropout.
    d_dropped: Vec<f32>,
}

/// Sum of the cross entropies, with the wanted gradients from the same pass.
pub(crate) fn loss(arguments: &Arguments<'_>, wanted: Wanted) -> Loss {
    let Arguments { hidden, width, vocabulary, lora, kept, chunk_rows, .. } = *arguments;
    let rank = lora.map_or(0, |l| l.rank);
    let wanted = Wanted { lora: wanted.lora && lora.is_some(), ..wanted };
    let mut out = Loss::default();
    if wanted.hidden {
        out.d_hidden = vec![0.0; hidden.len()];
    }
    if wanted.lora {
        out.d_a = vec![0.0; rank * width];
        out.d_b = vec![0.0; vocabulary * rank];
    }
    let most = chunk_rows.min(kept.len());
    let dropped = if lora.is_some_and(|l| l.dropout.is_some()) { most * width } else { 0 };
    let mut scratch = Scratch {
        rows: vec![0.0; most * width],
        dropped: vec![0.0; dropped],
        logits: vec![0.0; most * vocabulary],
        inner: vec![0.0; most * rank],
        d_inner: vec![0.0; most * rank],
        d_rows: vec![0.0; if wanted.hidden { most * width } else { 0 }],
        d_dropped: vec![0.0; if wanted.hidden { dropped } else { 0 }],
    };
    for chunk in kept.chunks(chunk_rows) {
        make_logits(arguments, chunk, &mut scratch);
        let with_gradient = wanted.hidden || wanted.lora;
        // Added up in row order, whoever computed them.
        let losses: Vec<f64> = scratch.logits[..chunk.len() * vocabulary]
            .par_chunks_exact_mut(vocabulary)
            .zip(chunk)
            .map(|(row, &(_, target))| row_loss(row, target as usize, with_gradient))
            .collect();
        out.loss += losses.iter().sum::<f64>();
        if with_gradient {
            add_gradients(arguments, chunk, wanted, &mut scratch, &mut out);
        }
    }
    out
}

/// Multiplies gathered rows by their factors.
fn mask(dropout: Dropout, rows: &mut [f32], chunk: &[(usize, u32)], width: usize) {
    rows.par_chunks_exact_mut(width)
        .zip(chunk)
        .for_each(|(values, &(row, _))| dropout.apply(values, (row * width) as u64));
}

/// `logits = rows · Wᵀ + scale · (drop(rows) · Aᵀ) · Bᵀ`.
fn make_logits(arguments: &Arguments<'_>, chunk: &[(usize, u32)], scratch: &mut Scratch) {
    let Arguments { hidden, width, weight, vocabulary, lora, .. } = *arguments;
    let count = chunk.len();
    for (target, &(row, _)) in scratch.rows.chunks_exact_mut(width).zip(chunk) {
        target.copy_from_slice(&hidden[row * width..(row + 1) * width]);
    }
    let rows = MatRef::new(&scratch.rows[..count * width], count, width);
    let logits = &mut scratch.logits[..count * vocabulary];
    let weight = MatRef::new(weight, vocabulary, width);
    let dst = MatMut::new(logits, count, vocabulary);
    gemm(dst, Accumulate::Overwrite, 1.0, rows, weight.t(), Threads::All);
    if let Some(Lora { a, b, rank, scale, dropout }) = lora {
        let into_a = match dropout {
            Some(dropout) => {
                let dropped = &mut scratch.dropped[..count * width];
                dropped.copy_from_slice(&scratch.rows[..count * width]);
                mask(dropout, dropped, chunk, width);
                MatRef::new(dropped, count, width)
            }
            None => rows,
        };
        let inner = &mut scratch.inner[..count * rank];
        let a = MatRef::new(a, rank, width);
        gemm(MatMut::new(inner, count, rank), Accumulate::Overwrite, 1.0, into_a, a.t(), Threads::All);
        let (inner, b) = (MatRef::new(inner, count, rank), MatRef::new(b, vocabulary, rank));
        gemm(MatMut::new(logits, count, vocabulary), Accumulate::Add, scale, inner, b.t(), Threads::All);
    }
}

/// Turns one row of logits into `softmax - onehot(target)` (if wanted) and returns its cross entropy.
fn row_loss(row: &mut [f32], target: usize, with_gradient: bool) -> f64 {
    /// Partial sums in `f32` stay this short; they are added up in `f64`.
    const BLOCK: usize = 4096;
    vectorised(
        #[inline(always)]
        || {
            let (top, chosen) = (largest(row), row[target]);
            let mut total = 0.0f64;
            for block in row.chunks_mut(BLOCK) {
                for value in block.iter_mut() {
                    *value = exp(*value - top);
                }
                total += f64::from(sum(block));
            }
            if with_gradient {
                let inverse = (1.0 / total) as f32;
                for value in row.iter_mut() {
                    *value *= inverse;
                }
                row[target] -= 1.0;
            }
            f64::from(top) - f64::from(chosen) + total.ln()
        },
    )
}

/// With `dl` the gradient of the logits and `t = scale · dl · B`: `d_rows = dl · W + drop(t · A)`,
/// `d_A += tᵀ · drop(rows)`, `d_B += scale · dlᵀ · (drop(rows) · Aᵀ)`.
fn add_gradients(
    arguments: &Arguments<'_>,
    chunk: &[(usize, u32)],
    wanted: Wanted,
    scratch: &mut Scratch,
    out: &mut Loss,
) {
    let Arguments { width, weight, vocabulary, lora, .. } = *arguments;
    let count = chunk.len();
    let d_logits = MatRef::new(&scratch.logits[..count * vocabulary], count, vocabulary);
    if wanted.hidden {
        let d_rows = MatMut::new(&mut scratch.d_rows[..count * width], count, width);
        let weight = MatRef::new(weight, vocabulary, width);
        gemm(d_rows, Accumulate::Overwrite, 1.0, d_logits, weight, Threads::All);
    }
    if let Some(lora) = lora {
        add_lora_gradients(lora, chunk, width, vocabulary, wanted, scratch, out);
    }
    if wanted.hidden {
        for (d_row, &(row, _)) in scratch.d_rows.chunks_exact(width).zip(chunk) {
            out.d_hidden[row * width..(row + 1) * width].copy_from_slice(d_row);
        }
    }
}

fn add_lora_gradients(
    lora: Lora<'_>,
    chunk: &[(usize, u32)],
    width: usize,
    vocabulary: usize,
    wanted: Wanted,
    scratch: &mut Scratch,
    out: &mut Loss,
) {
    let Lora { a, b, rank, scale, dropout } = lora;
    let count = chunk.len();
    let (a, b) = (MatRef::new(a, rank, width), MatRef::new(b, vocabulary, rank));
    let d_logits = MatRef::new(&scratch.logits[..count * vocabulary], count, vocabulary);
    let d_inner = &mut scratch.d_inner[..count * rank];
    gemm(MatMut::new(d_inner, count, rank), Accumulate::Overwrite, scale, d_logits, b, Threads::All);
    let d_inner = MatRef::new(d_inner, count, rank);
    let d_rows = &mut scratch.d_rows;
    match dropout.filter(|_| wanted.hidden) {
        Some(dropout) => {
            let d_dropped = &mut scratch.d_dropped[..count * width];
            gemm(MatMut::new(d_dropped, count, width), Accumulate::Overwrite, 1.0, d_inner, a, Threads::All);
            mask(dropout, d_dropped, chunk, width);
            d_rows.iter_mut().zip(d_dropped).for_each(|(sum, part)| *sum += *part);
        }
        None if wanted.hidden => {
            let d_rows = MatMut::new(&mut d_rows[..count * width], count, width);
            gemm(d_rows, Accumulate::Add, 1.0, d_inner, a, Threads::All);
        }
        None => {}
    }
    if wanted.lora {
        let into_a = if dropout.is_some() { &scratch.dropped } else { &scratch.rows };
        let into_a = MatRef::new(&into_a[..count * width], count, width);
        let d_a = MatMut::new(&mut out.d_a, rank, width);
        gemm(d_a, Accumulate::Add, 1.0, d_inner.t(), into_a, Threads::All);
        let inner = MatRef::new(&scratch.inner[..count * rank], count, rank);
        let d_b = MatMut::new(&mut out.d_b, vocabulary, rank);
        gemm(d_b, Accumulate::Add, scale, d_logits.t(), inner, Threads::All);
    }
}
