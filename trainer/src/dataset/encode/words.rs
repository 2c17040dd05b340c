//! Tokens of pieces that were met before.

use std::collections::HashMap;

/// Pieces that are kept; natural text is nearly all made of fewer.
const MAX_PIECES: usize = 1 << 16;
/// Longer pieces rarely come again.
const MAX_PIECE_BYTES: usize = 64;

/// A bounded map from pieces of text to their token ids, one per thread: no lock is ever waited for.
#[derive(Debug, Default)]
pub struct WordCache {
    /// First id and number of ids of a piece.
    places: HashMap<Box<str>, (u32, u32), ahash::RandomState>,
    /// The ids of all pieces, one after the other.
    ids: Vec<u32>,
}

// === impl WordCache ===

impl WordCache {
    /// The ids of a piece, if it is known.
    pub fn get(&self, piece: &str) -> Option<&[u32]> {
        let &(first, count) = self.places.get(piece)?;
        Some(&self.ids[first as usize..(first + count) as usize])
    }

    /// Remembers a piece; a full cache is emptied first, so that it follows a file whose subject changes.
    pub fn insert(&mut self, piece: &str, ids: &[u32]) {
        if piece.len() > MAX_PIECE_BYTES {
            return;
        }
        if self.places.len() >= MAX_PIECES {
            self.places.clear();
            self.ids.clear();
        }
        // At most MAX_PIECES * MAX_PIECE_BYTES ids, which u32 counts.
        self.places.insert(piece.into(), (self.ids.len() as u32, ids.len() as u32));
        self.ids.extend_from_slice(ids);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_comes_out_and_the_size_is_bounded() {
        let mut cache = WordCache::default();
        for number in 0..3 * MAX_PIECES {
            cache.insert(&number.to_string(), &[number as u32, 7]);
            assert_eq!(cache.get(&number.to_string()), Some(&[number as u32, 7][..]));
        }
        assert!(cache.places.len() <= MAX_PIECES && cache.ids.len() <= 2 * MAX_PIECES);
        cache.insert(&"x".repeat(MAX_PIECE_BYTES + 1), &[1]);
        assert_eq!(cache.get(&"x".repeat(MAX_PIECE_BYTES + 1)), None);
        assert_eq!(cache.get("absent"), None);
    }
}
