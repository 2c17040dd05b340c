use serde_json::{Value, json};

use super::*;
use crate::dataset::{
    example::{Learnt, Role},
    records::Record,
};

const PAIR: &str = r#"{"id":"p2","conversation_id":"c","turn_number":2,"system_prompt":"S","conversation_history":[{"turn":1,"role":"user","content":"Q"},{"turn":1,"role":"assistant","content":"A"},{"turn":2,"role":"user","content":"R","emotional_state":{"primary":"fear"}}],"current_user_input":"R","target_response":"B","training_metadata":{}}"#;

/// One line on its own.
fn line(value: Value) -> Read {
    read(value.to_string())
}

#[test]
fn every_example_of_the_documentation_is_read_without_a_finding() {
    for format in Format::ALL {
        let file = read(format.example());
        assert_eq!(file.format, Some(format));
        assert!(file.findings.is_empty(), "{file:#?}");
        assert_eq!(file.examples.len(), 1, "{format}");
        assert!(!format.shape().is_empty() && !format.reading().is_empty());
    }
}

#[test]
fn a_pair_whose_history_ends_with_the_input_does_not_double_it() {
    let file = read(PAIR);
    assert!(file.findings.is_empty(), "{file:?}");
    assert_eq!(file.turns(0), [("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "R"), ("assistant", "B")]);
    assert_eq!((file.examples[0].conversation.id.as_str(), file.examples[0].learnt), ("c", Learnt::LastAssistantTurn));
    assert!(messages(&file.examples[0]).iter().all(|message| message.fields.is_empty()));
}

#[test]
fn an_input_that_differs_only_in_white_space_is_not_doubled() {
    let file = read(PAIR.replace(r#""current_user_input":"R""#, r#""current_user_input":" R\n""#));
    assert!(file.findings.is_empty(), "{file:?}");
    assert_eq!(file.turns(0)[3], ("user", "R"));
    assert_eq!(file.turns(0).len(), 5);
}

#[test]
fn an_input_that_is_not_in_the_history_is_added_and_said() {
    let file = read(PAIR.replace(r#","turn":2,"role":"user","content":"R""#, "").replace(
        r#"{"turn":2,"role":"user","content":"R","emotional_state":{"primary":"fear"}}"#,
        r#"{"role":"assistant","content":"!"}"#,
    ));
    assert_eq!(file.of(FindingKind::InputNotInHistory).len(), 1, "{file:?}");
    assert_eq!(file.turns(0)[4..], [("user", "R"), ("assistant", "B")]);
    let first = line(json!({"conversation_history": [], "current_user_input": "R", "target_response": "B"}));
    assert_eq!(first.only(FindingKind::InputNotInHistory).0, 1);
    assert_eq!(first.turns(0), [("user", "R"), ("assistant", "B")]);
}

#[test]
fn a_pair_without_any_input_is_of_the_wrong_shape() {
    for history in [json!([]), json!([{"role": "assistant", "content": "A"}]), json!(null)] {
        let file = line(json!({"conversation_history": history, "current_user_input": null, "target_response": "B"}));
        assert!(file.only(FindingKind::WrongShape).1.contains("current_user_input: missing"), "{file:?}");
    }
    let file = line(json!({"conversation_history": [{"role": "user", "content": "Q"}], "target_response": "B"}));
    assert!(file.findings.is_empty(), "{file:?}");
}

#[test]
fn a_target_that_is_null_absent_or_empty_is_left_out_and_counted() {
    let null = PAIR.replace(r#""target_response":"B","#, r#""target_response":null,"#);
    let absent = PAIR.replace(r#""target_response":"B","#, "");
    let empty = PAIR.replace(r#""target_response":"B","#, r#""target_response":" ","#);
    let number = PAIR.replace(r#""target_response":"B","#, r#""target_response":5,"#);
    let file = read(format!("{PAIR}\n{null}\n{absent}\n{empty}\n{number}\n"));
    assert_eq!(
        file.kinds(),
        [
            (FindingKind::WrongShape, 5),
            (FindingKind::MissingTarget, 2),
            (FindingKind::MissingTarget, 3),
            (FindingKind::EmptyTarget, 4)
        ]
    );
    assert_eq!(file.examples.len(), 1);
}

#[test]
fn an_empty_answer_in_the_history_is_kept_and_said() {
    for content in ["\"\"", "null"] {
        let file = read(PAIR.replace("\"A\"", content));
        assert!(file.only(FindingKind::EmptyTurn).1.ends_with("conversation_history[1]"), "{file:?}");
        assert_eq!(file.turns(0)[2], ("assistant", ""));
    }
}

#[test]
fn a_count_of_pairs_that_differs_is_said() {
    let meta =
        |count: u64| format!("{{\"_meta\":{{\"file_name\":\"x\",\"total_pairs\":{count},\"version\":\"4.0.0\"}}}}");
    let file = read(format!("{}\n{PAIR}\n{PAIR}\n", meta(89)));
    assert_eq!(file.only(FindingKind::PairCountDiffers), (1, "the file says that it has 89 pairs; it has 2"));
    assert_eq!((file.lines, file.examples.len(), file.format), (3, 2, Some(Format::Brightrun)));
    assert!(read(format!("{}\n{PAIR}\n{PAIR}\n", meta(2))).findings.is_empty());
    // Two files put together.
    assert!(read(format!("{}\n{PAIR}\n{}\n{PAIR}\n", meta(1), meta(1))).findings.is_empty());
    assert!(read(format!("{{ \"_meta\": {{}} }}\n{PAIR}\n")).findings.is_empty());
}

#[test]
fn openai_lines_keep_tools_calls_and_joined_parts() {
    let calls =
        json!([{"id": "1", "type": "function", "function": {"name": "rate", "arguments": "{\"z\":1,\"a\":2}"}}]);
    let file = line(json!({
        "tools": [{"type": "function", "function": {"name": "rate"}}],
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            {"role": "user", "content": "Rate?", "name": "ann", "tool_calls": null},
            {"role": "assistant", "content": null, "tool_calls": calls, "reasoning_content": "Ask.", "refusal": null},
            {"role": "tool", "tool_call_id": "1", "content": "3 %"},
            {"role": "tool", "tool_call_id": "2", "content": "4 %"},
            {"role": "assistant", "content": "3 %", "tool_calls": []},
        ]
    }));
    assert!(file.findings.is_empty(), "{file:?}");
    let messages = messages(&file.examples[0]);
    assert_eq!((messages[0].role, messages[0].content.as_deref()), (Role::System, Some("Be brief.")));
    assert_eq!(Value::Object(messages[1].fields.clone()), json!({"name": "ann"}));
    assert_eq!(messages[2].content, None);
    assert_eq!(messages[2].fields["tool_calls"], calls);
    assert_eq!(messages[2].fields.keys().collect::<Vec<_>>(), ["tool_calls", "reasoning_content"]);
    assert_eq!(messages[3].fields["tool_call_id"], "1");
    assert!(messages[5].fields.is_empty());
    assert_eq!(file.examples[0].tools[0]["function"]["name"], "rate");
    assert_eq!(
        (file.examples[0].conversation.id.as_str(), file.examples[0].learnt),
        ("line-1", Learnt::EveryAssistantTurn)
    );
}

#[test]
fn tools_written_into_a_text_are_read_and_other_things_refused() {
    let chat = json!([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]);
    assert_eq!(line(json!({"messages": chat, "tools": "[{\"name\":\"t\"}]"})).examples[0].tools[0]["name"], "t");
    for none in [json!(null), json!([]), json!("")] {
        assert_eq!(line(json!({"messages": chat, "tools": none})).examples[0].tools, Value::Null);
    }
    assert!(
        line(json!({"messages": chat, "tools": {"a": 1}}))
            .only(FindingKind::WrongShape)
            .1
            .contains("tools: expected a list")
    );
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, chat[1]]);
    assert!(line(json!({"messages": image})).only(FindingKind::WrongShape).1.contains("messages[0].content[0]"));
    let calls = json!([chat[0], {"role": "assistant", "content": "A", "tool_calls": "x", "name": 5}]);
    let file = line(json!({"messages": calls}));
    let text = file.only(FindingKind::WrongShape).1;
    assert!(text.contains("messages[1].tool_calls: expected a list") && text.contains("messages[1].name"), "{text}");
}

#[test]
fn weights_of_assistant_turns_are_obeyed_or_refused() {
    let chat = |weights: [Value; 2]| {
        json!({"messages": [
            {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "weight": weights[0]},
            {"role": "user", "content": "R"}, {"role": "assistant", "content": "B", "weight": weights[1]},
        ]})
    };
    let learnt = |weights| line(chat(weights)).examples[0].learnt;
    assert_eq!(learnt([json!(1), json!(null)]), Learnt::EveryAssistantTurn);
    assert_eq!(learnt([json!(0), json!(1)]), Learnt::LastAssistantTurn);
    assert_eq!(line(chat([json!(0), json!(0)])).only(FindingKind::NoAssistantTurn).0, 1);
    assert!(line(chat([json!(1), json!(0)])).only(FindingKind::WrongShape).1.contains("divide the conversation"));
    assert!(line(chat([json!("x"), json!(0.5)])).findings[0].message.contains("messages[1].weight: expected 0 or 1"));
}

#[test]
fn turns_beside_messages_are_refused() {
    let file = line(json!({"turns": [], "messages": []}));
    assert!(file.only(FindingKind::WrongShape).1.contains("`messages` stands beside it"), "{file:?}");
}

#[test]
fn sharegpt_has_other_names_for_everything() {
    let file = line(json!({"id": "x", "system": "S", "conversations": [
        {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"},
        {"from": "user", "value": "R"}, {"from": "chatgpt", "value": "B"},
        {"role": "user", "content": "T"}, {"role": "assistant", "content": "C"},
    ]}));
    assert!(file.findings.is_empty(), "{file:?}");
    let expected =
        [("user", "Q"), ("assistant", "A"), ("user", "R"), ("assistant", "B"), ("user", "T"), ("assistant", "C")];
    assert_eq!(file.turns(0), [&[("system", "S")][..], &expected[..]].concat());
    let file = line(json!({"conversations": [{"from": "bot", "value": "Q"}, {"value": 1}]}));
    assert_eq!(file.of(FindingKind::UnknownRole)[0].1.split(';').next(), Some("conversations[0].from: \"bot\""));
    assert!(file.of(FindingKind::WrongShape)[0].1.contains("conversations[1].from: missing"));
}

#[test]
fn alpaca_joins_a_given_input_after_a_blank_line() {
    for (input, asked) in [(json!("I"), "Do\n\nI"), (json!(""), "Do"), (json!(null), "Do")] {
        let file = line(json!({"instruction": "Do", "input": input, "output": "A", "system": ""}));
        assert!(file.findings.is_empty(), "{file:?}");
        assert_eq!(file.turns(0), [("user", asked), ("assistant", "A")]);
    }
    let file = read(
        "{\"instruction\":\"Do\",\"output\":\"A\",\"system\":\"S\"}\n{\"instruction\":\"Do\",\"output\":null}\n{\"instruction\":\"Do\",\"output\":7}\n{\"instruction\":\"Do\"}\n{\"instruction\":\"Do\",\"output\":\"A\",\"history\":[[\"a\",\"b\"]]}",
    );
    assert_eq!(file.turns(0), [("system", "S"), ("user", "Do"), ("assistant", "A")]);
    assert_eq!(
        file.kinds(),
        [
            (FindingKind::WrongShape, 3),
            (FindingKind::WrongShape, 5),
            (FindingKind::MissingTarget, 2),
            (FindingKind::MissingTarget, 4)
        ]
    );
}

#[test]
fn pairs_are_texts_or_lists_of_messages() {
    let user = |text: &str| json!({"role": "user", "content": text});
    let assistant = |text: &str| json!({"role": "assistant", "content": text});
    let learnt = |prompt: Value, completion: Value| {
        let file = line(json!({"prompt": prompt, "completion": completion}));
        assert!(file.findings.is_empty(), "{file:?}");
        (file.turns(0).len(), file.examples[0].learnt)
    };
    assert_eq!(learnt(json!("Q"), json!(" A")), (2, Learnt::LastAssistantTurn));
    let history = json!([user("Q"), assistant("A"), user("R")]);
    assert_eq!(learnt(history.clone(), json!([assistant("B")])), (4, Learnt::LastAssistantTurn));
    let several = json!([assistant("A"), user("R"), assistant("B")]);
    assert_eq!(learnt(json!([user("Q")]), several.clone()), (4, Learnt::EveryAssistantTurn));
    assert_eq!(line(json!({"prompt": history, "completion": several})).only(FindingKind::WrongShape).0, 1);
    assert_eq!(read(r#"{"prompt":"Q","response":"A"}"#).turns(0), [("user", "Q"), ("assistant", "A")]);
    assert_eq!(read(r#"{"prompt":"Q","response":null}"#).only(FindingKind::MissingTarget).0, 1);
    assert_eq!(read(r#"{"prompt":"Q","completion":"A","response":"B"}"#).only(FindingKind::WrongShape).0, 1);
    assert_eq!(read(r#"{"prompt":["Q"],"completion":"A"}"#).only(FindingKind::WrongShape).0, 1);
    assert_eq!(line(json!({"prompt": "Q", "completion": [user("A")]})).only(FindingKind::NoAssistantTurn).0, 1);
    assert_eq!(
        read("{\"prompt\":\"Q\",\"completion\":\"A\"}\n{\"prompt\":\"Q\"}").only(FindingKind::MissingTarget).0,
        2
    );
}

#[test]
fn text_is_taken_as_it_is() {
    let file = read("{\"text\":\" a\\n\"}\n{\"text\":\"\"}\n{\"text\":null}\n{\"text\":[]}");
    assert_eq!(file.examples[0].body, Body::Text(" a\n".into()));
    assert_eq!(
        file.kinds(),
        [(FindingKind::WrongShape, 4), (FindingKind::MissingTarget, 3), (FindingKind::EmptyTarget, 2)]
    );
}

#[test]
fn ids_may_be_numbers_and_blank_ones_are_none() {
    let ids =
        ["7", "\"x\"", "\" \"", "null"].map(|id| format!("{{\"text\":\"t\",\"conversation_id\":{id}}}")).join("\n");
    let file = read(ids);
    let ids = file.examples.iter().map(|example| example.conversation.id.as_str()).collect::<Vec<_>>();
    assert_eq!(ids, ["7", "x", "line-3", "line-4"]);
}

#[test]
fn a_line_on_its_own_has_the_format_it_has() {
    let parsed = Record::of_line(5, Format::Pairs.example()).parse();
    assert_eq!(parsed.example.unwrap().line, 5);
    assert_eq!(Record::of_line(5, "{}").parse().findings[0].kind, FindingKind::UnknownFormat);
    assert!(
        Record::of_line(5, Format::BrightrunFull.example()).parse().findings[0].message.contains("a file of its own")
    );
}
