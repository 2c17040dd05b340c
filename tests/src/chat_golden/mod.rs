//! Compares the product's chat templates, token ids and loss masks with goldens made by transformers and TRL.

mod case;
mod report;

pub use report::Report;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use brightrun_trainer::dataset::template::ChatTemplate;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

/// `chat_goldens.json`. What a file lacks is not compared.
#[derive(Deserialize)]
struct Goldens {
    #[serde(default)]
    cases: Vec<Value>,
    #[serde(default)]
    tokenize: Vec<Tokenized>,
}

#[derive(Deserialize)]
struct Tokenized {
    text: String,
    ids: Option<Vec<u32>>,
    decoded: Option<String>,
}

/// Compares every case of a directory.
pub fn compare(directory: &Path, tokenizer: &Path) -> Result<Vec<Report>> {
    let path = directory.join("chat_goldens.json");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let goldens: Goldens = serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
    let beside = tokenizer.parent().unwrap_or(Path::new("."));
    let has_own = ["tokenizer_config.json", "special_tokens_map.json"].iter().any(|name| directory.join(name).exists());
    let special_tokens = ChatTemplate::special_tokens(if has_own { directory } else { beside })?;
    let tokenizer = Tokenizer::from_file(tokenizer).map_err(|error| anyhow!("{}: {error}", tokenizer.display()))?;
    let mut templates: BTreeMap<String, Result<ChatTemplate, String>> = BTreeMap::new();
    let mut reports = Vec::new();
    for case in &goldens.cases {
        let name = case["template"].as_str().unwrap_or_default().to_owned();
        let template = templates.entry(name.clone()).or_insert_with(|| load(directory, &name, &special_tokens));
        let mut report = Report::new(case["name"].as_str().unwrap_or("without a name"), &name);
        match template {
            Ok(template) => case::compare(case, template, &tokenizer, &mut report),
            Err(error) => report.fail("template", error.clone()),
        }
        reports.push(report);
    }
    reports.extend(goldens.tokenize.iter().map(|case| tokenized(case, &tokenizer)));
    Ok(reports)
}

fn load(directory: &Path, name: &str, special_tokens: &[(String, String)]) -> Result<ChatTemplate, String> {
    let file = format!("{name}.jinja");
    let text = fs::read_to_string(directory.join(&file)).map_err(|error| format!("cannot read {file}: {error}"))?;
    ChatTemplate::from_text(&file, &text, special_tokens).map_err(|error| error.to_string())
}

fn tokenized(case: &Tokenized, tokenizer: &Tokenizer) -> Report {
    let mut report = Report::new(&case.text, "(text)");
    match tokenizer.encode(case.text.as_str(), false) {
        Ok(encoding) => {
            if let Some(ids) = &case.ids {
                report.compare("ids", &encoding.get_ids().to_vec(), ids);
            }
            match (&case.decoded, tokenizer.decode(encoding.get_ids(), false)) {
                (Some(expected), Ok(decoded)) => report.compare("decoded", &decoded, expected),
                (Some(_), Err(error)) => report.fail("decoded", error.to_string()),
                (None, _) => {}
            }
        }
        Err(error) => report.fail("ids", error.to_string()),
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/chat");
    const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../trainer/src/demo/tokenizer.json");

    /// Texts, ids and masks were made by transformers from the templates and conversations beside them.
    #[test]
    fn our_own_goldens_are_met() {
        let reports = compare(Path::new(FIXTURES), Path::new(TOKENIZER)).unwrap();
        assert_eq!(reports.len(), 270);
        let failed: Vec<String> =
            reports.iter().filter(|report| !report.passed()).map(|report| report.json().to_string()).collect();
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }

    #[test]
    fn a_golden_that_differs_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let messages = r#"[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]"#;
        fs::write(folder.path().join("t.jinja"), "{% for m in messages %}{{ m.content }};{% endfor %}").unwrap();
        let passed = |rest: &str| {
            let goldens = format!("{{\"cases\": [{{\"template\": \"t\", \"messages\": {messages}, {rest}}}]}}");
            fs::write(folder.path().join("chat_goldens.json"), goldens).unwrap();
            compare(folder.path(), Path::new(TOKENIZER)).unwrap()[0].passed()
        };
        assert!(passed(r#""text": "a;b;""#));
        assert!(!passed(r#""text": "a;b""#));
        assert!(!passed(r#""text_generation_prompt": "a;b;x""#));
        assert!(!passed(r#""error": "must be refused""#));
        assert!(passed(r#""assistant_mask": [0, 0, 1, 1]"#));
        assert!(!passed(r#""assistant_mask": [0, 1, 1, 1]"#));
        assert!(!passed(r#""input_ids": [1]"#));
        assert!(!passed(r#""text_plain_template_differs": "a;", "text": "a;b;""#));
        assert!(!passed(r#""template": "missing", "text": "a;b;""#));
    }
}
