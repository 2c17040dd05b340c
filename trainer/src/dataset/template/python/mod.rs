//! Python, as far as chat templates see it: how values print, what their methods and filters do.
//!
//! Templates are written for Jinja2, which prints with `str`, calls methods of Python's own types and escapes nothing.
//! minijinja differs in places; everything here is defined by what CPython and Jinja2 do.

pub(super) mod filters;
pub(super) mod json;
pub(super) mod methods;
pub(super) mod objects;
pub(super) mod print;
pub(super) mod text;

use minijinja::{Error, ErrorKind};

/// An error that Python would raise as well: the conversation is not what the template expects.
fn type_error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}
