//! Chunked gated delta rule in `f32`: per chunk of [`CHUNK`] tokens everything is a small matrix product, only the
//! state is carried from chunk to chunk. Tasks are (document, key head); each owns its value heads.
//!
//! With `G` the running sum of `g` inside the chunk, `E = exp(G)`, `D_ij = exp(G_i − G_j)` and the state `S` at the
//! chunk's start:
//! ```text
//! L = strictly_lower(beta ⊙ K Kᵀ ⊙ D)        X = V − E ⊙ (K S)
//! N = (I + L)⁻¹ (beta ⊙ X)                   P = tril(Q Kᵀ ⊙ D)
//! O = E ⊙ (Q S) + P N                        S ← exp(G_C) S + (exp(G_C − G) ⊙ K)ᵀ N
//! ```

mod backward;
mod chunk;
mod forward;
mod head;

pub(crate) use backward::backward;
pub(crate) use forward::{continued, forward};

use crate::Documents;

/// Tokens per chunk. 64 keeps the triangular solve small beside the products and all of a chunk in the L2 cache.
pub(crate) const CHUNK: usize = 64;

/// What the backward pass needs of the forward pass.
pub(crate) struct Saved {
    /// State at the start of every chunk, `[chunk, value head, key_dim, value_dim]`.
    states: Vec<f32>,
    /// The values written to the state (`N` above), `[token, value head, value_dim]`.
    written: Vec<f32>,
}

/// One task: a key head (with its value heads) over one document.
#[derive(Clone, Copy)]
struct Task {
    start: usize,
    end: usize,
    first_chunk: usize,
    key_head: usize,
}

/// The tokens `from..to`, which are chunk `index` of all documents' chunks.
#[derive(Clone, Copy)]
struct Chunk {
    index: usize,
    from: usize,
    to: usize,
}

/// All tasks, and the number of chunks.
fn tasks(documents: &Documents, key_heads: usize) -> (Vec<Task>, usize) {
    let mut list = Vec::new();
    let mut first_chunk = 0;
    for document in documents.iter() {
        for key_head in 0..key_heads {
            list.push(Task { start: document.start, end: document.end, first_chunk, key_head });
        }
        first_chunk += document.len().div_ceil(CHUNK);
    }
    (list, first_chunk)
}

impl Task {
    fn chunks(self) -> impl DoubleEndedIterator<Item = Chunk> {
        let count = (self.end - self.start).div_ceil(CHUNK);
        (0..count).map(move |number| {
            let from = self.start + number * CHUNK;
            Chunk { index: self.first_chunk + number, from, to: self.end.min(from + CHUNK) }
        })
    }
}

impl Chunk {
    fn rows(self) -> usize {
        self.to - self.from
    }
}
