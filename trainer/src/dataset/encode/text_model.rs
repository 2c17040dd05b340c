//! What a model folder says about text.

use std::path::Path;

use super::TextTokenizer;
use crate::{Result, dataset::template::ChatTemplate};

/// A model's tokenizer and chat template.
#[derive(Debug)]
pub struct TextModel {
    /// Text to tokens and back.
    pub tokenizer: TextTokenizer,
    /// Turns to text.
    pub template: ChatTemplate,
}

// === impl TextModel ===

impl TextModel {
    /// Reads both out of a model folder.
    pub fn load(folder: &Path) -> Result<Self> {
        Ok(Self { template: ChatTemplate::load(folder)?, tokenizer: TextTokenizer::load(folder)? })
    }
}
