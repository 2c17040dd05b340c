use super::*;
use crate::dataset::records::MAX_LINE_BYTES;

const TURNS: &str =
    r#"{"conversation_id":"a","turns":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}"#;

/// A file of one line between two good ones.
fn with_line(line: &str) -> Read {
    read(format!("{TURNS}\n{line}\n{TURNS}\n"))
}

#[test]
fn a_byte_order_mark_is_ignored_and_said() {
    let file = read(format!("\u{feff}{TURNS}\n"));
    assert_eq!(file.examples.len(), 1);
    assert_eq!(file.only(FindingKind::ByteOrderMark).0, 1);
    let list = read(format!("\u{feff}[{TURNS}]"));
    assert_eq!((list.examples.len(), list.only(FindingKind::ByteOrderMark).0), (1, 1));
}

#[test]
fn carriage_returns_are_reported_once() {
    let file = read(format!("{TURNS}\n{TURNS}\r\n\r\n{TURNS}\r\n"));
    assert_eq!(file.examples.len(), 3);
    assert_eq!(file.kinds(), [(FindingKind::CarriageReturns, 2), (FindingKind::BlankLine, 3)]);
}

#[test]
fn blank_lines_are_skipped_and_lines_stay_counted() {
    let file = read(format!("\n{TURNS}\n\n \t\n\n{TURNS}\n\n"));
    assert_eq!(file.examples.iter().map(|example| example.line).collect::<Vec<_>>(), [2, 6]);
    assert_eq!(file.lines, 2);
    let blank = file.of(FindingKind::BlankLine);
    assert_eq!(blank.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 3, 7]);
    assert!(blank[1].1.starts_with("3 blank lines"), "{blank:?}");
}

#[test]
fn invalid_utf_8_is_named_with_its_byte() {
    let mut bytes = "\u{feff}{\"text\":\"".as_bytes().to_vec();
    bytes.extend_from_slice(b"\xe4\"}\n{\"text\":\"b\"}\n{\"text\":\"\xff\"}\n");
    let file = read(bytes);
    let found = file.of(FindingKind::InvalidUtf8);
    assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 3]);
    assert!(found[0].1.contains("byte 13 (0xe4)"), "{found:?}");
    assert!(found[1].1.contains("byte 10 (0xff)"), "{found:?}");
    assert_eq!(file.examples.len(), 1);
}

#[test]
fn nul_bytes_are_named() {
    let file = with_line("\0\0\0");
    assert!(file.only(FindingKind::InvalidJson).1.contains("byte 1 is NUL"), "{file:?}");
    assert_eq!(file.only(FindingKind::InvalidJson).0, 2);
    // Escaped it is a character like others.
    assert_eq!(read(r#"{"text":"a\u0000b"}"#).examples[0].body, Body::Text("a\0b".into()));
}

#[test]
fn a_huge_line_is_skipped_over_and_named() {
    let mut bytes = format!("{TURNS}\n").into_bytes();
    bytes.extend(std::iter::repeat_n(b'x', MAX_LINE_BYTES + 1));
    bytes.extend_from_slice(format!("\n{TURNS}\n").as_bytes());
    let file = read(bytes);
    assert_eq!(file.only(FindingKind::HugeLine), (2, "the line is longer than 16 MiB; leave it out or divide it"));
    assert_eq!(file.examples.iter().map(|example| example.line).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(file.lines, 3);
}

#[test]
fn a_line_of_just_the_limit_is_read() {
    let text = "x".repeat(MAX_LINE_BYTES - r#"{"text":""}"#.len());
    let line = format!("{{\"text\":\"{text}\"}}");
    assert_eq!(line.len(), MAX_LINE_BYTES);
    assert_eq!(read(format!("{line}\n{line}")).examples.len(), 2);
    assert_eq!(read(format!("{{ {}\n{line}", &line[1..])).only(FindingKind::HugeLine).0, 1);
}

#[test]
fn a_truncated_last_line_is_told_from_a_broken_one() {
    for end in 1..TURNS.len() {
        let file = read(format!("{TURNS}\n{}", &TURNS[..end]));
        assert_eq!(file.only(FindingKind::TruncatedLastLine).0, 2, "cut at {end}");
    }
    let file = read(format!("{TURNS}\n{}\n", &TURNS[..20]));
    assert_eq!(file.only(FindingKind::InvalidJson).0, 2);
    // In the middle of a character.
    let line = r#"{"text":"ä"}"#.as_bytes();
    assert_eq!(read(&line[..10]).only(FindingKind::TruncatedLastLine).0, 1);
}

#[test]
fn deep_nesting_is_refused() {
    for bracket in ["[", "{\"a\":"] {
        let file = with_line(&bracket.repeat(100_000));
        assert_eq!(file.only(FindingKind::InvalidJson).0, 2);
    }
    let file = with_line(&format!("{{\"turns\":{}{}}}", "[".repeat(1000), "]".repeat(1000)));
    assert!(file.only(FindingKind::InvalidJson).1.contains("recursion limit"), "{file:?}");
    assert!(!read("[".repeat(100_000)).findings.is_empty());
}

#[test]
fn duplicate_keys_do_no_harm() {
    let file = read(r#"{"text":"a","text":"b","text":7,"text":"c"}"#);
    assert_eq!(file.examples[0].body, Body::Text("c".into()));
}

#[test]
fn lone_surrogates_and_huge_numbers_are_findings() {
    assert_eq!(with_line(r#"{"turns":"\ud800"}"#).only(FindingKind::InvalidJson).0, 2);
    assert!(with_line(r#"{"turns":1e999}"#).only(FindingKind::InvalidJson).1.contains("out of range"));
    assert_eq!(with_line(r#"{"turns":NaN}"#).only(FindingKind::InvalidJson).0, 2);
    assert!(with_line("[1]").only(FindingKind::InvalidJson).1.contains("found a list"));
    assert!(with_line(&format!("{TURNS}{TURNS}")).only(FindingKind::InvalidJson).1.contains("trailing characters"));
}

#[test]
fn mixed_formats_name_both_lines_and_both_formats() {
    let file = read(format!("{TURNS}\n{{\"text\":\"t\"}}\n{TURNS}\n{{\"prompt\":\"p\",\"response\":\"r\"}}\n"));
    assert_eq!(file.format, Some(Format::Turns));
    let mixed = file.of(FindingKind::MixedFormats);
    assert_eq!(mixed.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 4]);
    assert!(mixed[0].1.contains("this line is `text`") && mixed[0].1.contains("line 1 is `turns`"), "{mixed:?}");
    assert!(mixed[1].1.contains("this line is `pairs`"), "{mixed:?}");
    assert_eq!(FindingKind::MixedFormats.severity(), Severity::Fatal);
    assert_eq!(file.examples.len(), 2);
}

#[test]
fn the_first_line_that_has_a_format_decides() {
    let file = read(format!("broken\n{{\"a\":1}}\n{TURNS}\n{{\"b\":1}}\n"));
    assert_eq!(file.format, Some(Format::Turns));
    assert_eq!(
        file.kinds(),
        [(FindingKind::UnknownFormat, 2), (FindingKind::UnknownFormat, 4), (FindingKind::InvalidJson, 1)]
    );
    let unknown = file.of(FindingKind::UnknownFormat);
    assert!(unknown[0].1.contains("keys are \"a\"; known formats are brightrun_full ("), "{unknown:?}");
    assert!(unknown[1].1.contains("keys are \"b\"; line 3 is `turns`"), "{unknown:?}");
}

#[test]
fn no_line_of_a_known_format_leaves_the_format_open() {
    let file = read("{\"question\":\"q\",\"answer\":\"a\"}\n{}\n");
    assert_eq!(file.format, None);
    let unknown = file.of(FindingKind::UnknownFormat);
    assert!(
        unknown[0].1.contains("\"question\", \"answer\"") && unknown[0].1.contains("openai (`messages`)"),
        "{unknown:?}"
    );
    assert!(unknown[1].1.contains("keys are none"), "{unknown:?}");
}

#[test]
fn files_that_hold_nothing_say_so() {
    for nothing in [
        "",
        "\n\n",
        "\u{feff}",
        "{\"_meta\":{\"version\":4}}\n",
        "[]",
        "{\"conversations\":[],\"consultant_profile\":{}}",
    ] {
        let file = read(nothing);
        assert_eq!(file.of(FindingKind::NothingToTrainOn).len(), 1, "{nothing:?}");
        assert!(file.examples.is_empty());
    }
}

#[test]
fn wrong_types_are_named_with_their_path() {
    let file = with_line(
        r#"{"conversation_id":[],"turns":[7,{"role":"user"},{"content":"x"},{"role":"assistant","content":8},{"role":2,"content":"x"}]}"#,
    );
    let (line, text) = file.only(FindingKind::WrongShape);
    assert_eq!(line, 2);
    for expected in [
        "turns[0]: expected an object, found a number",
        "turns[1].content: missing",
        "turns[2].role: missing",
        "turns[3].content: expected a string, found a number",
        "turns[4].role: expected a string, found a number",
        "conversation_id: expected a string, found a list",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in {text:?}");
    }
    assert!(
        with_line(r#"{"turns":"x"}"#)
            .only(FindingKind::WrongShape)
            .1
            .contains("turns: expected a list, found a string")
    );
    assert!(with_line(r#"{"turns":null}"#).only(FindingKind::WrongShape).1.contains("found null"));
    let many = format!("{{\"turns\":[{}1]}}", "1,".repeat(99));
    assert!(with_line(&many).only(FindingKind::WrongShape).1.ends_with("; and 92 more"));
}

#[test]
fn an_unknown_role_is_fatal() {
    let file = with_line(r#"{"turns":[{"role":"narrator","content":"x"},{"role":"assistant","content":"A"}]}"#);
    let (line, text) = file.only(FindingKind::UnknownRole);
    assert_eq!((line, file.examples.len()), (2, 2));
    assert_eq!(text, "turns[0].role: \"narrator\"; system, user, assistant and tool are known");
}

#[test]
fn two_user_turns_in_a_row_are_kept_and_said() {
    let file = read(
        r#"{"turns":[{"role":"user","content":"Q"},{"role":"user","content":"R"},{"role":"assistant","content":"A"}]}"#,
    );
    assert!(file.only(FindingKind::RepeatedRole).1.ends_with("kept: turns[1]"), "{file:?}");
    assert_eq!(file.turns(0), [("user", "Q"), ("user", "R"), ("assistant", "A")]);
}

#[test]
fn an_empty_assistant_turn_leaves_the_example_out() {
    for content in ["\"\"", "\" \\n\\t\""] {
        let line = TURNS.replace("\"A\"", content);
        assert_eq!(with_line(&line).only(FindingKind::EmptyTarget), (2, "turns[1] is empty; the example is left out"));
    }
    let null = TURNS.replace("\"A\"", "null");
    assert_eq!(with_line(&null).only(FindingKind::MissingTarget).0, 2);
}

#[test]
fn an_empty_turn_of_the_user_is_kept_and_said() {
    let file = read(TURNS.replace("\"Q\"", "\"  \""));
    assert!(file.only(FindingKind::EmptyTurn).1.ends_with("turns[0]"), "{file:?}");
    assert_eq!(file.turns(0), [("user", "  "), ("assistant", "A")]);
}

#[test]
fn an_answer_without_a_question_is_kept_and_said() {
    let file = read(r#"{"turns":[{"role":"system","content":"S"},{"role":"assistant","content":"A"}]}"#);
    assert!(file.only(FindingKind::NoUserTurn).1.contains("turns[1]"), "{file:?}");
    assert_eq!(file.examples.len(), 1);
}

#[test]
fn a_conversation_that_nobody_answers_is_left_out() {
    for turns in ["", r#"{"role":"user","content":"Q"}"#] {
        let file = with_line(&format!("{{\"turns\":[{turns}]}}"));
        assert_eq!((file.only(FindingKind::NoAssistantTurn).0, file.examples.len()), (2, 2));
    }
}

#[test]
fn a_trailing_user_turn_is_kept() {
    let file = read(TURNS.replace("]}", r#",{"role":"user","content":"bye"}]}"#));
    assert!(file.findings.is_empty(), "{file:?}");
    assert_eq!(file.turns(0).last(), Some(&("user", "bye")));
}

#[test]
fn a_refused_line_says_only_why_it_is_refused() {
    let file = read(
        r#"{"turns":[{"role":"user","content":""},{"role":"user","content":"x"},{"role":"assistant","content":""}]}"#,
    );
    assert_eq!(file.only(FindingKind::EmptyTarget).0, 1);
}

#[test]
fn archives_and_utf_16_are_one_finding() {
    assert_eq!(read(b"\x1f\x8b\x08rest\n\n").only(FindingKind::UnknownFormat).0, 1);
    let utf16 = "{\"text\":\"a\"}\n".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    assert_eq!(read(&utf16).only(FindingKind::InvalidUtf8), (1, "the file is UTF-16; save it as UTF-8"));
}

#[test]
fn unknown_roles_and_keys_are_quoted_short_and_escaped() {
    let file = read(format!("{{\"{}\":1,\"a\\nb\":2}}", "k".repeat(10_000)));
    let text = file.only(FindingKind::UnknownFormat).1;
    assert!(text.len() < 1000 && text.contains("\"a\\nb\"") && text.contains("…"), "{text}");
}
