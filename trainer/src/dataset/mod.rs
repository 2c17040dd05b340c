//! From lines to batches: conversations, ChatML text with loss masks, token sequences, optimiser steps.

pub mod batches;
pub mod chatml;
pub mod example;
pub mod facts;
pub mod finding;
pub mod format;
pub(crate) mod random;
pub mod sequences;
pub mod split;
pub mod template;
