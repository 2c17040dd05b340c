//! New queries against keys and values that were kept from earlier tokens.

use super::cpu;
use super::reference::Heads;
use crate::{Error, Result};

const NAME: &str = "attention over a cache";

/// The module's formula for the last tokens of one document: `q [new, query · width]` belongs to the last `new` rows of
/// `keys` and `values`, `[tokens, key_value · width]`. Returns `[new, query · width]`. Without rows before the new ones
/// it gives the bits of [`attention`](super::attention).
pub fn attend(heads: Heads, q: &[f32], keys: &[f32], values: &[f32]) -> Result<Vec<f32>> {
    if heads.key_value == 0 || heads.query == 0 || heads.width == 0 || !heads.query.is_multiple_of(heads.key_value) {
        return Err(Error::shape(NAME, "heads", "query heads that are a multiple of the key heads", heads));
    }
    let (wide, narrow) = (heads.query * heads.width, heads.key_value * heads.width);
    for (what, found, width) in [("q", q.len(), wide), ("keys", keys.len(), narrow)] {
        if found == 0 || !found.is_multiple_of(width) {
            return Err(Error::shape(NAME, what, ("rows", width), found));
        }
    }
    if values.len() != keys.len() {
        return Err(Error::shape(NAME, "values", keys.len(), values.len()));
    }
    let (new, tokens) = (q.len() / wide, keys.len() / narrow);
    if new > tokens {
        return Err(Error::shape(NAME, "rows of q, at most", tokens, new));
    }
    Ok(cpu::last_rows(&heads, q, keys, values, new, tokens))
}
