//! Turns that a template marks itself, with `{% generation %}`.

use std::ops::Range;

use super::{engine::Marks, spans::TurnSpan};
use crate::dataset::example::{Message, Role};

/// A marked part of a text, and the index of its turn where it is known.
pub(super) type Part = (Option<usize>, Range<usize>);

/// A text without its marks, and the marked parts; `None` if the marks are not whole.
pub(super) fn read(marked: &str, marks: Marks) -> Option<(String, Vec<Part>)> {
    let mut text = String::with_capacity(marked.len());
    let mut parts = Vec::new();
    // Marks inside of marks belong to the outer ones.
    let mut open: Vec<(Option<usize>, usize)> = Vec::new();
    let mut rest = marked;
    while let Some(at) = rest.find([marks.open, marks.close]) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix(marks.open) {
            let (turn, after) = after.split_once(marks.open)?;
            open.push((if turn.is_empty() { None } else { Some(turn.parse().ok()?) }, text.len()));
            rest = after;
        } else {
            let (turn, start) = open.pop()?;
            if open.is_empty() {
                parts.push((turn, start..text.len()));
            }
            rest = rest.strip_prefix(marks.close)?;
        }
    }
    text.push_str(rest);
    open.is_empty().then_some((text, parts))
}

/// The turns of marked parts. Parts that touch are one; a part of which it is not known whose it is belongs to the part it
/// touches, or all parts are the assistant's turns in their order.
pub(super) fn turns(parts: Vec<Part>, messages: &[Message]) -> Option<Vec<TurnSpan>> {
    let mut joined: Vec<Part> = Vec::new();
    for (turn, bytes) in parts.into_iter().filter(|(_, bytes)| !bytes.is_empty()) {
        match joined.last_mut() {
            Some((last, before)) if before.end == bytes.start && (turn.is_none() || turn == *last) => {
                before.end = bytes.end;
            }
            _ => joined.push((turn, bytes)),
        }
    }
    if joined.iter().all(|(turn, _)| turn.is_some()) {
        let span = |(turn, bytes): (Option<usize>, _)| turn.map(|message| TurnSpan { message, bytes });
        return joined.into_iter().map(span).collect();
    }
    let assistant = (0..messages.len()).filter(|index| messages[*index].role == Role::Assistant);
    let assistant: Vec<usize> = assistant.collect();
    (assistant.len() == joined.len())
        .then(|| assistant.into_iter().zip(joined).map(|(message, (_, bytes))| TurnSpan { message, bytes }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKS: Marks = Marks { open: '⟨', close: '⟩' };

    #[test]
    fn marks_are_taken_out_and_become_spans() {
        let (text, parts) = read("a⟨1⟨bé⟩c⟨⟨d⟨2⟨e⟩f⟩", MARKS).unwrap();
        assert_eq!(text, "abécdef");
        assert_eq!(parts, [(Some(1), 1..4), (None, 5..8)]);
        for damaged in ["⟨", "⟩", "⟨1⟨a", "⟨x⟨a⟩", "⟨1⟨a⟩⟩"] {
            assert_eq!(read(damaged, MARKS), None, "{damaged}");
        }
    }

    #[test]
    fn parts_go_to_their_turns() {
        let messages = [Role::User, Role::Assistant, Role::User, Role::Assistant].map(|role| Message::new(role, "x"));
        let of = |parts: &[Part]| {
            let turns = turns(parts.to_vec(), &messages)?;
            Some(turns.into_iter().map(|turn| (turn.message, turn.bytes)).collect::<Vec<_>>())
        };
        assert_eq!(of(&[(Some(1), 1..2), (Some(3), 4..6), (None, 6..9)]).unwrap(), [(1, 1..2), (3, 4..9)]);
        assert_eq!(of(&[(Some(1), 1..2), (Some(1), 3..4), (Some(3), 4..4)]).unwrap(), [(1, 1..2), (1, 3..4)]);
        assert_eq!(of(&[(None, 1..2), (None, 3..4)]).unwrap(), [(1, 1..2), (3, 3..4)]);
        assert_eq!(of(&[(None, 1..2)]), None);
    }
}
