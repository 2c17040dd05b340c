//! A compiled template. Everything that makes minijinja behave like transformers' Jinja2 is set up here.
//!
//! transformers renders with `ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)`, loop controls and its
//! own `tojson`, `raise_exception` and `{% generation %}`. `strftime_now` is left out on purpose: a run must not depend on
//! the clock. Templates ask whether it is defined; one that does not is broken here, with a message that names it.

use std::{
    io, panic,
    panic::AssertUnwindSafe,
};

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
        let mut out = Bounded(Vec::new());
        let context: Value = tokens.chain(variables).collect();
        self.environment.get_template(&self.name)?.render_captured_to(context, &mut out)?;
        String::from_utf8(out.0).map_err(|_| Error::new(ErrorKind::WriteFailure, "the rendered text is not UTF-8"))
    }
}

struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MAX_RENDERED_BYTES - self.0.len() {
            return Err(io::Error::other(TooLong(MAX_RENDERED_BYTES)));
        }
        self.0.extend_from_slice(bytes);
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
