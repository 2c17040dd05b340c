//! What the project's end-to-end checks share.
#![forbid(unsafe_code)]

pub mod golden;
