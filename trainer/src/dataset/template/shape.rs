//! What a template does with ordinary conversations, found by rendering some of them once.

use minijinja::Value;

use super::{
    engine::{Engine, Input},
    values,
};
use crate::dataset::example::{Message, Role};

/// What opens an answer's reasoning.
pub(super) const THINK: &str = "<think>";
const END_OF_THINKING: &str = "</think>";

/// What is known of a template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// It renders an ordinary conversation.
    pub(super) works: bool,
    /// What it adds for a generation prompt, where it adds the same after every turn.
    pub(super) prompt: String,
    /// How much of the prompt is the header of the answer: reasoning that the prompt opens belongs to the answer.
    pub(super) header: usize,
    /// What stands around the contents, where every turn is rendered by itself and appended.
    pub(super) turn_by_turn: Option<TurnByTurn>,
}

/// What stands around the contents of turns that come after the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TurnByTurn {
    user: Option<Around>,
    assistant: Option<Around>,
}

/// What stands before and after a content.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Around {
    before: String,
    after: String,
    trims: bool,
}

impl TurnByTurn {
    /// What follows the content of an answer.
    pub(super) fn end_of_answer(&self) -> Option<&str> {
        self.assistant.as_ref().map(|around| around.after.as_str())
    }

    /// The length of a turn, if it begins this text just as ordinary turns are rendered.
    pub(super) fn length(&self, message: &Message, text: &str) -> Option<usize> {
        let around = match message.role {
            Role::User => self.user.as_ref()?,
            Role::Assistant => self.assistant.as_ref()?,
            Role::System | Role::Tool => return None,
        };
        let content = message.content.as_deref().filter(|content| !content.trim().is_empty())?;
        if !message.fields.is_empty() {
            return None;
        }
        let content = if around.trims { content.trim() } else { content };
        let rest = text.strip_prefix(around.before.as_str())?.strip_prefix(content)?;
        Some(text.len() - rest.strip_prefix(around.after.as_str())?.len())
    }
}

impl Shape {
    /// Tries a template out; with a system prompt where it does not work without.
    pub(super) fn of(engine: &Engine) -> Self {
        let turns = [
            Message::new(Role::User, "first question"),
            Message::new(Role::Assistant, "an answer"),
            Message::new(Role::User, "second inquiry"),
            Message::new(Role::Assistant, "a reply"),
            Message::new(Role::User, "third request"),
            Message::new(Role::Assistant, "its response"),
        ];
        let system = Message::new(Role::System, "Be brief.");
        let with_system: Vec<Message> = std::iter::once(system).chain(turns.iter().cloned()).collect();
        Self::on(engine, &turns).or_else(|| Self::on(engine, &with_system)).unwrap_or_default()
    }

    fn on(engine: &Engine, messages: &[Message]) -> Option<Self> {
        let values: Vec<Value> = messages.iter().enumerate().map(|(index, m)| values::of_message(m, index)).collect();
        let render = |messages: &[Value], add_generation_prompt: bool| {
            let tools = Value::from(());
            engine.render(&Input { messages, tools: &tools, add_generation_prompt, marks: None }, true).ok()
        };
        render(&values, false)?;
        let first = messages.iter().position(|message| message.role == Role::User)?;
        // Texts of the beginnings that end before each answer and after it, with and without a prompt.
        let plain: Option<Vec<String>> = (first + 1..=values.len()).map(|n| render(&values[..n], false)).collect();
        let prompted: Option<Vec<String>> =
            (first + 1..=values.len()).step_by(2).map(|n| render(&values[..n], true)).collect();
        let (Some(plain), Some(prompted)) = (plain, prompted) else {
            return Some(Self { works: true, ..Self::default() });
        };
        let prompts: Option<Vec<&str>> = plain
            .iter()
            .step_by(2)
            .zip(&prompted)
            .map(|(plain, prompted)| prompted.strip_prefix(plain.as_str()))
            .collect();
        let prompt = match prompts.as_deref() {
            Some([prompt, others @ ..]) if others.iter().all(|other| other == prompt) => (*prompt).to_owned(),
            _ => return Some(Self { works: true, ..Self::default() }),
        };
        let header = header_length(&prompt);
        let appended: Option<Vec<&str>> = plain.windows(2).map(|pair| pair[1].strip_prefix(pair[0].as_str())).collect();
        let turn_by_turn = appended.and_then(|appended| {
            let (answers, questions): (Vec<_>, Vec<_>) =
                appended.iter().zip(&messages[first + 1..]).partition(|(_, message)| message.role == Role::Assistant);
            if !answers.iter().all(|(text, _)| text.starts_with(&prompt[..header])) {
                return None;
            }
            Some(TurnByTurn { user: around(&questions), assistant: around(&answers) })
        });
        let turn_by_turn = turn_by_turn.map(|found| found.with_trimming(&render, messages, first));
        Some(Self { works: true, prompt, header, turn_by_turn })
    }

    /// The part of a prompted text that is no part of the answer.
    pub(super) fn without_reasoning<'a>(&self, prompted: &'a str) -> &'a str {
        match prompted.strip_suffix(self.prompt.as_str()) {
            Some(before) => &prompted[..before.len() + self.header],
            None => prompted,
        }
    }

    /// The header of an answer.
    pub(super) fn header(&self) -> &str {
        &self.prompt[..self.header]
    }
}

impl TurnByTurn {
    /// Sees what becomes of white space around a content; where it is neither kept nor trimmed, nothing is predicted.
    fn with_trimming(
        mut self,
        render: &impl Fn(&[Value], bool) -> Option<String>,
        messages: &[Message],
        first: usize,
    ) -> Self {
        for (role, place) in [(Role::User, first + 2), (Role::Assistant, first + 1)] {
            let mut spaced: Vec<Message> = messages[..=place].to_vec();
            spaced[place].content = Some("  \nspaced\n out \n".into());
            let values: Vec<Value> = spaced.iter().enumerate().map(|(i, m)| values::of_message(m, i)).collect();
            let texts = (render(&values[..place], false), render(&values, false));
            let around = if role == Role::User { &mut self.user } else { &mut self.assistant };
            let Some(known) = around.take() else { continue };
            let (Some(before), Some(after)) = texts else { continue };
            let Some(added) = after.strip_prefix(before.as_str()) else { continue };
            let fits = |content: &str| added == [known.before.as_str(), content, known.after.as_str()].concat();
            let content = spaced[place].content.as_deref().unwrap_or_default();
            if fits(content) || fits(content.trim()) {
                *around = Some(Around { trims: !fits(content), ..known });
            }
        }
        self
    }
}

/// What stands around the contents of all these turns, if it is the same.
fn around(turns: &[(&&str, &Message)]) -> Option<Around> {
    let mut found = turns.iter().map(|(text, message)| {
        let (before, after) = text.split_once(message.content.as_deref()?)?;
        Some(Around { before: before.to_owned(), after: after.to_owned(), trims: false })
    });
    let first = found.next()??;
    found.all(|other| other.as_ref() == Some(&first)).then_some(first)
}

fn header_length(prompt: &str) -> usize {
    let before = prompt.trim_end();
    let before = before.strip_suffix(END_OF_THINKING).map_or(before, str::trim_end);
    before.strip_suffix(THINK).map_or(prompt.len(), str::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(source: &str) -> Shape {
        Shape::of(&Engine::new("test", source.into(), &[]).unwrap())
    }

    #[test]
    fn an_ordinary_template_is_seen_to_render_turn_by_turn() {
        let shape = shape(
            "{% for m in messages %}<{{ m.role }}>{{ m.content if m.role == 'user' else m.content | trim }}</>\n{% endfor %}\
             {% if add_generation_prompt %}<assistant>{% endif %}",
        );
        assert_eq!((shape.works, shape.prompt.as_str(), shape.header), (true, "<assistant>", 11));
        let turns = shape.turn_by_turn.unwrap();
        assert_eq!(turns.length(&Message::new(Role::User, " a "), "<user> a </>\n<user>"), Some(13));
        assert_eq!(turns.length(&Message::new(Role::User, " a "), "<user>a</>\n"), None);
        assert_eq!(turns.length(&Message::new(Role::Assistant, " a "), "<assistant>a</>\n"), Some(16));
        assert_eq!(turns.length(&Message::new(Role::Assistant, " "), "<assistant></>\n"), None);
        assert_eq!(turns.length(&Message::new(Role::Tool, "a"), "<tool>a</>\n"), None);
    }

    #[test]
    fn templates_that_look_ahead_need_a_system_prompt_or_fail_are_seen() {
        let last = "{% for m in messages %}{{ m.content }}{{ '!' if loop.last }}{% endfor %}";
        assert_eq!(shape(last).turn_by_turn, None);
        assert!(shape(last).works);
        let strict = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}\
                      {% for m in messages %}[{{ m.content }}]{% endfor %}{{ '[' if add_generation_prompt }}";
        assert_eq!(shape(strict).header(), "[");
        assert!(shape(strict).turn_by_turn.is_some());
        assert_eq!(shape("{{ messages[0].x.y }}"), Shape::default());
    }

    #[test]
    fn reasoning_that_the_prompt_opens_is_no_header() {
        assert_eq!(header_length("<a>\n<think>\n"), 4);
        assert_eq!(header_length("<a>\n<think>\n\n</think>\n\n"), 4);
        assert_eq!(header_length("<a>\n"), 4);
        assert_eq!(header_length("<a>think</think>"), 16);
    }
}
