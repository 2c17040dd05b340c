//! Finding the assistant's turns in the text of any template.
//!
//! A turn begins where the text of everything before it ends, with a prompt for generation; it ends where the text of
//! everything up to and including it ends. Both hold only if those texts are beginnings of the whole text, which is
//! checked. Where they are not, sentinels around the content show where it stands (see `sentinels`). What neither finds is
//! an error.
//!
//! For templates that render turn by turn, the boundaries between turns are read off the text itself, so that a long
//! conversation costs two renderings and not two for every turn.

use minijinja::Value;
use serde_json::Value as Json;

use super::{
    engine::{Engine, Input, Marks},
    error::TemplateError,
    marks,
    sentinels::{self, Place},
    shape::Shape,
    spans::{Rendered, TurnSpan},
    values,
};
use crate::dataset::example::{Message, Role};

/// A template in the form in which it is trained on.
#[derive(Debug)]
pub(super) struct Form {
    /// The compiled template.
    pub(super) engine: Engine,
    /// What is known of it.
    pub(super) shape: Shape,
    /// It marks the assistant's turns itself.
    pub(super) marks_turns: bool,
    /// Tokens that are never cut in two.
    pub(super) added_tokens: Vec<String>,
    /// Where it comes from.
    pub(super) name: String,
}

impl Form {
    /// The text of a conversation.
    pub(super) fn text(&self, messages: &[Message], tools: &Json, prompt: bool) -> Result<String, TemplateError> {
        Conversation::new(self, messages, tools).render(messages.len(), prompt)
    }

    /// The text and the assistant's turns.
    pub(super) fn rendered(&self, messages: &[Message], tools: &Json) -> Result<Rendered, TemplateError> {
        let mut conversation = Conversation::new(self, messages, tools);
        conversation.text = conversation.render(messages.len(), false)?;
        let turns = if self.marks_turns { conversation.marked()? } else { conversation.found()? };
        let ascend = turns.windows(2).all(|pair| pair[0].bytes.end <= pair[1].bytes.start);
        match ascend {
            true => Ok(Rendered { text: conversation.text, turns }),
            false => Err(self.no_spans("the assistant's turns overlap")),
        }
    }

    fn no_spans(&self, reason: &str) -> TemplateError {
        TemplateError::NoSpans(format!(
            "{}: {reason}; set train_on_prompt to true to learn whole conversations, or use a template that marks the \
             assistant's turns with {{% generation %}}",
            self.name
        ))
    }
}

struct Conversation<'a> {
    form: &'a Form,
    messages: &'a [Message],
    values: Vec<Value>,
    tools: &'a Json,
    tools_value: Value,
    /// The whole text.
    text: String,
}

/// What sentinels say of a turn.
enum Seen {
    At(TurnSpan),
    /// The template leaves the turn out.
    Hidden,
}

impl<'a> Conversation<'a> {
    fn new(form: &'a Form, messages: &'a [Message], tools: &'a Json) -> Self {
        let values = messages.iter().enumerate().map(|(index, message)| values::of_message(message, index)).collect();
        Self { form, messages, values, tools, tools_value: values::of_json(tools), text: String::new() }
    }

    /// The text of the first `count` messages.
    fn render(&self, count: usize, add_generation_prompt: bool) -> Result<String, TemplateError> {
        self.render_values(&self.values[..count], add_generation_prompt, None)
    }

    fn render_values(&self, messages: &[Value], prompt: bool, marks: Option<Marks>) -> Result<String, TemplateError> {
        let input = Input { messages, tools: &self.tools_value, add_generation_prompt: prompt, marks };
        self.form.engine.render(&input, self.form.shape.works)
    }

    /// The text of the first `count` messages, if there is one: templates may refuse to stop there.
    fn beginning(&self, count: usize, prompt: bool) -> Option<String> {
        if count == 0 { None } else { self.render(count, prompt).ok() }
    }

    /// Where the text of the first `count` messages ends in the whole text, if the one begins the other.
    fn boundary(&self, count: usize) -> Option<usize> {
        if count == self.messages.len() {
            return Some(self.text.len());
        }
        let beginning = self.beginning(count, false)?;
        self.text.starts_with(&beginning).then_some(beginning.len())
    }

    fn is_answer(&self, index: usize) -> bool {
        self.messages.get(index).is_some_and(|message| message.role == Role::Assistant)
    }

    fn marked(&self) -> Result<Vec<TurnSpan>, TemplateError> {
        let unused = sentinels::unused(|character| values::contains(self.messages, self.tools, character));
        let (open, close) =
            unused.ok_or_else(|| self.form.no_spans("the conversation uses every reserved character"))?;
        let marks = Marks { open, close };
        let marked = self.render_values(&self.values, false, Some(marks))?;
        marks::read(&marked, marks)
            .filter(|(text, _)| *text == self.text)
            .and_then(|(_, parts)| marks::turns(parts, self.messages))
            .ok_or_else(|| self.form.no_spans("the template's own marks do not say which text is whose"))
    }

    fn found(&self) -> Result<Vec<TurnSpan>, TemplateError> {
        let walked = self.walk().unwrap_or_default();
        let mut turns = Vec::new();
        let mut walked = walked.into_iter().peekable();
        for index in (0..self.messages.len()).filter(|index| self.is_answer(*index)) {
            if let Some(span) = walked.next_if(|span| span.message == index) {
                turns.push(span);
                continue;
            }
            match self.by_beginnings(index).map(Seen::At).or_else(|| self.by_sentinels(index)) {
                Some(Seen::At(span)) => turns.push(span),
                Some(Seen::Hidden) => {}
                None => {
                    let reason =
                        format!("it cannot be seen which part of the text is turn {} of a conversation", index + 1);
                    return Err(self.form.no_spans(&reason));
                }
            }
        }
        Ok(turns)
    }

    /// Goes through the text turn by turn. `None` if the text is not made like that; a turn that could not be followed has
    /// no span.
    fn walk(&self) -> Option<Vec<TurnSpan>> {
        let shape = &self.form.shape;
        let turns = shape.turn_by_turn.as_ref()?;
        let first = (0..self.messages.len()).find(|index| self.is_answer(*index))?;
        let mut at = self.boundary(first.max(1)).filter(|_| first > 0);
        let mut spans = Vec::new();
        for index in first..self.messages.len() {
            let followed = at.and_then(|at| Some(at + turns.length(&self.messages[index], &self.text[at..])?));
            // A beginning is rendered only where a boundary is needed.
            let needed = self.is_answer(index) || self.is_answer(index + 1) || index + 1 == self.messages.len();
            let next = followed.or_else(|| self.boundary(index + 1).filter(|_| needed));
            if let (Some(at), Some(next), true) = (at, next, self.is_answer(index)) {
                let start = at + shape.header().len();
                if self.text[at..].starts_with(shape.header()) && start <= next {
                    spans.push(TurnSpan { message: index, bytes: start..next });
                }
            }
            at = next;
        }
        (at? == self.text.len()).then_some(spans)
    }

    /// The turn between the text before it and the text up to it.
    fn by_beginnings(&self, index: usize) -> Option<TurnSpan> {
        let start = self.start_by_prompt(index)?;
        let end = self.boundary(index + 1)?;
        (start <= end).then_some(TurnSpan { message: index, bytes: start..end })
    }

    fn start_by_prompt(&self, index: usize) -> Option<usize> {
        let prompted = self.beginning(index, true)?;
        let header = self.form.shape.without_reasoning(&prompted);
        self.text.starts_with(header).then_some(header.len())
    }

    fn by_sentinels(&self, index: usize) -> Option<Seen> {
        let pair = sentinels::unused(|character| values::contains(self.messages, self.tools, character))?;
        let (values, place) = self.place(index, pair)?;
        if place == (Place { start: None, end: None }) {
            return self.is_hidden(index).then_some(Seen::Hidden);
        }
        // The same turn as the last one: what stands before and after its content then.
        let last = self.beginning(index + 1, false).and_then(|text| {
            let marked = self.render_values(&values[..=index], false, None).ok()?;
            let place = sentinels::place(&text, &marked, pair)?;
            Some((text, place))
        });
        let start = self
            .start_by_prompt(index)
            .or_else(|| self.start_by_sentinel(index, place.start?, last.as_ref()))
            .or_else(|| self.start_by_header(index, place.start?, pair))?;
        let end = self.boundary(index + 1).filter(|end| place.end.is_none_or(|content| content <= *end));
        let end = end.or_else(|| self.end_by_sentinel(index, place.end?, last.as_ref()))?;
        (start <= end).then_some(Seen::At(TurnSpan { message: index, bytes: start..end }))
    }

    /// Where the content of a turn stands, and the messages with sentinels in it. A content that is absent counts as empty.
    fn place(&self, index: usize, pair: (char, char)) -> Option<(Vec<Value>, Place)> {
        let message = &self.messages[index];
        let content = sentinels::surround(message.content.as_deref().unwrap_or_default(), pair);
        let mut values = self.values.clone();
        values[index] = values::message_with(message, Some(&content), index);
        let marked = self.render_values(&values, false, None).ok()?;
        let place = sentinels::place(&self.text, &marked, pair)?;
        Some((values, place))
    }

    /// Whether a turn whose content does not show leaves nothing else in the text either.
    fn is_hidden(&self, index: usize) -> bool {
        let mut others = self.values.clone();
        others.remove(index);
        self.messages[index].fields.is_empty()
            || self.render_values(&others, false, None).is_ok_and(|text| text == self.text)
    }

    /// A turn's start is where its header ends: before the content, and before what the template puts between the two when
    /// the turn is the last one.
    fn start_by_sentinel(&self, index: usize, content: usize, last: Option<&(String, Place)>) -> Option<usize> {
        let (text, place) = last?;
        let prompted = self.beginning(index, true)?;
        let answer = text.strip_prefix(self.form.shape.without_reasoning(&prompted))?;
        let lead = answer.get(..place.start?.checked_sub(text.len() - answer.len())?)?;
        let head = self.text[..content].strip_suffix(lead)?;
        head.ends_with(self.form.shape.header()).then_some(head.len())
    }

    /// The same for a turn before which the template does not stop: its header is the last one before the content and stands
    /// after the content of the turn before.
    fn start_by_header(&self, index: usize, content: usize, pair: (char, char)) -> Option<usize> {
        let header = self.form.shape.header();
        let before = &self.text[..content];
        if header.is_empty() {
            let text = self.messages[index].content.as_deref().unwrap_or_default();
            let own = &text[..sentinels::core(text).start];
            return Some(before.strip_suffix(own).unwrap_or(before).len());
        }
        let head = before.rfind(header)? + header.len();
        let alone = || match index.checked_sub(1) {
            Some(previous) => {
                self.place(previous, pair).and_then(|(_, place)| place.end).is_some_and(|end| end <= head)
            }
            None => true,
        };
        (before[head..].trim().is_empty() || alone()).then_some(head)
    }

    /// A turn's end is as far after its content as the text agrees with that of the turn as the last one; where the template
    /// does not stop there, what follows all answers must follow this one.
    fn end_by_sentinel(&self, index: usize, content: usize, last: Option<&(String, Place)>) -> Option<usize> {
        let here = &self.text[content..];
        if let Some((text, place)) = last {
            let there = &text[place.end?..];
            return Some(content + sentinels::agreement(here, there, &self.form.added_tokens));
        }
        let after = self.form.shape.turn_by_turn.as_ref()?.end_of_answer()?;
        let text = self.messages[index].content.as_deref().unwrap_or_default();
        let space = &text[text.trim_end().len()..];
        [space, ""].iter().find_map(|space| {
            let rest = here.strip_prefix(space)?.strip_prefix(after)?;
            Some(self.text.len() - rest.len())
        })
    }
}
