//! Conversations as ChatML text, and which of its bytes the loss covers.
//!
//! Every turn is `<|im_start|>{role}\n{content}<|im_end|>\n`. The loss covers an assistant's content, `<|im_end|>` and the
//! newline after it; the header is masked. The text is tokenised as one string, and a token belongs to the assistant if
//! any of its bytes does: so a token that joins the header's newline with the content's first one is learnt, as in TRL.

use std::ops::Range;

use tokenizers::Tokenizer;

use super::format::{Role, Turn};
use crate::{Error, Result, batch::IGNORED};

/// ChatML text with the assistant's parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The whole conversation.
    pub text: String,
    /// Byte ranges of `text` that the loss covers, ascending.
    pub assistant: Vec<Range<usize>>,
}

/// Renders turns one after the other; nothing is added before or after them.
pub fn render<'a>(turns: impl IntoIterator<Item = &'a Turn>) -> Rendered {
    let mut text = String::new();
    let mut assistant = Vec::new();
    for turn in turns {
        text.extend(["<|im_start|>", turn.role.name(), "\n"]);
        let start = text.len();
        text.extend([turn.content.as_str(), "<|im_end|>\n"]);
        if turn.role == Role::Assistant {
            assistant.push(start..text.len());
        }
    }
    Rendered { text, assistant }
}

/// Token ids and labels (not shifted; [`IGNORED`] where nothing is to be learnt).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// One id per token.
    pub tokens: Vec<u32>,
    /// One label per token.
    pub labels: Vec<i64>,
}

/// Tokenises a rendered conversation; with `train_on_prompt` every token is its own label.
pub fn label(tokenizer: &Tokenizer, rendered: &Rendered, train_on_prompt: bool) -> Result<Labelled> {
    let encoding = tokenizer
        .encode(rendered.text.as_str(), false)
        .map_err(|error| Error::Invalid(format!("the tokenizer refuses a conversation: {error}")))?;
    let tokens = encoding.get_ids().to_vec();
    let learnt = assistant_tokens(encoding.get_offsets(), &rendered.assistant);
    let label = |(&token, learnt)| if learnt || train_on_prompt { i64::from(token) } else { IGNORED };
    let labels = tokens.iter().zip(learnt).map(label).collect();
    Ok(Labelled { tokens, labels })
}

/// Whether each token, given by its bytes, touches one of the ranges; both ascend.
fn assistant_tokens(offsets: &[(usize, usize)], ranges: &[Range<usize>]) -> Vec<bool> {
    let mut ranges = ranges.iter().peekable();
    let touches = |&(start, end): &(usize, usize)| {
        while ranges.next_if(|range| range.end <= start).is_some() {}
        ranges.peek().is_some_and(|range| range.start < end)
    };
    offsets.iter().map(touches).collect()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::demo;

    #[derive(Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        name: String,
        turns: Vec<GoldenTurn>,
        text: String,
        tokens: Vec<u32>,
        labels: Vec<i64>,
    }

    #[derive(Deserialize)]
    struct GoldenTurn {
        role: String,
        content: String,
    }

    fn turn(role: &str, content: &str) -> Turn {
        let role = [Role::System, Role::User, Role::Assistant].into_iter().find(|r| r.name() == role).unwrap();
        Turn { role, content: content.into() }
    }

    /// `chatml_golden.json` was made by TRL with the demo's tokenizer.
    #[test]
    fn text_ids_and_labels_are_those_of_trl() {
        let golden: Golden = serde_json::from_str(include_str!("chatml_golden.json")).unwrap();
        let tokenizer = demo::tokenizer().unwrap();
        for case in golden.cases {
            let turns: Vec<Turn> = case.turns.iter().map(|t| turn(&t.role, &t.content)).collect();
            let rendered = render(&turns);
            assert_eq!(rendered.text, case.text, "{}", case.name);
            let labelled = label(&tokenizer, &rendered, false).unwrap();
            assert_eq!(labelled.tokens, case.tokens, "{}", case.name);
            assert_eq!(labelled.labels, case.labels, "{}", case.name);
        }
    }

    #[test]
    fn a_token_over_the_edge_of_an_answer_belongs_to_it() {
        // The first answer begins inside the second token and ends with the third.
        let offsets = [(0, 3), (3, 6), (6, 9), (9, 12), (12, 15)];
        assert_eq!(assistant_tokens(&offsets, &[5..9, 12..15]), [false, true, true, false, true]);
        assert_eq!(assistant_tokens(&[(0, 2), (2, 4)], &[0..2, 2..3]), [true, true]);
    }

    #[test]
    fn with_train_on_prompt_every_token_is_its_own_label() {
        let labelled =
            label(&demo::tokenizer().unwrap(), &render(&[turn("user", "Q"), turn("assistant", "A")]), true).unwrap();
        assert!(labelled.tokens.iter().zip(&labelled.labels).all(|(token, label)| i64::from(*token) == *label));
    }
}
