//! Spans of the assistant's turns in a text, and the tokens they touch.

use std::ops::Range;

/// Where an assistant's turn stands in a rendered text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnSpan {
    /// Index of the message.
    pub message: usize,
    /// Bytes of the text: what the assistant generates, that is the content and the end of the turn, without the header.
    pub bytes: Range<usize>,
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// The assistant's turns in the order of the text, not overlapping. A turn that the template leaves out has none; a
    /// turn that a template with `{% generation %}` marks in pieces has several.
    pub turns: Vec<TurnSpan>,
}

/// Whether each token, given by its bytes, touches one of the spans; both ascend. A token that joins a header's line end
/// with the content's first characters is learnt, as in TRL.
pub fn learnt_tokens<'a>(offsets: &[(usize, usize)], spans: impl IntoIterator<Item = &'a Range<usize>>) -> Vec<bool> {
    let mut spans = spans.into_iter().filter(|span| !span.is_empty()).peekable();
    let touches = |&(start, end): &(usize, usize)| {
        while spans.next_if(|span| span.end <= start).is_some() {}
        spans.peek().is_some_and(|span| span.start < end)
    };
    offsets.iter().map(touches).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo;

    #[test]
    fn a_token_over_the_edge_of_a_span_belongs_to_it() {
        let offsets = [(0, 3), (3, 6), (6, 9), (9, 12), (12, 15)];
        assert_eq!(learnt_tokens(&offsets, &[5..9, 12..15]), [false, true, true, false, true]);
        assert_eq!(learnt_tokens(&[(0, 2), (2, 4)], &[0..2, 2..2, 2..3]), [true, true]);
        assert_eq!(learnt_tokens(&offsets, &[]), [false; 5]);
    }

    /// The normaliser shortens the text; offsets must be those of the text as it was.
    #[test]
    fn offsets_are_bytes_of_the_text_before_it_is_normalised() {
        let text = "e\u{301}e\u{301}e\u{301} x<|im_end|>y";
        let encoding = demo::tokenizer().unwrap().encode(text, false).unwrap();
        let end = text.find("<|im_end|>").unwrap();
        let learnt = learnt_tokens(encoding.get_offsets(), std::slice::from_ref(&(end..end + 10)));
        let tokens: Vec<&str> = encoding.get_tokens().iter().map(String::as_str).collect();
        let marked: Vec<&str> =
            tokens.iter().zip(&learnt).filter(|(_, learnt)| **learnt).map(|(token, _)| *token).collect();
        assert_eq!(marked, ["<|im_end|>"]);
    }
}
