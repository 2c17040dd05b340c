//! What can go wrong with a template and a conversation.

use std::error::Error as _;

use minijinja::ErrorKind;

/// Why a conversation could not be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template refuses this conversation (`raise_exception`), or fails on it as it would in Python; others may do.
    #[error("{0}")]
    Refused(String),
    /// The template cannot work, whatever the conversation.
    #[error("{0}")]
    Broken(String),
    /// The assistant's turns cannot be told apart from the rest of the text.
    #[error("{0}")]
    NoSpans(String),
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refusal(pub(super) String);

/// The text became too long.
#[derive(Debug, thiserror::Error)]
#[error("the rendered conversation is longer than {0} bytes")]
pub(super) struct TooLong(pub(super) usize);

/// What went wrong, and in which line; `works` says that the template has rendered an ordinary conversation.
pub(super) fn of_engine(name: &str, works: bool, error: &minijinja::Error) -> TemplateError {
    if let Some(refusal) = refusal(error) {
        return TemplateError::Refused(format!("the chat template refuses the conversation: {refusal}"));
    }
    let reason = described(name, error);
    match error.kind() {
        ErrorKind::OutOfFuel => TemplateError::Broken(format!("{reason}: the template does not end")),
        // Names that nobody defines are the template's fault (or a part of Jinja2 that does not exist here).
        ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction => TemplateError::Broken(reason),
        _ if works => TemplateError::Refused(format!("the chat template fails on the conversation: {reason}")),
        _ => TemplateError::Broken(reason),
    }
}

fn refusal(error: &minijinja::Error) -> Option<&Refusal> {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(refusal) = cause.downcast_ref::<Refusal>() {
            return Some(refusal);
        }
        source = cause.source();
    }
    None
}

/// "chat_template.jinja, line 3: what happened".
pub(super) fn described(name: &str, error: &minijinja::Error) -> String {
    let place = error.line().map_or_else(String::new, |line| format!(", line {line}"));
    let detail = error.detail().map_or_else(String::new, |detail| format!(": {detail}"));
    let cause = error.source().map_or_else(String::new, |cause| format!(" ({cause})"));
    format!("{name}{place}: {kind}{detail}{cause}", kind = error.kind())
}
