use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Value, json};

use super::*;
use crate::dataset::example::Role;

/// Rounds of a conversation: what is asked and what is answered.
type Rounds = Vec<(String, String)>;

/// Conversations: an optional system prompt and at least one round.
fn conversations() -> impl Strategy<Value = Vec<(Option<String>, Rounds)>> {
    let text = || prop_oneof!["\\PC{1,20}", "[ \\t\\r\\n\"\\\\\u{85}\u{2028}äß😀{}\\[\\]:,]{1,12}"];
    let said = move || text().prop_filter("blank", |text| !text.trim().is_empty());
    vec((proptest::option::of(said()), vec((said(), said()), 1..4)), 1..5)
}

fn expected(system: Option<&String>, rounds: &[(String, String)]) -> Vec<(Role, String)> {
    let system = system.map(|text| (Role::System, text.clone()));
    let rounds = rounds.iter().flat_map(|(asked, said)| [(Role::User, asked.clone()), (Role::Assistant, said.clone())]);
    system.into_iter().chain(rounds).collect()
}

fn listed(messages: &[(Role, String)], role: &str, content: &str, name: impl Fn(Role) -> &'static str) -> Value {
    messages.iter().map(|(who, text)| json!({ role: name(*who), content: text })).collect()
}

/// The pairs of one conversation as BrightRun writes them: each with all that was said before.
fn pairs(id: Option<usize>, system: Option<&String>, rounds: &[(String, String)]) -> Vec<Value> {
    let pair = |count: usize| {
        let (asked, said) = &rounds[count];
        let mut history = expected(None, &rounds[..=count]);
        history.pop();
        let history = listed(&history, "role", "content", Role::name);
        let mut pair = json!({"system_prompt": system, "conversation_history": history, "current_user_input": asked, "target_response": said});
        if let Some(id) = id {
            pair["conversation_id"] = json!(format!("c{id}"));
        }
        pair
    };
    (0..rounds.len()).map(pair).collect()
}

/// The conversations as items of a format, and the messages that each item stands for.
fn written(format: Format, set: &[(Option<String>, Rounds)]) -> Vec<(Value, Vec<(Role, String)>)> {
    let mut items = Vec::new();
    for (index, (system, rounds)) in set.iter().enumerate() {
        let system = system.as_ref();
        let all = expected(system, rounds);
        let (asked, said) = &rounds[0];
        let single = expected(system, &rounds[..1]);
        match format {
            Format::Turns => items
                .push((json!({"conversation_id": index, "turns": listed(&all, "role", "content", Role::name)}), all)),
            Format::OpenAi => items.push((json!({"messages": listed(&all, "role", "content", Role::name)}), all)),
            Format::ShareGpt => {
                let name = |role| match role {
                    Role::System => "system",
                    Role::User => "human",
                    _ => "gpt",
                };
                items.push((json!({"conversations": listed(&all, "from", "value", name)}), all));
            }
            Format::Alpaca => {
                items.push((json!({"system": system, "instruction": asked, "input": "", "output": said}), single))
            }
            Format::Pairs => items.push((json!({"system": system, "prompt": asked, "completion": said}), single)),
            Format::Text => items.push((json!({"text": asked}), Vec::new())),
            Format::Brightrun | Format::BrightrunFull => {
                let parts = (1..=rounds.len()).map(|count| expected(system, &rounds[..count]));
                items.extend(pairs(Some(index), system, rounds).into_iter().zip(parts));
            }
        }
    }
    items
}

/// The ways in which a file can hold items.
fn files(items: &[Value]) -> Vec<String> {
    let lines = |end: &str| items.iter().map(|item| format!("{item}{end}")).collect::<String>();
    let pretty = items.iter().map(|item| format!("{item:#}\n")).collect::<String>();
    let list = Value::from(items.to_vec());
    vec![
        lines("\n"),
        lines("\r\n"),
        lines("\n\n"),
        lines("\n").trim_end().to_owned(),
        list.to_string(),
        format!("{list:#}\n"),
        pretty,
    ]
}

fn plain(example: &Example) -> Vec<(Role, String)> {
    match &example.body {
        Body::Text(_) => Vec::new(),
        Body::Messages(messages) => {
            messages.iter().map(|message| (message.role, message.content.clone().unwrap_or_default())).collect()
        }
    }
}

/// What must hold of any file.
fn check(file: &Read, bytes: &[u8]) {
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
    assert!(file.findings.iter().all(|finding| (1..=lines).contains(&finding.line)), "{:?}", file.findings);
    assert!(file.examples.windows(2).all(|two| two[0].line <= two[1].line));
    assert!(file.examples.len() as u64 <= file.lines);
    for example in &file.examples {
        match &example.body {
            Body::Text(text) => assert!(!text.trim().is_empty()),
            Body::Messages(messages) => {
                assert!(messages.iter().any(|message| message.role == Role::Assistant));
                let speaks = |message: &Message| message.content.is_some() || message.fields.contains_key("tool_calls");
                assert!(messages.iter().all(speaks));
            }
        }
    }
    // Whatever holds no example says why.
    assert!(!file.examples.is_empty() || file.findings.iter().any(|finding| finding.severity() < Severity::Kept));
}

/// Files made of pieces that the readers look for.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let keys = Format::ALL.into_iter().flat_map(|format| format.shape().split('`').skip(1).step_by(2));
    let mut words = keys.map(|key| format!("\"{key}\"").into_bytes()).collect::<Vec<_>>();
    for word in [
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
        "\\",
        "\n",
        "\r\n",
        " ",
        "null",
        "1",
        "true",
        "\"a\"",
        "\"training_pairs\"",
        "\"_meta\"",
        "\"total_pairs\"",
        "\"role\"",
        "\"content\"",
        "\"user\"",
        "\"assistant\"",
        "\"from\"",
        "\"value\"",
        "{\"",
        "\":",
        "\u{feff}",
    ] {
        words.push(word.as_bytes().to_vec());
    }
    words.extend([vec![0], vec![0xff], vec![0xc3]]);
    words.extend(Format::ALL.map(|format| format.example().as_bytes().to_vec()));
    vec(select(words), 0..40).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn conversations_of_every_format_and_container_come_back(set in conversations()) {
        for format in Format::ALL {
            let (items, messages): (Vec<_>, Vec<_>) = written(format, &set).into_iter().unzip();
            let files = match format {
                Format::BrightrunFull => {
                    let conversations = set.iter().map(|(system, rounds)| json!({"training_pairs": pairs(None, system.as_ref(), rounds)}));
                    let full = json!({"conversations": conversations.collect::<Vec<_>>(), "consultant_profile": {}});
                    vec![full.to_string(), format!("{full:#}")]
                }
                _ => files(&items),
            };
            for text in files {
                let file = read(&text);
                let fatal = file.findings.iter().filter(|finding| finding.severity() != Severity::Kept).collect::<Vec<_>>();
                prop_assert!(fatal.is_empty(), "{fatal:?} in {text}");
                prop_assert_eq!(file.format, Some(format));
                prop_assert_eq!(file.lines, items.len() as u64);
                prop_assert_eq!(&file.examples.iter().map(plain).collect::<Vec<_>>(), &messages, "{}", text);
                let distinct = file.examples.iter().map(|example| &example.conversation).collect::<std::collections::BTreeSet<_>>();
                prop_assert_eq!(distinct.len(), set.len());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..300)) {
        check(&read(&bytes), &bytes);
    }

    #[test]
    fn any_pieces_of_datasets_are_read_without_a_panic(bytes in pieces()) {
        check(&read(&bytes), &bytes);
    }
}
