//! Conversations as token sequences of a limited length.

use std::ops::Range;

use tokenizers::Tokenizer;

use super::{
    chatml,
    format::{Conversation, Role, Turn, describe},
};
use crate::{Error, Result, batch::Sequence};

/// What a sequence may be.
#[derive(Debug, Clone, Copy)]
pub struct SequenceOptions {
    /// Most tokens of a sequence.
    pub max_length: usize,
    /// The loss covers the whole text instead of the assistant's turns.
    pub train_on_prompt: bool,
}

/// The sequences of a set of conversations, and what had to be done to them.
#[derive(Debug, Clone)]
pub struct Sequences {
    /// One per conversation, in their order.
    pub list: Vec<Sequence>,
    /// How many conversations lost turns to the length limit.
    pub truncated: usize,
}

impl Sequences {
    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.list.iter().map(|sequence| sequence.valid).sum()
    }
}

/// Tokenises conversations. One that is too long loses its oldest turns, whole ones, and its last assistant turn never;
/// where that turn alone is too long, the error names every such line.
pub fn build(tokenizer: &Tokenizer, conversations: &[Conversation], options: SequenceOptions) -> Result<Sequences> {
    let mut sequences = Sequences { list: Vec::with_capacity(conversations.len()), truncated: 0 };
    let mut findings = Vec::new();
    for conversation in conversations {
        match fit(tokenizer, &conversation.turns, options)? {
            Fit::Whole(sequence) => sequences.list.push(sequence),
            Fit::Cut(sequence) => {
                sequences.list.push(sequence);
                sequences.truncated += 1;
            }
            Fit::TargetTooLong(tokens) => findings.push(format!(
                "line {}: the last assistant turn of conversation {:?} has {tokens} tokens and max_seq_length is {}",
                conversation.line, conversation.id, options.max_length
            )),
        }
    }
    if findings.is_empty() { Ok(sequences) } else { Err(Error::Invalid(describe(&findings))) }
}

enum Fit {
    Whole(Sequence),
    Cut(Sequence),
    TargetTooLong(usize),
}

/// The longest form of a conversation that fits: all of it; or without its oldest exchanges, the system turn kept; or the
/// last assistant turn with the system turn; or that turn alone.
fn fit(tokenizer: &Tokenizer, turns: &[Turn], options: SequenceOptions) -> Result<Fit> {
    let sequence = |turns: &[&Turn]| -> Result<Sequence> {
        let labelled = chatml::label(tokenizer, &chatml::render(turns.iter().copied()), options.train_on_prompt)?;
        Ok(Sequence { valid: labelled.tokens.len(), tokens: labelled.tokens, labels: labelled.labels })
    };
    let whole = sequence(&turns.iter().collect::<Vec<_>>())?;
    if whole.valid <= options.max_length {
        return Ok(Fit::Whole(whole));
    }
    // ChatML's markers keep the tokens of turns apart, so the lengths of turns add up.
    let lengths = turns.iter().map(|turn| Ok(sequence(&[turn])?.valid)).collect::<Result<Vec<_>>>()?;
    for (system, exchange) in shortened(turns) {
        let length = lengths[system.clone()].iter().chain(&lengths[exchange.clone()]).sum::<usize>();
        if length <= options.max_length {
            return Ok(Fit::Cut(sequence(&turns[system].iter().chain(&turns[exchange]).collect::<Vec<_>>())?));
        }
    }
    Ok(Fit::TargetTooLong(lengths[last_assistant(turns)]))
}

/// System turns and later turns of every shorter form, longest first.
fn shortened(turns: &[Turn]) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let system = turns.iter().take_while(|turn| turn.role == Role::System).count();
    let target = last_assistant(turns);
    let begins_exchange = move |&start: &usize| turns[start].role == Role::User && turns[start - 1].role != Role::User;
    let starts = (system + 1..target).filter(begins_exchange).chain([target]);
    starts.map(move |start| (0..system, start..target + 1)).chain([(0..0, target..target + 1)])
}

fn last_assistant(turns: &[Turn]) -> usize {
    turns.iter().rposition(|turn| turn.role == Role::Assistant).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{batch::IGNORED, demo};

    fn turn(role: Role, content: &str) -> Turn {
        Turn { role, content: content.into() }
    }

    fn conversation() -> Conversation {
        let turns = vec![
            turn(Role::System, "Be kind."),
            turn(Role::User, "First question about a chain?"),
            turn(Role::Assistant, "First answer."),
            turn(Role::User, "Second question?"),
            turn(Role::Assistant, "Second answer."),
            turn(Role::User, "Thanks"),
        ];
        Conversation { id: "c".into(), line: 4, turns }
    }

    fn length(turns: &[Turn]) -> usize {
        let rendered = chatml::render(turns);
        chatml::label(&demo::tokenizer().unwrap(), &rendered, false).unwrap().tokens.len()
    }

    fn text(max_length: usize) -> (String, usize) {
        let tokenizer = demo::tokenizer().unwrap();
        let options = SequenceOptions { max_length, train_on_prompt: false };
        let sequences = build(&tokenizer, &[conversation()], options).unwrap();
        let sequence = &sequences.list[0];
        assert!(sequence.valid <= max_length && sequence.valid == sequence.tokens.len());
        assert!(sequence.labels.iter().any(|label| *label != IGNORED));
        (tokenizer.decode(&sequence.tokens, false).unwrap(), sequences.truncated)
    }

    #[test]
    fn a_conversation_that_fits_stays_whole() {
        let turns = conversation().turns;
        assert_eq!(text(length(&turns)), (chatml::render(&turns).text, 0));
    }

    #[test]
    fn history_is_cut_from_the_left_at_turns_and_the_target_never() {
        let turns = conversation().turns;
        let cut = |kept: &[usize]| (chatml::render(kept.iter().map(|&i| &turns[i])).text, 1);
        assert_eq!(text(length(&turns) - 1), cut(&[0, 3, 4]));
        let exchange = length(&turns[..1]) + length(&turns[3..5]);
        assert_eq!(text(exchange), cut(&[0, 3, 4]));
        assert_eq!(text(exchange - 1), cut(&[0, 4]));
        assert_eq!(text(length(&turns[4..5])), cut(&[4]));
    }

    #[test]
    fn targets_that_are_too_long_are_all_named() {
        let tokenizer = demo::tokenizer().unwrap();
        let limit = length(&conversation().turns[4..5]) - 1;
        let options = SequenceOptions { max_length: limit, train_on_prompt: false };
        let other = Conversation { id: "d".into(), line: 9, ..conversation() };
        let error = build(&tokenizer, &[conversation(), other], options).unwrap_err().to_string();
        let expected = format!(
            "line 4: the last assistant turn of conversation \"c\" has {} tokens and max_seq_length is {limit}",
            limit + 1
        );
        assert!(error.contains(&expected) && error.contains("line 9: "), "{error}");
    }

    #[test]
    fn a_conversation_that_begins_with_its_only_answer_is_no_trouble() {
        let turns =
            vec![turn(Role::Assistant, "Welcome to the workshop, what can I do for you?"), turn(Role::User, "x")];
        let sequences = build(
            &demo::tokenizer().unwrap(),
            &[Conversation { id: "c".into(), line: 1, turns: turns.clone() }],
            SequenceOptions { max_length: length(&turns[..1]), train_on_prompt: false },
        );
        assert_eq!(sequences.unwrap().truncated, 1);
    }
}
