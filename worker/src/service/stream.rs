//! What a job has shown since somebody last asked.

use std::{collections::VecDeque, sync::Arc};

use serde_json::{Value, json};

/// So many elements are kept, and so many bytes of them; the oldest go first.
const MOST_ELEMENTS: usize = 1000;
const MOST_BYTES: usize = 1 << 20;

/// What a job has shown since somebody last asked.
#[derive(Debug, Default)]
pub(super) struct Stream {
    elements: VecDeque<(Arc<Value>, usize)>,
    bytes: usize,
}

// === impl Stream ===

impl Stream {
    /// One more.
    pub(super) fn push(&mut self, element: Arc<Value>) {
        let bytes = element.to_string().len();
        self.elements.push_back((element, bytes));
        self.bytes += bytes;
        // The newest stays, however large it is.
        while self.elements.len() > 1 && (self.elements.len() > MOST_ELEMENTS || self.bytes > MOST_BYTES) {
            self.bytes -= self.elements.pop_front().map_or(0, |(_, bytes)| bytes);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// All of it, as the platform tells it; it is gone then.
    pub(super) fn drain(&mut self) -> Vec<Value> {
        self.bytes = 0;
        std::mem::take(&mut self.elements).into_iter().map(|(element, _)| json!({ "output": *element })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(values: impl Iterator<Item = Value>) -> Vec<Value> {
        let mut stream = Stream::default();
        values.for_each(|value| stream.push(Arc::new(value)));
        stream.drain()
    }

    #[test]
    fn it_is_told_once_and_in_order() {
        let mut stream = Stream::default();
        (1..=2).for_each(|step| stream.push(Arc::new(json!({ "step": step }))));
        assert_eq!(json!(stream.drain()), json!([{ "output": { "step": 1 } }, { "output": { "step": 2 } }]));
        assert!(stream.is_empty() && stream.drain().is_empty() && stream.bytes == 0);
    }

    #[test]
    fn the_oldest_go_where_nobody_asks() {
        let many = pushed((0..5000).map(|step| json!(step)));
        assert_eq!((many.len(), &many[999]), (MOST_ELEMENTS, &json!({ "output": 4999 })));
        let large = pushed((0..8).map(|_| json!("x".repeat(MOST_BYTES / 4))));
        assert_eq!(large.len(), 3);
        assert_eq!(pushed([json!("x".repeat(2 * MOST_BYTES))].into_iter()).len(), 1);
    }
}
