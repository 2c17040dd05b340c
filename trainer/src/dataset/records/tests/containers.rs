use std::io::{self, Read as _};

use super::*;
use crate::dataset::records::{MAX_LINE_BYTES, container::Container, container::Entry, lines::Lines};

const FULL: &str = r#"{
  "conversations": [
    {
      "training_pairs": [
        {"conversation_history": [{"role": "user", "content": "Q"}], "current_user_input": "Q", "target_response": "A"},
        {"conversation_history": [], "current_user_input": "first", "target_response": null}
      ],
      "conversation_metadata": {"conversation_id": "one"}
    },
    {
      "conversation_metadata": {"client": "x"},
      "training_pairs": [
        {
          "conversation_id": "two",
          "conversation_history": [{"role": "user", "content": "R"}],
          "current_user_input": "R",
          "target_response": "B"
        }
      ]
    },
    {"training_pairs": [{"conversation_history": [{"role": "user", "content": "T"}], "target_response": "C"}], "x": {"y": "]"}}
  ],
  "consultant_profile": {"name": "E"},
  "training_file_metadata": {"total_pairs": 5}
}
"#;

#[test]
fn the_full_json_is_read_with_its_metadata_after_the_conversations() {
    let file = read(FULL);
    assert_eq!(file.format, Some(Format::BrightrunFull));
    let ids = file.examples.iter().map(|example| (example.conversation.id.as_str(), example.line)).collect::<Vec<_>>();
    assert_eq!(ids, [("one", 5), ("two", 13), ("conversation-3", 21)]);
    assert_eq!(file.turns(1), [("user", "R"), ("assistant", "B")]);
    assert_eq!(file.kinds(), [(FindingKind::MissingTarget, 6), (FindingKind::PairCountDiffers, 24)]);
    assert_eq!(file.lines, 4);
}

#[test]
fn the_full_json_is_read_from_one_line() {
    let compact = FULL.lines().map(str::trim).collect::<String>();
    let file = read(compact);
    assert_eq!((file.format, file.examples.len()), (Some(Format::BrightrunFull), 3));
    assert!(file.examples.iter().all(|example| example.line == 1));
}

#[test]
fn the_full_json_cut_off_anywhere_is_said_to_be() {
    for end in (400..FULL.trim_end().len()).step_by(7).chain([FULL.trim_end().len() - 1]) {
        let file = read(&FULL[..end]);
        assert_eq!(file.of(FindingKind::TruncatedLastLine).len(), 1, "cut at {end}: {:?}", file.findings);
    }
    assert_eq!(read(format!("{FULL}x")).of(FindingKind::InvalidJson).len(), 1);
}

#[test]
fn damage_inside_the_full_json_is_found_on_its_line() {
    let cases = [
        (r#""target_response": "B""#, r#""target_response": B"#, FindingKind::InvalidJson, 13),
        (r#""target_response": "B""#, r#""target_response": 1"#, FindingKind::WrongShape, 13),
        (r#"{"client": "x"},"#, r#"{"client": "x"}"#, FindingKind::InvalidJson, 12),
        (r#""training_pairs": [{"#, r#""training_pairs": 7, "z": [{"#, FindingKind::WrongShape, 21),
        (r#"{"training_pairs": [{"#, r#"3, {"training_pairs": [{"#, FindingKind::WrongShape, 21),
        (r#"{"training_pairs": [{"#, r#"{"pairs": [{"#, FindingKind::WrongShape, 21),
        (r#""C"}], "x""#, r#""C"]}, "x""#, FindingKind::InvalidJson, 21),
    ];
    for (from, to, kind, line) in cases {
        assert!(FULL.contains(from), "{from}");
        let file = read(FULL.replace(from, to));
        assert!(file.of(kind).iter().any(|(found, _)| *found == line), "{to:?}: {:?}", file.findings);
    }
}

#[test]
fn a_list_of_items_is_read_whatever_its_lines() {
    let item = Format::Alpaca.example();
    for list in [format!("[{item},{item}]"), format!("\n[\n  {item}\n,\n\n{item}\n]\n\n")] {
        let file = read(&list);
        assert!(file.findings.is_empty(), "{file:?}");
        assert_eq!((file.format, file.examples.len(), file.lines), (Some(Format::Alpaca), 2, 2));
        assert_eq!(file.examples[1].line, if list.starts_with('[') { 1 } else { 6 });
    }
    let pretty = "[\n  {\n    \"text\": \"a\"\n  },\n  {\n    \"text\":\n \"b\",\n    \"x\": tru\n  }\n]";
    let file = read(pretty);
    let (line, text) = file.only(FindingKind::InvalidJson);
    assert_eq!(line, 5);
    assert!(text.contains("line 9") || text.contains("line 8"), "{text}");
    assert_eq!((file.examples[0].line, file.examples.len()), (2, 1));
}

#[test]
fn items_on_one_line_are_told_apart_by_their_number() {
    let file = read(r#"[{"text":"a"},{"text":""},{"text":"b"},7]"#);
    let ids = file.examples.iter().map(|example| example.conversation.id.as_str()).collect::<Vec<_>>();
    assert_eq!(ids, ["item-1", "item-3"]);
    assert_eq!(file.of(FindingKind::EmptyTarget), [(1, "item 2: text is empty; the example is left out")]);
    assert_eq!(file.of(FindingKind::InvalidJson), [(1, "item 4: a JSON object is expected, found a number")]);
}

#[test]
fn a_list_that_is_broken_is_said_to_be() {
    let item = r#"{"text":"a"}"#;
    for (list, kind, line) in [
        (format!("[{item}\n{item}]"), FindingKind::InvalidJson, 2),
        (format!("[{item},\n]"), FindingKind::InvalidJson, 2),
        (format!("[{item}\n"), FindingKind::TruncatedLastLine, 2),
        (format!("[{item},\n{{\"text\":\"b"), FindingKind::TruncatedLastLine, 2),
        (format!("[{item}]\n{item}\n"), FindingKind::InvalidJson, 2),
        (format!("[{item},,{item}]"), FindingKind::InvalidJson, 1),
        (format!("[{item}}}]"), FindingKind::InvalidJson, 1),
    ] {
        let file = read(&list);
        assert_eq!((file.only(kind).0, file.examples.len()), (line, 1), "{list:?}");
    }
    let mixed = read(format!("[{item},\n{},\n{item}]", Format::Pairs.example()));
    assert!(mixed.only(FindingKind::MixedFormats).1.contains("line 1 is `text`"), "{mixed:?}");
    assert_eq!((mixed.only(FindingKind::MixedFormats).0, mixed.examples.len()), (2, 2));
}

#[test]
fn objects_over_several_lines_are_read_one_after_the_other() {
    let pretty = "{\n  \"turns\": [\n    {\"role\": \"user\", \"content\": \"Q\"},\n    {\"role\": \"assistant\", \"content\": \"A\"}\n  ]\n}\n";
    let file = read(format!("{pretty}\n{pretty}"));
    assert!(file.findings.is_empty(), "{file:?}");
    assert_eq!(file.examples.iter().map(|example| example.line).collect::<Vec<_>>(), [1, 8]);
    assert_eq!(read(&pretty[..60]).only(FindingKind::TruncatedLastLine).0, 1);
    assert_eq!(read(format!("{pretty}]")).only(FindingKind::InvalidJson).0, 7);
}

#[test]
fn a_huge_item_of_a_list_is_skipped_over() {
    let huge = "x".repeat(MAX_LINE_BYTES);
    let file = read(format!("[{{\"text\":\"a\"}},\n{{\"text\":\"{huge}\"}},\n{{\"text\":\"b\"}}]"));
    assert_eq!(file.only(FindingKind::HugeLine), (2, "item 2 is longer than 16 MiB; leave it out or divide it"));
    assert_eq!(file.examples.len(), 2);
}

/// 100 MB of one byte, with something before and after.
fn generated(before: &'static str, after: &'static str) -> BufReader<impl io::Read + Send> {
    BufReader::new(before.as_bytes().chain(io::repeat(b'x').take(100_000_000)).chain(after.as_bytes()))
}

#[test]
fn a_line_of_100_mb_is_never_held() {
    let mut lines = Lines::new(Box::new(generated("{\"text\":\"", "\"}\n{\"text\":\"b\"}\n")), false);
    assert!(matches!(lines.next().unwrap(), Some(Entry::Unreadable(finding)) if finding.kind == FindingKind::HugeLine));
    assert!(matches!(lines.next().unwrap(), Some(Entry::Item(item)) if item.line == 2));
    assert!(lines.held() <= 2 * MAX_LINE_BYTES + 2, "{}", lines.held());
    assert_eq!(lines.bytes(), 100_000_000 + 9 + 3 + 13);
}

#[test]
fn a_container_of_100_mb_strings_is_read_to_its_end() {
    for (before, after, good) in [
        ("[{\"text\":\"", "\"},{\"text\":\"b\"}]", true),
        ("{\"consultant_profile\":\"", "\",\"conversations\":[]}", false),
    ] {
        let (mut container, _) = Container::open(Box::new(generated(before, after))).unwrap();
        let mut items = 0;
        while let Some(entry) = container.next().unwrap() {
            items += usize::from(matches!(entry, Entry::Item(_)));
        }
        assert_eq!(items, usize::from(good));
        assert!(container.bytes() > 100_000_000);
    }
}

#[test]
fn batches_are_bounded_whatever_the_lines() {
    let tiny = "1\n".repeat(10_000);
    let mut records = Records::from_reader(Cursor::new(tiny), "data").unwrap();
    let mut seen = 0;
    while let Some(batch) = records.next_batch(25_600).unwrap() {
        assert!(batch.len() <= 100, "{}", batch.len());
        seen += batch.len();
    }
    assert_eq!((seen, records.lines()), (10_000, 10_000));
    assert_eq!(records.format(), None);
    assert!(records.next_batch(1).unwrap().is_none());
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_that_names_it() {
    let error = Records::open(std::path::Path::new("/nowhere/data.jsonl")).err().unwrap().to_string();
    assert!(error.starts_with("cannot read /nowhere/data.jsonl: "), "{error}");
    let reader = Cursor::new("{\"text\":\"a\"}\n".repeat(100_000)).chain(BufReader::new(Failing));
    let mut records = Records::from_reader(reader, "data.jsonl").unwrap();
    let error = loop {
        match records.next_batch(1 << 20) {
            Ok(batch) => assert!(batch.is_some()),
            Err(error) => break error.to_string(),
        }
    };
    assert_eq!(error, "cannot read data.jsonl: gone");
}

struct Failing;

impl io::Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("gone"))
    }
}
