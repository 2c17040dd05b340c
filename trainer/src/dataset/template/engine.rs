//! A compiled template. Everything that makes minijinja behave like transformers' Jinja2 is set up here.
//!
//! transformers renders with `ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)`, loop controls and its
//! own `tojson`, `raise_exception` and `{% generation %}`. `strftime_now` is left out on purpose: a run must not depend on
//! the clock. Templates ask whether it is defined; one that does not is broken here, with a message that names it.

use std::{io, panic, panic::AssertUnwindSafe};

use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

use super::{
    error::{self, Refusal, TemplateError, TooLong},
    python::{
        filters, methods,
        objects::{Dict, List},
        print,
    },
    rewrite::GENERATION_FILTER,
};

/// Steps a rendering may take, some seconds' worth; a conversation of ten thousand turns needs a tenth of it.
const FUEL: u64 = 20_000_000;
/// The longest text a rendering may give.
const MAX_RENDERED_BYTES: usize = 256 << 20;
/// Names under which templates hold the turn they are rendering.
const TURN_NAMES: [&str; 4] = ["message", "m", "msg", "turn"];
/// The variable that holds the characters to mark generated text with.
const MARKS: &str = "__brightrun_marks";

/// Two characters that stand at the beginning and at the end of marked text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    /// Before the index of the turn, and again between the index and the text.
    pub(super) open: char,
    /// After the text.
    pub(super) close: char,
}

/// What a rendering gets besides the special tokens.
pub(super) struct Input<'a> {
    /// The turns.
    pub(super) messages: &'a [Value],
    /// Tool descriptions, or none.
    pub(super) tools: &'a Value,
    /// Whether the header of an answer follows.
    pub(super) add_generation_prompt: bool,
    /// How to mark what stands in `{% generation %}` blocks.
    pub(super) marks: Option<Marks>,
}

/// A compiled template with its special tokens.
#[derive(Debug)]
pub(super) struct Engine {
    environment: Environment<'static>,
    name: String,
    special_tokens: Vec<(String, String)>,
    asks_for_date: bool,
}

impl Engine {
    /// Compiles a template; a syntax error comes with its line.
    pub(super) fn new(name: &str, source: String, special_tokens: &[(String, String)]) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_keep_trailing_newline(false);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(methods::call);
        environment.set_formatter(|out, _, value| match value.as_str() {
            Some(text) => Ok(out.write_str(text)?),
            None => Ok(out.write_str(&print::string(value))?),
        });
        filters::install(&mut environment);
        environment.add_filter(GENERATION_FILTER, mark);
        environment.add_function("raise_exception", raise);
        environment.remove_global("debug");
        let asks_for_date = source.contains("strftime_now");
        environment
            .add_template_owned(name.to_owned(), source)
            .map_err(|error| TemplateError::Broken(error::described(name, &error)))?;
        Ok(Self { environment, name: name.to_owned(), special_tokens: special_tokens.to_vec(), asks_for_date })
    }

    /// Renders; `works` says whether the template is known to render ordinary conversations.
    pub(super) fn render(&self, input: &Input, works: bool) -> Result<String, TemplateError> {
        // minijinja panics in corners (`[][::-1]`, `loop.cycle()`): a template from outside must not end the process.
        let result = panic::catch_unwind(AssertUnwindSafe(|| self.try_render(input)));
        match result {
            Ok(rendered) => rendered.map_err(|error| match error::of_engine(&self.name, works, &error) {
                TemplateError::Broken(reason) if self.asks_for_date => TemplateError::Broken(format!(
                    "{reason} (the template asks for today's date with strftime_now, which does not exist here; let it ask \
                     whether strftime_now is defined, or write a date into it)"
                )),
                other => other,
            }),
            Err(_) => {
                let reason = format!("{}: the template makes the engine fail", self.name);
                Err(if works { TemplateError::Refused(reason) } else { TemplateError::Broken(reason) })
            }
        }
    }

    fn try_render(&self, input: &Input) -> Result<String, Error> {
        let tokens = self.special_tokens.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str())));
        let marks = input.marks.map_or(Value::UNDEFINED, |marks| Value::from(format!("{}{}", marks.open, marks.close)));
        let variables = [
            ("messages", List::value(input.messages.to_vec())),
            ("tools", input.tools.clone()),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(input.add_generation_prompt)),
            (MARKS, marks),
        ];
        let mut out = Bounded { bytes: Vec::new(), most: MAX_RENDERED_BYTES };
        let context: Value = tokens.chain(variables).collect();
        self.environment.get_template(&self.name)?.render_captured_to(context, &mut out)?;
        String::from_utf8(out.bytes).map_err(|_| Error::new(ErrorKind::WriteFailure, "the rendered text is not UTF-8"))
    }
}

struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.most.saturating_sub(self.bytes.len()) {
            return Err(io::Error::other(TooLong(self.most)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn raise(message: &Value) -> Result<Value, Error> {
    let message = print::string(message);
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Refusal(message)))
}

/// Puts marks round the text of a `{% generation %}` block, with the index of the turn it belongs to.
fn mark(state: &State, text: String) -> String {
    let marks = state.lookup(MARKS);
    let mut marks = marks.as_ref().and_then(Value::as_str).unwrap_or_default().chars();
    let (Some(open), Some(close)) = (marks.next(), marks.next()) else { return text };
    let turn = TURN_NAMES.iter().find_map(|name| Dict::message_index(&state.lookup(name)?));
    let turn = turn.map_or_else(String::new, |turn| turn.to_string());
    format!("{open}{turn}{open}{text}{close}")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn rendered(source: &str, works: bool) -> Result<String, TemplateError> {
        let tools = Value::from(());
        let input = Input { messages: &[], tools: &tools, add_generation_prompt: false, marks: None };
        Engine::new("t.jinja", source.into(), &[("eos_token".into(), "</s>".into())])?.render(&input, works)
    }

    fn broken(source: &str) -> String {
        match rendered(source, true) {
            Err(TemplateError::Broken(reason)) => reason,
            other => panic!("{source}: {other:?}"),
        }
    }

    #[test]
    fn what_nobody_can_run_is_broken_and_names_its_line() {
        assert!(broken("a\n\n{% if %}").starts_with("t.jinja, line 3: syntax error"));
        assert!(broken("\n{{ 1 | unheard_of }}").starts_with("t.jinja, line 2: unknown filter"));
        assert!(broken("{{ unheard_of() }}").contains("unheard_of is unknown"));
        assert!(broken("{{ strftime_now('%Y') }}").contains("today's date"));
        assert!(
            broken("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
                .contains("does not end")
        );
    }

    #[test]
    fn what_python_would_refuse_is_refused_where_the_template_works() {
        let refused = |source| match rendered(source, true) {
            Err(TemplateError::Refused(reason)) => reason,
            other => panic!("{source}: {other:?}"),
        };
        assert_eq!(refused("{{ raise_exception('no ' ~ 1) }}"), "the chat template refuses the conversation: no 1");
        assert!(refused("{% macro a() %}{{ raise_exception('inside') }}{% endmacro %}{{ a() }}").ends_with(": inside"));
        assert!(refused("{{ missing.field }}").contains("t.jinja, line 1: undefined value"));
        assert!(refused("{{ 'a' + 1 }}").contains("line 1"));
        assert!(matches!(rendered("{{ missing.field }}", false), Err(TemplateError::Broken(_))));
    }

    #[test]
    fn an_engine_that_fails_ends_no_process() {
        assert!(matches!(rendered("{{ ''[::-1] }}", true), Err(TemplateError::Refused(_))));
    }

    #[test]
    fn variables_are_those_of_transformers() {
        let source = "{{ eos_token }}|{{ bos_token }}|{{ tools is none }}{{ documents is none }}{{ messages }}\
                      {{ add_generation_prompt }}{{ strftime_now is defined }}{{ debug is defined }}";
        assert_eq!(rendered(source, true).unwrap(), "</s>||TrueTrue[]FalseFalseFalse");
    }

    #[test]
    fn blocks_leave_no_white_space_and_nothing_is_escaped() {
        assert_eq!(
            rendered("  {% if true %}\n  <&'\">\n  {% endif %}\n\n{# c #}\nx\n", true).unwrap(),
            "  <&'\">\n\nx"
        );
    }

    #[test]
    fn a_text_has_a_longest_length() {
        let mut out = Bounded { bytes: Vec::new(), most: 5 };
        out.write_all(b"abcde").unwrap();
        assert!(out.write_all(b"f").is_err());
        assert_eq!(out.bytes, b"abcde");
    }
}
