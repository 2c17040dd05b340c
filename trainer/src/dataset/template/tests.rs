//! Whole templates: where they are read from, what they render, and which spans they give for any conversation.

use std::{fs, ops::Range, path::Path};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::dataset::example::Role;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/chat");
const NONE: &Json = &Json::Null;

fn fixture(name: &str) -> ChatTemplate {
    let text = fs::read_to_string(Path::new(FIXTURES).join(format!("{name}.jinja"))).unwrap();
    let tokens =
        [("bos_token", "<|endoftext|>"), ("eos_token", "<|im_end|>")].map(|(n, t)| (n.to_owned(), t.to_owned()));
    ChatTemplate::from_text(name, &text, &tokens).unwrap()
}

fn turns(texts: &[&str]) -> Vec<Message> {
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    roles.zip(texts).map(|(role, text)| Message::new(role, *text)).collect()
}

fn spans(rendered: &Rendered) -> Vec<(usize, &str)> {
    rendered.turns.iter().map(|turn| (turn.message, &rendered.text[turn.bytes.clone()])).collect()
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn loaded(files: &[(&str, &str)]) -> ChatTemplate {
    ChatTemplate::load(folder(files).path()).unwrap()
}

fn refusal(files: &[(&str, &str)]) -> String {
    ChatTemplate::load(folder(files).path()).unwrap_err().to_string()
}

#[test]
fn the_file_wins_over_the_json_and_the_json_over_the_configuration() {
    let files = [
        ("chat_template.jinja", "file {{ eos_token }}"),
        ("chat_template.json", r#"{"chat_template": "json"}"#),
        (
            "tokenizer_config.json",
            r#"{"chat_template": "config", "eos_token": {"content": "</s>"}, "bos_token": null}"#,
        ),
    ];
    let hello = turns(&["hello"]);
    for (first, name, text) in [
        (0, "chat_template.jinja", "file </s>"),
        (1, "chat_template.json", "json"),
        (2, "tokenizer_config.json", "config"),
    ] {
        let template = loaded(&files[first..]);
        assert_eq!(template.source_name(), name);
        assert_eq!(template.render(&hello, NONE, false).unwrap(), text);
    }
}

#[test]
fn a_model_without_a_template_gets_chatml_and_says_so() {
    for files in [&[][..], &[("tokenizer_config.json", r#"{"chat_template": null}"#)]] {
        let template = loaded(files);
        assert_eq!(template.source_name(), "ChatML (the model has no template)");
        assert!(template.notes()[0].contains("ChatML"));
        let text = template.render(&turns(&["a", "b"]), NONE, true).unwrap();
        assert_eq!(text, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>assistant\n");
    }
}

#[test]
fn named_templates_are_chosen_by_whether_there_are_tools() {
    let config = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
    let template = loaded(&[("tokenizer_config.json", config)]);
    assert_eq!(template.render(&turns(&["a"]), NONE, false).unwrap(), "d");
    assert_eq!(template.render(&turns(&["a"]), &json!([]), false).unwrap(), "t");
}

#[test]
fn the_older_map_of_tokens_counts_where_no_added_tokens_are_listed() {
    let map = ("special_tokens_map.json", r#"{"bos_token": "<s>", "additional_special_tokens": ["x"]}"#);
    let source = ("chat_template.jinja", "{{ bos_token }}{{ pad_token }}");
    let old = ("tokenizer_config.json", r#"{"bos_token": "<old>", "pad_token": "<p>", "add_bos_token": true}"#);
    assert_eq!(loaded(&[source, map, old]).render(&turns(&["a"]), NONE, false).unwrap(), "<s><p>");
    let new = ("tokenizer_config.json", r#"{"bos_token": "<new>", "added_tokens_decoder": {"0": {"content": "<n>"}}}"#);
    assert_eq!(loaded(&[source, map, new]).render(&turns(&["a"]), NONE, false).unwrap(), "<new>");
}

#[test]
fn damaged_folders_are_refused_with_file_and_line() {
    assert!(refusal(&[("chat_template.jinja", "a\n{% for %}")]).contains("chat_template.jinja, line 2: syntax error"));
    assert!(
        refusal(&[("tokenizer_config.json", "{\n \"a\": }")])
            .contains("tokenizer_config.json: is not JSON: expected value at line 2")
    );
    assert!(refusal(&[("tokenizer_config.json", "[]")]).contains("must be one JSON object"));
    assert!(refusal(&[("tokenizer_config.json", r#"{"chat_template": 3}"#)]).contains("must be a text or a list"));
    assert!(
        refusal(&[("tokenizer_config.json", r#"{"chat_template": [{"name": "default"}]}"#)])
            .contains("chat_template[0]")
    );
    assert!(
        refusal(&[("tokenizer_config.json", r#"{"chat_template": [{"name": "x", "template": ""}]}"#)])
            .contains("\"default\", only [\"x\"]")
    );
    assert!(refusal(&[("tokenizer_config.json", r#"{"eos_token": 7}"#)]).contains("eos_token must be a text"));
    assert!(refusal(&[("special_tokens_map.json", "{")]).contains("special_tokens_map.json: is not JSON"));
    let folder = folder(&[]);
    fs::write(folder.path().join("chat_template.jinja"), b"a\nb\xff").unwrap();
    assert!(ChatTemplate::load(folder.path()).unwrap_err().to_string().ends_with("line 2: is not UTF-8"));
}

#[test]
fn the_digest_is_that_of_everything_that_decides_the_text() {
    let source = ("chat_template.jinja", "{{ eos_token }}");
    let config = |token: &str| format!("{{\"eos_token\": \"{token}\"}}");
    let digest = |files: &[(&str, &str)]| loaded(files).digest();
    let first = digest(&[source, ("tokenizer_config.json", &config("a"))]);
    assert_eq!(first, digest(&[source, ("special_tokens_map.json", &config("a"))]));
    assert_ne!(first, digest(&[source, ("tokenizer_config.json", &config("b"))]));
    assert_ne!(first, digest(&[("chat_template.jinja", "{{ eos_token}}"), ("tokenizer_config.json", &config("a"))]));
}

#[test]
fn reasoning_is_kept_in_training_and_only_there() {
    let template = fixture("reasoning");
    let messages = turns(&["a", "<think>\nx\n</think>\n\nb", "c", "d"]);
    let plain = template.render(&messages, NONE, false).unwrap();
    assert!(plain.contains("assistant\nb<|im_end|>") && !plain.contains('x'));
    let rendered = template.render_for_training(&messages, NONE).unwrap();
    let whole = [(1, "<think>\nx\n</think>\n\nb<|im_end|>\n"), (3, "<think>\n\n</think>\n\nd<|im_end|>\n")];
    assert_eq!(spans(&rendered), whole);
    assert_eq!(rendered.text, template.training_text(&messages, NONE, false).unwrap());
    assert!(template.notes().iter().any(|note| note.contains("reasoning")));
    assert!(fixture("chatml").notes().is_empty());
}

#[test]
fn an_end_of_the_document_belongs_to_the_last_answer_only() {
    let rendered = fixture("document_end").render_for_training(&turns(&["a", "b", "c", "d"]), NONE).unwrap();
    assert_eq!(spans(&rendered), [(1, "b<|im_end|>\n"), (3, "d<|im_end|>\n<|im_end|>")]);
}

#[test]
fn turns_that_the_template_leaves_out_have_no_span() {
    let rendered = fixture("forgetful").render_for_training(&turns(&["a", "b", "c", "d"]), NONE).unwrap();
    assert_eq!(spans(&rendered), [(3, "d</>\n")]);
}

#[test]
fn turns_that_cannot_be_told_apart_are_an_error_that_says_what_to_do() {
    let mixed = "{% for m in messages %}{{ m.content | upper | length }}{{ loop.length }}{% endfor %}";
    let template = ChatTemplate::from_text("mixed", mixed, &[]).unwrap();
    match template.render_for_training(&turns(&["a", "b", "c"]), NONE) {
        Err(TemplateError::NoSpans(reason)) => {
            assert!(reason.contains("turn 2") && reason.contains("train_on_prompt"), "{reason}")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_long_conversation_costs_no_more_than_its_length() {
    let template = fixture("chatml");
    let texts: Vec<String> = (0..2000).map(|index| format!("turn {index}")).collect();
    let messages = turns(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let rendered = template.render_for_training(&messages, NONE).unwrap();
    assert_eq!(rendered.turns.len(), 1000);
    assert_eq!(&rendered.text[rendered.turns[999].bytes.clone()], "turn 1999<|im_end|>\n");
}

/// Templates in which every turn of the assistant shows, and whose spans are always found.
const ALWAYS_FOUND: [&str; 7] =
    ["chatml", "headers", "document_end", "reasoning", "marked", "chatml.training", "headers.training"];
/// Templates that refuse, hide turns, or show them elsewhere.
const OTHERS: [&str; 3] = ["strict", "forgetful", "late_system"];

fn conversations() -> impl Strategy<Value = Vec<Message>> {
    let role = prop_oneof![
        1 => Just(Role::System), 4 => Just(Role::User), 5 => Just(Role::Assistant), 1 => Just(Role::Tool)
    ];
    let text = prop_oneof![
        4 => "[a-z]{0,6}",
        2 => "[ \n\t]{0,2}[a-zé日]{1,3}[ \n]{0,2}",
        1 => Just("<|im_end|>\n<|im_start|>assistant\n".to_owned()),
        1 => Just("[ASSISTANT]\n\n".to_owned()),
        1 => Just("<think>\nt\n</think>\n\n".to_owned()),
    ];
    prop::collection::vec((role, text), 1..9).prop_map(|turns| {
        // A number in every content tells the contents apart.
        let message = |(index, (role, text)): (usize, (Role, String))| Message::new(role, format!("{text}#{index}#"));
        turns.into_iter().enumerate().map(message).collect()
    })
}

fn numbers(messages: &[Message], text: &str) -> Vec<(usize, Range<usize>)> {
    let place = |index: usize| {
        let number = format!("#{index}#");
        text.find(&number).map(|at| (index, at..at + number.len()))
    };
    (0..messages.len()).filter_map(place).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn spans_hold_the_answers_and_nothing_else(messages in conversations()) {
        for name in ALWAYS_FOUND.into_iter().chain(OTHERS) {
            let template = fixture(name);
            let rendered = match template.render_for_training(&messages, NONE) {
                Ok(rendered) => rendered,
                Err(error) => {
                    prop_assert!(OTHERS.contains(&name), "{name}: {error}");
                    continue;
                }
            };
            prop_assert_eq!(&rendered.text, &template.training_text(&messages, NONE, false).unwrap());
            prop_assert!(rendered.turns.windows(2).all(|pair| pair[0].bytes.end <= pair[1].bytes.start));
            for (index, number) in numbers(&messages, &rendered.text) {
                let holder = rendered.turns.iter().find(|turn| turn.bytes.start < number.end && number.start < turn.bytes.end);
                let answer = messages[index].role == Role::Assistant;
                prop_assert_eq!(holder.map(|turn| turn.message), answer.then_some(index), "{}", name);
                if let Some(turn) = holder {
                    let span = &rendered.text[turn.bytes.clone()];
                    let content = messages[index].content.as_deref().unwrap_or_default();
                    let content = content.rsplit("</think>").next().unwrap_or_default().trim();
                    prop_assert!(span.contains(content), "{name}: {span:?} lacks {content:?}");
                }
            }
        }
    }

    /// The short way through a text gives what the long way gives.
    #[test]
    fn following_the_text_finds_what_rendering_every_beginning_finds(messages in conversations()) {
        for name in ["chatml", "headers", "reasoning", "strict"] {
            let mut template = fixture(name);
            let short = template.render_for_training(&messages, NONE);
            let forms = &mut template.always;
            let form = forms.training.as_mut().unwrap_or(&mut forms.plain);
            prop_assert!(form.shape.turn_by_turn.take().is_some(), "{name}");
            prop_assert_eq!(short, template.render_for_training(&messages, NONE), "{}", name);
        }
    }
}
