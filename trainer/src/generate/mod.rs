//! Answers of a model, token by token, with its adapters or without.

mod ends;
mod prompts;
mod sampling;

use std::ops::ControlFlow;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::dataset::encode::{TextModel, Tokens, WordCache};
use crate::dataset::example::Message;
use crate::model::Model;
use crate::{Error, Result};

pub use ends::EndTokens;
pub use prompts::{Prompt, from_dataset, from_messages_file, from_text};
pub use sampling::{Sampler, Sampling};

/// How far an answer goes and how its tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AnswerOptions {
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// How each token is chosen.
    pub sampling: Sampling,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended it.
    End,
    /// It has as many tokens as were asked for, or as the model has room for.
    Length,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// What is said, without the token that ended it.
    pub text: String,
    /// Its tokens, the one that ended it not among them.
    #[serde(skip)]
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// How a model's conversations are written: template, tokenizer and the tokens that end an answer.
#[derive(Debug)]
pub struct Chat {
    text: TextModel,
    ends: EndTokens,
}

// === impl Chat ===

impl Chat {
    /// Reads a model's folder.
    pub fn load(model_dir: &Path) -> Result<Self> {
        let text = TextModel::load(model_dir)?;
        let ends = EndTokens::of(model_dir, &text)?;
        Ok(Self { text, ends })
    }

    /// The tokens that end an answer.
    pub fn ends(&self) -> &EndTokens {
        &self.ends
    }

    /// The tokens of a conversation up to where the assistant is to speak.
    pub fn prompt(&self, messages: &[Message], tools: &Value) -> Result<Vec<u32>> {
        let text =
            self.text.template.render(messages, tools, true).map_err(|error| Error::Invalid(error.to_string()))?;
        let mut tokens = Tokens::default();
        self.text.tokenizer.encode(&text, &mut WordCache::default(), &mut tokens)?;
        Ok(tokens.ids)
    }

    /// The model's answer to a prompt. `watch` sees every token as it comes, and may end the answer with an error of
    /// [`Error::Cancelled`].
    pub fn answer(
        &self,
        model: &Model,
        prompt: &[u32],
        options: &AnswerOptions,
        adapted: bool,
        watch: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Answer> {
        let positions = model.config().max_position_embeddings;
        if prompt.len() >= positions {
            return Err(Error::Invalid(format!(
                "the prompt has {} tokens and the model {positions} positions; shorten the conversation",
                prompt.len()
            )));
        }
        let most = options.max_new_tokens.min(positions - prompt.len());
        let mut sampler = Sampler::new(options.sampling)?;
        let mut cache = model.cache();
        let mut tokens = Vec::new();
        let mut next = prompt.to_vec();
        let mut finish = Finish::Length;
        while tokens.len() < most {
            let logits = model.continued(&next, &mut cache, adapted)?;
            let token = sampler.choose(&logits)?;
            if self.ends.contains(token) {
                finish = Finish::End;
                break;
            }
            tokens.push(token);
            if watch(token).is_break() {
                return Err(Error::Cancelled);
            }
            next = vec![token];
        }
        Ok(Answer { text: self.text.tokenizer.decode(&tokens)?, tokens, finish })
    }
}
