//! One conversation: texts, ids, masks and labels.

use brightrun_trainer::dataset::example::{Message, Role};
use brightrun_trainer::dataset::template::{ChatTemplate, Rendered, learnt_tokens};
use serde_json::{Map, Value};
use tokenizers::{Encoding, Tokenizer};

use super::report::Report;

/// The label of a token that is not learnt.
const IGNORED: i64 = -100;

/// Compares everything that a case has a value for.
///
/// `text` is the text in training form where the case has the key `text_plain_template_differs` (whose value is the plain
/// text, or null where the two are the same); without that key it is the plain text. A case with `error` must be refused.
pub(super) fn compare(case: &Value, template: &ChatTemplate, tokenizer: &Tokenizer, report: &mut Report) {
    let messages = match messages(&case["messages"]) {
        Ok(messages) => messages,
        Err(reason) => return report.fail("messages", reason),
    };
    let conversation = Conversation { messages: &messages, tools: &case["tools"], template, tokenizer };
    if !case["error"].is_null() {
        return match template.render(&messages, &case["tools"], false) {
            Ok(text) => report.fail("error", format!("an error was expected, found {text:?}")),
            Err(_) => report.compare("error", &true, &true),
        };
    }
    let outcome = conversation.texts(case, report).and_then(|()| conversation.tokens(case, report));
    if let Err(reason) = outcome {
        report.fail("error", reason);
    }
}

struct Conversation<'a> {
    messages: &'a [Message],
    tools: &'a Value,
    template: &'a ChatTemplate,
    tokenizer: &'a Tokenizer,
}

impl Conversation<'_> {
    fn texts(&self, case: &Value, report: &mut Report) -> Result<(), String> {
        let text = case["text"].as_str();
        let plain = case["text_plain_template_differs"].as_str().or(text);
        if let Some(expected) = plain {
            report.compare("text_plain", &self.plain(false)?.as_str(), &expected);
        }
        if let (Some(expected), true) = (text, has_training_form(case)) {
            report.compare("text", &self.training(self.messages, false)?.as_str(), &expected);
        }
        if let Some(expected) = case["text_generation_prompt"].as_str() {
            report.compare("text_generation_prompt", &self.plain(true)?.as_str(), &expected);
        }
        Ok(())
    }

    fn tokens(&self, case: &Value, report: &mut Report) -> Result<(), String> {
        let text = if has_training_form(case) { self.training(self.messages, false)? } else { self.plain(false)? };
        let ids = self.encode(&text)?.get_ids().to_vec();
        if let Some(expected) = integers(&case["input_ids"]) {
            report.compare("input_ids", &widened(&ids), &expected);
        }
        self.spans(case, report)?;
        let prompted = ["prompt_len", "prompt_is_prefix", "labels_prompt_completion"];
        if prompted.iter().all(|key| case[*key].is_null()) {
            return Ok(());
        }
        let before = &self.messages[..self.messages.len().saturating_sub(1)];
        let prompt = self.encode(&self.training(before, true)?)?.get_ids().to_vec();
        let same = prompt.iter().zip(&ids).take_while(|(left, right)| left == right).count();
        if let Some(expected) = case["prompt_len"].as_u64() {
            // As TRL counts: the completion begins where the two first differ.
            report.compare("prompt_len", &(same as u64), &expected);
        }
        if let Some(expected) = case["prompt_is_prefix"].as_bool() {
            report.compare("prompt_is_prefix", &(same == prompt.len()), &expected);
        }
        if let Some(expected) = integers(&case["labels_prompt_completion"]) {
            let learnt: Vec<bool> = (0..ids.len()).map(|index| index >= same).collect();
            report.compare("labels_prompt_completion", &labels(&ids, &learnt), &expected);
        }
        Ok(())
    }

    fn spans(&self, case: &Value, report: &mut Report) -> Result<(), String> {
        let (mask, expected_labels) = (integers(&case["assistant_mask"]), integers(&case["labels_assistant_only"]));
        if mask.is_none() && expected_labels.is_none() {
            return Ok(());
        }
        let rendered = self.template.render_for_training(self.messages, self.tools).map_err(|e| e.to_string())?;
        let encoding = self.encode(&rendered.text)?;
        let learnt = learnt_tokens(encoding.get_offsets(), rendered.turns.iter().map(|turn| &turn.bytes));
        if let Some(expected) = mask {
            let found: Vec<i64> = learnt.iter().map(|learnt| i64::from(*learnt)).collect();
            match found == expected {
                true => report.compare("assistant_mask", &found, &expected),
                false => report.fail("assistant_mask", difference(&rendered, &encoding, &found, &expected)),
            }
        }
        if let Some(expected) = expected_labels {
            report.compare("labels_assistant_only", &labels(encoding.get_ids(), &learnt), &expected);
        }
        Ok(())
    }

    fn plain(&self, prompt: bool) -> Result<String, String> {
        self.template.render(self.messages, self.tools, prompt).map_err(|error| error.to_string())
    }

    fn training(&self, messages: &[Message], prompt: bool) -> Result<String, String> {
        self.template.training_text(messages, self.tools, prompt).map_err(|error| error.to_string())
    }

    fn encode(&self, text: &str) -> Result<Encoding, String> {
        self.tokenizer.encode(text, false).map_err(|error| error.to_string())
    }
}

fn has_training_form(case: &Value) -> bool {
    case.get("text_plain_template_differs").is_some()
}

fn labels(ids: &[u32], learnt: &[bool]) -> Vec<i64> {
    ids.iter().zip(learnt).map(|(id, learnt)| if *learnt { i64::from(*id) } else { IGNORED }).collect()
}

fn widened(ids: &[u32]) -> Vec<i64> {
    ids.iter().map(|id| i64::from(*id)).collect()
}

fn integers(value: &Value) -> Option<Vec<i64>> {
    value.as_array()?.iter().map(Value::as_i64).collect()
}

/// The text of the tokens that only one of two masks covers.
fn difference(rendered: &Rendered, encoding: &Encoding, found: &[i64], expected: &[i64]) -> String {
    if found.len() != expected.len() {
        return format!("{} tokens, expected {}", found.len(), expected.len());
    }
    let only = |left: &[i64], right: &[i64]| -> Vec<&str> {
        let tokens = encoding.get_offsets().iter().zip(left.iter().zip(right));
        let differing = tokens.filter(|(_, (left, right))| **left > **right);
        differing.map(|(offsets, _)| rendered.text.get(offsets.0..offsets.1).unwrap_or_default()).collect()
    };
    format!("learnt here only: {:?}; expected only: {:?}", only(found, expected), only(expected, found))
}

fn messages(value: &Value) -> Result<Vec<Message>, String> {
    let list = value.as_array().ok_or("messages must be a list")?;
    list.iter()
        .enumerate()
        .map(|(index, value)| message(value).map_err(|e| format!("messages[{index}]: {e}")))
        .collect()
}

fn message(value: &Value) -> Result<Message, String> {
    let mut fields: Map<String, Value> = value.as_object().ok_or("must be an object")?.clone();
    let role = fields.shift_remove("role").unwrap_or_default();
    let role = [Role::System, Role::User, Role::Assistant, Role::Tool]
        .into_iter()
        .find(|known| role == known.name())
        .ok_or_else(|| format!("the role {role} is unknown"))?;
    let content = match fields.shift_remove("content") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text),
        Some(other) => return Err(format!("only contents that are texts can be compared, found {other}")),
    };
    Ok(Message { role, content, fields })
}
