//! Where a model folder keeps its chat template and its special tokens.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value as Json};

use crate::{Error, Result};

const TEMPLATE_FILE: &str = "chat_template.jinja";
const TEMPLATE_JSON: &str = "chat_template.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
/// Templates and tokenizer configurations are far smaller.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// What a model without a template gets. It has no comment or condition to get wrong: header, content, end of turn.
const CHATML: &str = "{%- for message in messages %}\
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}\
{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

/// A template's text, and what comes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// Where the template comes from, for people.
    pub(super) name: String,
    /// The template.
    pub(super) template: String,
    /// The template for conversations with tools, where the model has one of its own.
    pub(super) with_tools: Option<String>,
    /// Special tokens by the names templates know them by.
    pub(super) special_tokens: Vec<(String, String)>,
    /// All tokens that stand for themselves in a text.
    pub(super) added_tokens: Vec<String>,
    /// The file to name in an error, if there is one.
    pub(super) file: Option<PathBuf>,
}

/// Reads a model folder as transformers does: the template file, else the JSON file, else the tokenizer's configuration.
pub(super) fn read(folder: &Path) -> Result<Source> {
    let config = read_object(&folder.join(TOKENIZER_CONFIG))?;
    let (special_tokens, added_tokens) = tokens(folder, config.as_ref())?;
    let source = |name: &str, template: String, with_tools| Source {
        name: name.to_owned(),
        template,
        with_tools,
        special_tokens: special_tokens.clone(),
        added_tokens: added_tokens.clone(),
        file: Some(folder.join(name)),
    };
    if let Some(template) = read_text(&folder.join(TEMPLATE_FILE))? {
        return Ok(source(TEMPLATE_FILE, template, None));
    }
    let beside = read_object(&folder.join(TEMPLATE_JSON))?;
    for (name, object) in [(TEMPLATE_JSON, beside), (TOKENIZER_CONFIG, config)] {
        let template = object.as_ref().and_then(|object| object.get("chat_template")).filter(|value| !value.is_null());
        if let Some(template) = template {
            let (template, with_tools) = in_json(template).map_err(|reason| Error::file(folder.join(name), reason))?;
            return Ok(source(name, template, with_tools));
        }
    }
    Ok(Source { file: None, ..source("ChatML (the model has no template)", CHATML.to_owned(), None) })
}

/// `chat_template` is a text, or a list of named ones.
fn in_json(value: &Json) -> std::result::Result<(String, Option<String>), String> {
    let list = match value {
        Json::String(template) => return Ok((template.clone(), None)),
        Json::Array(list) => list,
        _ => return Err("chat_template must be a text or a list of {\"name\", \"template\"}".into()),
    };
    let mut named = Vec::new();
    for (index, entry) in list.iter().enumerate() {
        match (entry["name"].as_str(), entry["template"].as_str()) {
            (Some(name), Some(template)) => named.push((name, template)),
            _ => return Err(format!("chat_template[{index}] must have a \"name\" and a \"template\", both texts")),
        }
    }
    let find = |wanted: &str| named.iter().find(|(name, _)| *name == wanted).map(|(_, text)| (*text).to_owned());
    let default = find("default").ok_or_else(|| {
        let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
        format!("chat_template has no template named \"default\", only {names:?}")
    })?;
    Ok((default, find("tool_use")))
}

type Tokens = (Vec<(String, String)>, Vec<String>);

/// Special tokens: `*_token` of the tokenizer's configuration; the older map is read where that one lists no added tokens.
fn tokens(folder: &Path, config: Option<&Map<String, Json>>) -> Result<Tokens> {
    let mut special = Vec::new();
    let mut added = Vec::new();
    if let Some(config) = config {
        collect(&folder.join(TOKENIZER_CONFIG), config, &mut special)?;
        let listed = config.get("added_tokens_decoder").and_then(Json::as_object);
        added.extend(listed.into_iter().flat_map(Map::values).filter_map(content).map(str::to_owned));
    }
    if config.is_none_or(|config| !config.contains_key("added_tokens_decoder")) {
        let path = folder.join(SPECIAL_TOKENS);
        if let Some(map) = read_object(&path)? {
            collect(&path, &map, &mut special)?;
        }
    }
    added.extend(special.iter().map(|(_, token)| token.clone()));
    added.retain(|token| !token.is_empty());
    added.sort_unstable();
    added.dedup();
    Ok((special, added))
}

fn collect(path: &Path, object: &Map<String, Json>, special: &mut Vec<(String, String)>) -> Result<()> {
    for (name, value) in object.iter().filter(|(name, _)| name.ends_with("_token")) {
        match (content(value), value) {
            (Some(token), _) => {
                special.retain(|(known, _)| known != name);
                special.push((name.clone(), token.to_owned()));
            }
            // `add_bos_token` and its like are switches.
            (None, Json::Null | Json::Bool(_)) => {}
            (None, _) => {
                return Err(Error::file(
                    path,
                    format!("{name} must be a text or an object with a text as \"content\""),
                ));
            }
        }
    }
    Ok(())
}

fn content(token: &Json) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

fn read_object(path: &Path) -> Result<Option<Map<String, Json>>> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    match serde_json::from_str(&text) {
        Ok(Json::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(Error::file(path, "must be one JSON object")),
        // The message of serde_json ends with line and column.
        Err(error) => Err(Error::file(path, format!("is not JSON: {error}"))),
    }
}

fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("cannot read", path)(error)),
        Ok(file) if file.len() > MAX_FILE_BYTES => {
            return Err(Error::file(
                path,
                format!("is larger than {MAX_FILE_BYTES} bytes; it cannot be what its name says"),
            ));
        }
        Ok(_) => {}
    }
    let bytes = fs::read(path).map_err(Error::io("cannot read", path))?;
    String::from_utf8(bytes).map(Some).map_err(|error| {
        let line =
            error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        Error::file(path, format!("line {line}: is not UTF-8"))
    })
}
