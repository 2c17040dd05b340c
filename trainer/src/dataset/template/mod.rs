//! Chat templates: conversations as the text that the model was made for, and which of its bytes the assistant wrote.
//!
//! A model folder's own template is rendered byte for byte as transformers renders it (`engine`, `python`). Where the
//! assistant's turns stand is found for any template and never guessed (`turns`).

mod engine;
mod error;
mod marks;
mod python;
mod rewrite;
mod sentinels;
mod shape;
mod source;
mod spans;
#[cfg(test)]
mod tests;
mod turns;
mod values;

use std::path::Path;

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

pub use error::TemplateError;
pub use spans::{Rendered, TurnSpan, learnt_tokens};

use crate::{Error, Result, dataset::example::Message};
use engine::Engine;
use shape::Shape;
use source::Source;
use turns::Form;

/// Changes whenever the same template and conversation may give other bytes or spans than before.
const VERSION: &[u8] = b"brightrun chat template 1";

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    name: String,
    notes: Vec<String>,
    digest: [u8; 32],
    always: Forms,
    with_tools: Option<Forms>,
}

/// A template as it is, and as it is trained on where that is another one.
#[derive(Debug)]
struct Forms {
    plain: Form,
    training: Option<Form>,
}

impl ChatTemplate {
    /// Reads the template of a model folder in transformers' order: `chat_template.jinja`, `chat_template.json`,
    /// `tokenizer_config.json`; ChatML where there is none.
    pub fn load(model_dir: &Path) -> Result<Self> {
        Self::compile(source::read(model_dir)?)
    }

    /// A template given as text, with special tokens by name (`eos_token`, …).
    pub fn from_text(name: &str, template: &str, special_tokens: &[(String, String)]) -> Result<Self> {
        Self::compile(Source {
            name: name.to_owned(),
            template: template.to_owned(),
            with_tools: None,
            special_tokens: special_tokens.to_vec(),
            added_tokens: special_tokens
                .iter()
                .map(|(_, token)| token.clone())
                .filter(|token| !token.is_empty())
                .collect(),
            file: None,
        })
    }

    /// The special tokens of a model folder by the names templates know them by.
    pub fn special_tokens(model_dir: &Path) -> Result<Vec<(String, String)>> {
        Ok(source::read(model_dir)?.special_tokens)
    }

    fn compile(source: Source) -> Result<Self> {
        let forms = |template: &str| {
            Forms::compile(&source, template).map_err(|error| match &source.file {
                // The error begins with the file's name already.
                Some(file) => Error::Invalid(format!("{}: {error}", file.parent().unwrap_or(file).display())),
                None => Error::Invalid(error.to_string()),
            })
        };
        let always = forms(&source.template)?;
        let with_tools = source.with_tools.as_deref().map(forms).transpose()?;
        let notes = notes(&source, &always);
        Ok(Self { notes, digest: digest(&source), name: source.name, always, with_tools })
    }

    /// Where the template comes from.
    pub fn source_name(&self) -> &str {
        &self.name
    }

    /// What is worth knowing about it, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// A hash of everything that decides what it gives.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The text of a conversation, as transformers' `apply_chat_template` gives it. `tools` is a list or null.
    pub fn render(
        &self,
        messages: &[Message],
        tools: &Json,
        add_generation_prompt: bool,
    ) -> std::result::Result<String, TemplateError> {
        self.forms(tools).plain.text(messages, tools, add_generation_prompt)
    }

    /// The text of a conversation in the form in which it is trained on, as TRL's training templates give it: every turn of
    /// the assistant is there as it would be generated. With a generation prompt, this is the prompt to train after.
    pub fn training_text(
        &self,
        messages: &[Message],
        tools: &Json,
        add_generation_prompt: bool,
    ) -> std::result::Result<String, TemplateError> {
        self.forms(tools).training().text(messages, tools, add_generation_prompt)
    }

    /// The same text, and where the assistant's turns stand in it.
    pub fn render_for_training(
        &self,
        messages: &[Message],
        tools: &Json,
    ) -> std::result::Result<Rendered, TemplateError> {
        self.forms(tools).training().rendered(messages, tools)
    }

    fn forms(&self, tools: &Json) -> &Forms {
        self.with_tools.as_ref().filter(|_| !tools.is_null()).unwrap_or(&self.always)
    }
}

impl Forms {
    fn compile(source: &Source, template: &str) -> std::result::Result<Self, TemplateError> {
        let rewritten = rewrite::rewrite(template);
        let form = |template: String| {
            let engine = Engine::new(&source.name, template, &source.special_tokens)?;
            let shape = Shape::of(&engine);
            let (name, added_tokens) = (source.name.clone(), source.added_tokens.clone());
            Ok(Form { engine, shape, marks_turns: rewritten.marks_turns, added_tokens, name })
        };
        let training = rewritten.keeps_reasoning.clone().map(form).transpose()?;
        Ok(Self { plain: form(rewritten.source.clone())?, training })
    }

    fn training(&self) -> &Form {
        self.training.as_ref().unwrap_or(&self.plain)
    }
}

fn notes(source: &Source, forms: &Forms) -> Vec<String> {
    let mut notes = Vec::new();
    if source.file.is_none() && source.name.starts_with("ChatML") {
        notes.push("The model has no chat template; conversations are written in ChatML.".to_owned());
    }
    if forms.training.is_some() {
        notes.push(
            "The template leaves the reasoning out of earlier turns; for training every turn is written as it would be \
             generated."
                .to_owned(),
        );
    }
    if forms.plain.marks_turns {
        notes.push("The template marks the assistant's turns itself.".to_owned());
    }
    if source.template.contains("strftime_now") {
        notes.push(
            "The template asks for today's date; it gets none, so that training does not depend on the day.".to_owned(),
        );
    }
    notes
}

fn digest(source: &Source) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut add = |part: &str| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    add(&source.template);
    add(source.with_tools.as_deref().unwrap_or_default());
    for (name, token) in &source.special_tokens {
        add(name);
        add(token);
    }
    source.added_tokens.iter().for_each(|token| add(token));
    hash.update(VERSION);
    hash.finalize().into()
}
